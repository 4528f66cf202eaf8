//! Patterns of KEYS, SCAN MATCH and CONFIG GET: `*`, `?`, `[a-c]`, `[^a]`, `\x`.

/// Whether `text` matches `pattern`. Takes at most `pattern.len() * text.len()` steps, whatever the pattern.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut next) = (0, 0);
    // Where to go on after the last star if what follows it does not match: one byte further in the text.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            retry = Some((at, next));
            continue;
        }
        let step = match (pattern.get(at), text.get(next)) {
            (None, None) => return true,
            (Some(_), Some(&byte)) => one(&pattern[at..], byte),
            _ => None,
        };
        match (step, retry) {
            (Some(len), _) => {
                at += len;
                next += 1;
            }
            (None, Some((after_star, from))) if from < text.len() => {
                at = after_star;
                next = from + 1;
                retry = Some((after_star, next));
            }
            _ => return false,
        }
    }
}

/// Whether the first element of `pattern`, which is not a star, matches `byte`: the element's length if so.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', class @ ..] => {
            let (matched, len) = in_class(class, byte);
            matched.then_some(1 + len)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether `byte` is in the class, and the length of the class with its `]`, which may be missing at the end.
fn in_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match class[at..] {
            [] => return (found != negated, at),
            [b']', ..] => return (found != negated, at + 1),
            [b'\\', literal, ..] => {
                found |= literal == byte;
                at += 2;
            }
            [first, b'-', last, ..] if last != b']' => {
                found |= (first.min(last)..=first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= literal == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let cases: [(&str, &str, bool); 22] = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("*key*:?", "a key of mine:7", true),
            ("*key*:?", "a key of mine:", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("[a", "a", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    #[test]
    fn many_stars_do_not_explode() {
        assert!(!matches(
            "a*".repeat(200).as_bytes().strip_suffix(b"*").unwrap(),
            &[b'b'; 20_000]
        ));
        let pattern = [b"*a".repeat(100), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &[b'a'; 10_000]));
    }
}
