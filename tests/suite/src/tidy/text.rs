//! Rust text in parts: code without comments and literals, comments without code, and code without tests. All parts keep
//! every offset and line, as what is taken out is replaced by blanks.

use std::ops::Range;

/// Code and comments of one file.
pub(super) struct Parts {
    pub(super) code: String,
    pub(super) comments: String,
}

/// What stands at one place of a text.
enum Piece {
    Code,
    Comment,
    Literal,
}

/// The piece at the beginning of `rest`, which is behind `before`, and its length.
fn piece(before: Option<char>, rest: &str) -> (Piece, usize) {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at);
    if rest.starts_with("//") {
        return (Piece::Comment, until("\n", 0));
    }
    if rest.starts_with("/*") {
        return (Piece::Comment, (until("*/", 2) + 2).min(rest.len()));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let quoted = rest.trim_start_matches(['b', 'c']);
    if !in_word && let Some(raw) = quoted.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let begin = rest.len() - raw.len() + hashes + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            return (Piece::Literal, (until(&end, begin) + end.len()).min(rest.len()));
        }
    }
    if let Some(inner) = rest.strip_prefix('"') {
        let mut escaped = false;
        let end = inner.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        return (Piece::Literal, end.map_or(rest.len(), |(at, _)| at + 2));
    }
    if let Some(inner) = rest.strip_prefix('\'') {
        // A character in quotes; else it is a lifetime.
        let escape = inner.starts_with('\\');
        let from = inner
            .char_indices()
            .nth(if escape { 2 } else { 1 })
            .map_or(inner.len(), |(at, _)| at);
        let end = if escape {
            inner[from..].find('\'').map(|at| from + at)
        } else {
            Some(from)
        };
        if let Some(end) = end.filter(|end| inner[*end..].starts_with('\'')) {
            return (Piece::Literal, end + 2);
        }
    }
    (Piece::Code, rest.chars().next().map_or(0, char::len_utf8))
}

fn blank(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect()
}

pub(super) fn parts(text: &str) -> Parts {
    let (mut code, mut comments) = (String::with_capacity(text.len()), String::with_capacity(text.len()));
    let (mut at, mut before) = (0, None);
    while at < text.len() {
        let (piece, length) = piece(before, &text[at..]);
        let taken = &text[at..at + length];
        let (as_code, as_comment) = match piece {
            Piece::Code => (taken.to_owned(), blank(taken)),
            Piece::Comment => (blank(taken), taken.to_owned()),
            Piece::Literal => (blank(taken), blank(taken)),
        };
        code.push_str(&as_code);
        comments.push_str(&as_comment);
        before = taken.chars().next_back();
        at += length;
    }
    Parts { code, comments }
}

/// Where the brackets that open at `open` close; the end of `code` if they do not.
pub(super) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// Where the item at `from` ends: behind its semicolon or its block.
pub(super) fn item_end(code: &str, from: usize) -> usize {
    let mut at = from;
    while at < code.len() {
        match code.as_bytes()[at] {
            b';' => return at + 1,
            b'{' => return (closing(code, at) + 1).min(code.len()),
            b'(' | b'[' => at = closing(code, at),
            _ => {}
        }
        at += 1;
    }
    code.len()
}

/// The attributes of `code` by which an item is for tests and fuzzers only: `test`, or `cfg` with `test` or a feature in it.
/// No feature of the workspace is on in the program.
pub(super) fn test_attributes(code: &str) -> Vec<Range<usize>> {
    let attributes = code
        .match_indices("#[")
        .map(|(at, _)| at..(closing(code, at + 1) + 1).min(code.len()));
    let only_for_tests = |attribute: &Range<usize>| {
        let inner: Vec<&str> = words(&code[attribute.clone()]).map(|(_, word)| word).collect();
        match inner[..] {
            ["test"] => true,
            ["cfg", ..] => !inner.contains(&"not") && (inner.contains(&"test") || inner.contains(&"feature")),
            _ => false,
        }
    };
    attributes.filter(only_for_tests).collect()
}

