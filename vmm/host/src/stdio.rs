//! What commands say on standard output and standard error, whose readers may have gone (`| head`) or be a full disk.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write, stderr, stdout};

/// Standard output takes no more, as a file on a full disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct StdoutError(#[source] io::Error);

/// Writes an answer to standard output, and the end of its line. A reader that has had enough is no error.
///
/// # Errors
/// [`StdoutError`].
pub fn answer(text: impl Display) -> Result<(), StdoutError> {
    written_to(stdout().lock(), text)
}

/// Writes a line to standard error, if anybody reads it.
pub fn tell(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}

fn written_to(mut output: impl Write, text: impl Display) -> Result<(), StdoutError> {
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(StdoutError(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(written_to(&writer, "heard").is_ok());
        drop(reader);
        assert!(written_to(&writer, "unheard").is_ok());
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = written_to(full, "anything").unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write to standard output: No space left"),
            "{error}"
        );
    }
}
