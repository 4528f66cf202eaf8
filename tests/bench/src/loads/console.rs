//! The guest's console: what is typed on it from here, through the shared folder, and what it answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ftvm_lab::ft_host::FtHost;

/// In the host: types the files `typed-1`, `typed-2` of the shared folder, without a fork: the guest needs the host's time.
pub(super) const TYPIST: &str = "mkfifo /run/never && exec 5<>/run/never || exit 1
n=1
while :; do
    if read -r line </shared/typed-$n; then echo \"$line\" >&4; n=$((n + 1)); else read -rt 0.2 -u 5; fi
done 2>/dev/null";

/// Types on the guest's console.
#[derive(Debug)]
pub(super) struct Keyboard {
    shared: PathBuf,
    typed: u32,
}

impl Keyboard {
    pub(super) fn new(shared: &Path) -> Self {
        Keyboard {
            shared: shared.to_owned(),
            typed: 0,
        }
    }

    /// Types a line.
    ///
    /// # Errors
    /// If the shared folder cannot be written.
    pub(super) fn type_line(&mut self, line: &str) -> Result<(), String> {
        self.typed += 1;
        let (aside, file) = (
            self.shared.join("typing"),
            self.shared.join(format!("typed-{}", self.typed)),
        );
        fs::write(&aside, format!("{line}\n"))
            .and_then(|()| fs::rename(&aside, &file))
            .map_err(|e| format!("{}: {e}", file.display()))
    }
}

/// Waits until the guest has said a line that begins with `start`; the rest of it.
///
/// # Errors
/// If that does not come in time; says what the host said last.
pub(super) fn wait_line(host: &FtHost, start: &str, limit: Duration) -> Result<String, String> {
    host.wait_said(&format!("{start:?} from the guest"), limit, |text| {
        rest_of_line(text, start)
    })
}

/// What follows `start` on the last whole line that has it. Lines of `ftvm` itself may be mixed in before it.
fn rest_of_line(text: &str, start: &str) -> Option<String> {
    let at = text.rfind(start)? + start.len();
    let end = text[at..].find('\n')?;
    Some(text[at..at + end].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_when_it_is_whole() {
        let text = "load 1 done 3 400\r\nINFO load 12 done 5 600\r\nload 13 done 7 8";
        assert_eq!(rest_of_line(text, "load 1 done").as_deref(), Some("3 400"));
        assert_eq!(rest_of_line(text, "load 12 done").as_deref(), Some("5 600"));
        assert_eq!(rest_of_line(text, "load 13 done"), None);
        assert_eq!(rest_of_line(text, "load 2 done"), None);
    }
}
