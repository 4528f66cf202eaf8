//! A small pseudo-random sequence for tests and simulations: the same everywhere, for ever.

/// xorshift64*: the top half of each number is good enough to choose by.
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Sequence(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}
