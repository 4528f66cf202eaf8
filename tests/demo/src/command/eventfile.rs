//! Reads a side's `--events` while they are written.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::act::ActError;
use ftvm_roles::event::Stamped;

/// Events kept: a demo has some dozens, and one a second while it waits.
const MAX_EVENTS: usize = 10_000;

/// Longest line without its end.
const MAX_LINE: usize = 64 << 10;

/// The events of one side so far.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: Option<File>,
    unfinished: Vec<u8>,
    seen: Vec<Stamped>,
}

impl EventFile {
    /// Nothing is read yet; the file need not exist.
    #[must_use]
    pub fn new(path: &Path) -> EventFile {
        EventFile {
            path: path.to_owned(),
            file: None,
            unfinished: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Reads what is new, and gives everything seen so far, in order.
    ///
    /// # Errors
    /// If the file cannot be read, or has no events in it.
    pub fn read(&mut self) -> Result<&[Stamped], ActError> {
        let name = || self.path.display().to_string();
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(&self.seen),
                Err(error) => return Err(ActError::host(name(), error)),
            }
        }
        if let Some(file) = &mut self.file {
            let read = file.take(MAX_LINE as u64).read_to_end(&mut self.unfinished);
            read.map_err(|error| ActError::host(name(), error))?;
        }
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            let event = serde_json::from_slice(&line).map_err(|error| ActError::host(name(), error))?;
            self.seen.push(event);
        }
        if self.seen.len() > MAX_EVENTS || self.unfinished.len() > MAX_LINE {
            return Err(ActError::TooManyEvents(self.path.clone()));
        }
        Ok(&self.seen)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use ftvm_roles::event::Event;

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("events");
        let mut reader = EventFile::new(&path);
        assert_eq!(reader.read().expect("no file yet"), []);
        let mut file = File::create(&path).expect("creates");
        let event = Stamped {
            at_ns: 7,
            event: Event::WentLive {
                generation: 2,
                reissued: 1,
                reemitted: 0,
            },
        };
        let line = serde_json::to_string(&event).expect("encodes");
        let (before, after) = line.split_at(9);
        write!(file, "{line}\n{before}").expect("writes");
        assert_eq!(reader.read().expect("one line"), std::slice::from_ref(&event));
        writeln!(file, "{after}").expect("writes");
        assert_eq!(reader.read().expect("two lines"), [event.clone(), event]);
        writeln!(file, "nonsense").expect("writes");
        assert!(reader.read().is_err());
    }
}