/// `code` as it is in the program.
pub(super) fn without_tests(code: &str) -> String {
    let mut left = code.to_owned();
    for attribute in test_attributes(code) {
        let blanks = blank(&code[attribute.start..item_end(code, attribute.end)]);
        left.replace_range(attribute.start..attribute.start + blanks.len(), &blanks);
    }
    left
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The words of `text` with their offsets.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c| !is_letter(c)).filter_map(move |word| {
        let here = at;
        // Between two words stands one character, of any length.
        at = here + word.len() + text[here + word.len()..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((here, word))
    })
}

/// The line that `offset` is in, from 1.
pub(super) fn line(text: &str, offset: usize) -> usize {
    1 + text[..offset].bytes().filter(|byte| *byte == b'\n').count()
}

/// A definition: its kind, name, and offset.
pub(super) struct Definition<'a> {
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    pub(super) at: usize,
    /// Seen from every crate.
    pub(super) public: bool,
    /// In no block: neither of an `impl` nor of a function.
    pub(super) outermost: bool,
}

const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "type", "const", "static"];

/// Everything that `code` defines.
pub(super) fn definitions(code: &str) -> Vec<Definition<'_>> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let mut found = Vec::new();
    for (index, &(at, kind)) in all.iter().enumerate() {
        let Some(&(name_at, name)) = all.get(index + 1) else {
            continue;
        };
        let apart = code[at + kind.len()..name_at].chars().all(char::is_whitespace);
        // `const fn`, `const { }` and `*const T` define no constant; `fn` is read on its own.
        let modifier = kind == "const" && (KINDS.contains(&name) || ["unsafe", "extern", "async"].contains(&name));
        if !KINDS.contains(&kind) || !apart || modifier || code[..at].ends_with('*') {
            continue;
        }
        let line_begin = code[..at].rfind('\n').map_or(0, |at| at + 1);
        let before = &code[line_begin..at];
        let public = before.trim_start().starts_with("pub ");
        let outermost = !before.starts_with(' ') && !before.is_empty() || line_begin == at;
        found.push(Definition {
            kind,
            name,
            at,
            public,
            outermost,
        });
    }
    found
}

#[test]
fn code_comments_and_literals_are_told_apart() {
    let text = "a // b \"x\"\nc(\"d // e\", 'f', b'\\'', r#\"g \" h\"#) /* i */ j<'k>('\"') // ü\nl";
    let Parts { code, comments } = parts(text);
    let code: Vec<&str> = words(&code).map(|(_, word)| word).collect();
    assert_eq!(code, ["a", "c", "b", "j", "k", "l"]);
    let comments: Vec<&str> = words(&comments).map(|(_, word)| word).collect();
    assert_eq!(comments, ["b", "x", "i"]);
}

#[test]
fn tests_are_taken_out_and_nothing_else() {
    let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c[0]; } }\n#[cfg(test)]\nmod d;\nfn e() {}\n\
                #[cfg(not(test))]\nfn f() {}\n#[cfg(any(test, feature = \"g\"))]\npub use h;\n";
    let left = without_tests(code);
    assert!(left.contains("fn a") && left.contains("fn e") && left.contains("fn f") && left.len() == code.len());
    assert!(
        !left.contains("fn b") && !left.contains("mod") && !left.contains("use"),
        "{left}"
    );
}

#[test]
fn definitions_are_found_with_what_they_are() {
    let code =
        "pub const fn a() {}\npub(crate) struct B;\nimpl B {\n    pub fn c(x: *const D) {}\n    const E: u8 = 1;\n}\n";
    let found = definitions(code);
    let named: Vec<_> = found.iter().map(|d| (d.kind, d.name, d.public, d.outermost)).collect();
    assert_eq!(
        named,
        [
            ("fn", "a", true, true),
            ("struct", "B", false, true),
            ("fn", "c", true, false),
            ("const", "E", false, false)
        ]
    );
    assert_eq!(line(code, found[2].at), 4);
}
