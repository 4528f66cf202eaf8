//! Arbitrary bytes as a list of things to do.

/// Numbers and byte strings, taken from the front; what is missing at the end is zero, so that every input is a tape.
#[derive(Clone, Copy, Debug)]
pub struct Tape<'a> {
    rest: &'a [u8],
}

impl<'a> Tape<'a> {
    /// The tape that `rest` is.
    #[must_use]
    pub fn new(rest: &'a [u8]) -> Self {
        Tape { rest }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// At most `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn word<const N: usize>(&mut self) -> [u8; N] {
        let mut word = [0; N];
        let taken = self.bytes(N);
        word[..taken.len()].copy_from_slice(taken);
        word
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.word::<1>()[0]
    }

    /// Two bytes, little endian as all others.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.word())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.word())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.word())
    }

    /// One of `choices`, by a byte.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }
}
