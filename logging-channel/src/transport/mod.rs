//! Frames over a byte stream: the thin shell around `codec` that owns a socket.
//!
//! Works over any tokio stream, so that TLS can be slipped under it and tests can do without a network. Nothing here
//! waits without a bound but [`FrameReader::recv`], whose caller knows how long silence is tolerable. Every error names
//! the peer.

mod connect;
mod error;
mod reader;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use connect::{Backoff, connect};
pub use error::TransportError;
pub use reader::FrameReader;
pub use stream::{FrameStream, TcpFrames};
pub use writer::{FrameWriter, WRITE_TIMEOUT};
