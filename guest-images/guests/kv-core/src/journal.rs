//! The journal: what changed the store since the log last took it, as commands that change it again.

use alloc::vec::Vec;

use crate::reply::Reply;

/// Commands in RESP, each an array of bulk strings, one behind the other.
#[derive(Debug, Default)]
pub struct Journal {
    bytes: Vec<u8>,
    /// Commands ever appended.
    appended: u64,
    recording: bool,
}

impl Journal {
    /// An empty journal that records nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to record; without this, as while the log is read back, commands are dropped.
    pub fn start(&mut self) {
        self.recording = true;
    }

    /// Appends a command.
    pub fn append<'a>(&mut self, command: impl ExactSizeIterator<Item = &'a [u8]>) {
        if self.recording {
            append(&mut self.bytes, command);
            self.appended += 1;
        }
    }

    /// Commands appended so far.
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// What has not been taken yet.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what has been taken.
    pub fn clear(&mut self) {
        self.bytes.clear();
        // A burst should not keep its memory for ever.
        self.bytes.shrink_to(64 << 10);
    }
}

/// Appends a command in RESP to `bytes`.
pub fn append<'a>(bytes: &mut Vec<u8>, command: impl ExactSizeIterator<Item = &'a [u8]>) {
    let mut request = Reply::new(bytes, 0);
    request.array(command.len());
    command.for_each(|argument| request.bulk(argument));
}
