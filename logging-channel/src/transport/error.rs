//! What can go wrong with a connection.

use std::io;
use std::time::Duration;

use crate::codec::{EncodeError, FrameError};

/// Why a connection cannot be had, or is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody answered, or the address leads nowhere.
    #[error("cannot connect to {peer}, tried {attempts} times: {source}")]
    Connect {
        peer: String,
        attempts: u32,
        #[source]
        source: io::Error,
    },
    /// Between two frames; whether that is a clean end is for the protocol to say (a `Bye` came before it, or not).
    #[error("{peer} closed the connection")]
    Closed { peer: String },
    /// What came is no frame, or not a whole one.
    #[error("from {peer}: {source}")]
    Frame {
        peer: String,
        #[source]
        source: FrameError,
    },
    /// What is to be sent does not fit a frame. The connection stays usable.
    #[error("to {peer}: {source}")]
    Encode {
        peer: String,
        #[source]
        source: EncodeError,
    },
    /// The socket failed.
    #[error("cannot {doing} {peer}: {source}")]
    Io {
        doing: &'static str,
        peer: String,
        #[source]
        source: io::Error,
    },
    /// The peer, or the network to it, stands still.
    #[error("{peer} took nothing for {after:?}: it is stuck, or the network is")]
    WriteTimeout { peer: String, after: Duration },
    /// A frame was begun and not finished, so that nothing behind it could be read.
    #[error("an earlier frame to {peer} was cut off: nothing more can be sent on this connection")]
    Broken { peer: String },
}
