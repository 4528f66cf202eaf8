//! Frames into a byte stream, each within a bound of time.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::TransportError;
use crate::codec::FrameEncoder;
use crate::message::Message;
use ftvm_schema::entry::Generation;

/// How long a frame may take to leave, if nothing else is said. The detector has its own, shorter idea of when a peer
/// is lost; this only keeps a task from hanging for ever.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sending half of a connection.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    encoder: FrameEncoder,
    timeout: Duration,
    state: WriterState,
    peer: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriterState {
    Whole,
    /// A frame was begun and not finished (error, timeout, cancelled): what follows would not be read as a frame.
    CutOff,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    #[must_use]
    pub fn new(inner: W, peer: String) -> FrameWriter<W> {
        FrameWriter {
            inner,
            encoder: FrameEncoder::new(),
            timeout: WRITE_TIMEOUT,
            state: WriterState::Whole,
            peer,
        }
    }

    /// Time a frame may take to leave.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends a message and returns the bytes of its frame. When this returns, the kernel has the whole frame.
    ///
    /// # Errors
    /// The message does not fit a frame (the connection stays usable); a write error or timeout (it does not).
    pub async fn send(&mut self, generation: Generation, message: &Message) -> Result<usize, TransportError> {
        match self.encoder.message(generation, message) {
            Ok(frame) => {
                write(&mut self.inner, &mut self.state, self.timeout, &self.peer, frame).await?;
                Ok(frame.len())
            }
            Err(source) => Err(TransportError::Encode {
                peer: self.peer.clone(),
                source,
            }),
        }
    }

    /// Sends a frame that is sealed already (by a [`LogBatch`](crate::codec::LogBatch)).
    ///
    /// # Errors
    /// A write error or timeout.
    pub async fn send_frame(&mut self, frame: &[u8]) -> Result<(), TransportError> {
        write(&mut self.inner, &mut self.state, self.timeout, &self.peer, frame).await
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// A write error or timeout.
    pub async fn shutdown(&mut self) -> Result<(), TransportError> {
        let shut = timeout(self.timeout, self.inner.shutdown()).await;
        written(shut, self.timeout, &self.peer)
    }

    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

async fn write<W: AsyncWrite + Unpin>(
    inner: &mut W,
    state: &mut WriterState,
    limit: Duration,
    peer: &str,
    frame: &[u8],
) -> Result<(), TransportError> {
    if *state == WriterState::CutOff {
        return Err(TransportError::Broken { peer: peer.to_owned() });
    }
    *state = WriterState::CutOff;
    let sent = timeout(limit, async {
        inner.write_all(frame).await?;
        inner.flush().await
    });
    written(sent.await, limit, peer)?;
    *state = WriterState::Whole;
    Ok(())
}

fn written(
    result: Result<io::Result<()>, tokio::time::error::Elapsed>,
    after: Duration,
    peer: &str,
) -> Result<(), TransportError> {
    let peer = peer.to_owned();
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(TransportError::Io {
            doing: "write to",
            peer,
            source,
        }),
        Err(_) => Err(TransportError::WriteTimeout { peer, after }),
    }
}
