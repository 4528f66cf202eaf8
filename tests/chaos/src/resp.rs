//! The three commands of the chaos clients in RESP2 (the Redis serialization protocol), and the answers to them. Pure.

/// Longest answer: a number in decimal, or an error's line.
const MAX_ANSWER: usize = 1024;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Ok,
    /// A bulk string, or nothing.
    Value(Option<String>),
    /// An error's words, or words that are no answer to a SET or GET.
    Refused(String),
}

/// A command as an array of bulk strings.
#[must_use]
pub fn command(words: &[&str]) -> Vec<u8> {
    let bulks = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let mut text = format!("*{}\r\n", words.len());
    text.extend(bulks);
    text.into_bytes()
}

/// Takes the first answer from `bytes`, once it is complete.
pub fn take_answer(bytes: &mut Vec<u8>) -> Option<Answer> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return (bytes.len() > MAX_ANSWER).then(|| Answer::Refused("a line without end".to_owned()));
    };
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut used = end + 2;
    let answer = match line.strip_prefix('$').map(str::parse::<i64>) {
        Some(Ok(-1)) => Answer::Value(None),
        Some(Ok(len)) => match usize::try_from(len) {
            Ok(len) if len <= MAX_ANSWER => {
                let value = bytes.get(used..used + len + 2)?;
                used += len + 2;
                Answer::Value(Some(String::from_utf8_lossy(&value[..len]).into_owned()))
            }
            _ => Answer::Refused(line),
        },
        None if line == "+OK" => Answer::Ok,
        _ => Answer::Refused(line),
    };
    bytes.drain(..used);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        assert_eq!(command(&["GET", "k:1"]), b"*2\r\n$3\r\nGET\r\n$3\r\nk:1\r\n");
    }

    #[test]
    fn answers_are_taken_one_by_one_and_whole() {
        let all = b"+OK\r\n$2\r\n17\r\n$-1\r\n-ERR full\r\n";
        let mut bytes = all[..8].to_vec();
        assert_eq!(take_answer(&mut bytes), Some(Answer::Ok));
        assert_eq!(take_answer(&mut bytes), None, "its length is not known");
        bytes.extend_from_slice(&all[8..11]);
        assert_eq!(take_answer(&mut bytes), None, "its end is missing");
        bytes.extend_from_slice(&all[11..]);
        assert_eq!(take_answer(&mut bytes), Some(Answer::Value(Some("17".to_owned()))));
        assert_eq!(take_answer(&mut bytes), Some(Answer::Value(None)));
        assert_eq!(take_answer(&mut bytes), Some(Answer::Refused("-ERR full".to_owned())));
        assert!(bytes.is_empty());
        let mut endless = vec![b'x'; MAX_ANSWER + 1];
        assert!(matches!(take_answer(&mut endless), Some(Answer::Refused(_))));
        let mut huge = b"$99999\r\n".to_vec();
        assert!(matches!(take_answer(&mut huge), Some(Answer::Refused(_))));
    }
}
