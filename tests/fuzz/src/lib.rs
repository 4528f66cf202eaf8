//! What the fuzz targets share.
//!
//! A target is a file in `fuzz_targets`: it takes arbitrary bytes, gives them to something that parses or obeys what
//! comes from outside, and says in its first lines what must hold. A panic, an overflow, more than 512 MiB of memory and
//! more than 10 seconds are findings everywhere. `tests/fuzz/run` builds and runs them; `src/bin/seeds.rs` writes the
//! inputs that they begin with.

#![forbid(unsafe_code)]

mod board;
mod frame;
mod tape;

pub use board::{Board, platform};
pub use frame::sealed;
pub use tape::Tape;
