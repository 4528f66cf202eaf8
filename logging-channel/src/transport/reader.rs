//! Frames out of a byte stream.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::TransportError;
use crate::codec::{FrameDecoder, FrameError, READ_CHUNK};
use crate::message::Message;
use ftvm_schema::entry::Generation;

/// The receiving half of a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    decoder: FrameDecoder,
    buffer: Box<[u8]>,
    peer: String,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    #[must_use]
    pub fn new(inner: R, peer: String) -> FrameReader<R> {
        FrameReader {
            inner,
            decoder: FrameDecoder::new(),
            buffer: vec![0; READ_CHUNK].into_boxed_slice(),
            peer,
        }
    }

    /// The next message and its frame's generation. May be cancelled (in `select!`) without losing bytes.
    ///
    /// # Errors
    /// [`TransportError::Closed`] between frames; a damaged, undecodable or cut off frame; a read error.
    pub async fn recv(&mut self) -> Result<(Generation, Message), TransportError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|source| self.bad(source))? {
                return Ok((frame.generation, frame.message));
            }
            let read = self
                .inner
                .read(&mut self.buffer)
                .await
                .map_err(|source| TransportError::Io {
                    doing: "read from",
                    peer: self.peer.clone(),
                    source,
                })?;
            if read == 0 {
                self.decoder.finish().map_err(|source| self.bad(source))?;
                return Err(TransportError::Closed {
                    peer: self.peer.clone(),
                });
            }
            self.decoder
                .push(&self.buffer[..read])
                .map_err(|source| self.bad(source))?;
        }
    }

    /// Bounds the payload of the frames to come, in bytes.
    pub fn set_limit(&mut self, limit: usize) {
        self.decoder.set_limit(limit);
    }

    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    fn bad(&self, source: FrameError) -> TransportError {
        TransportError::Frame {
            peer: self.peer.clone(),
            source,
        }
    }
}
