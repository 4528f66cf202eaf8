//! Both halves of a connection in one.

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{FrameReader, FrameWriter, TransportError};
use crate::message::Message;
use ftvm_schema::entry::Generation;

/// Both halves of a connection.
#[derive(Debug)]
pub struct FrameStream<R, W> {
    pub reader: FrameReader<R>,
    pub writer: FrameWriter<W>,
}

/// A connection over TCP.
pub type TcpFrames = FrameStream<OwnedReadHalf, OwnedWriteHalf>;

impl<S: AsyncRead + AsyncWrite> FrameStream<ReadHalf<S>, WriteHalf<S>> {
    /// Frames over any stream; `peer` is its name in errors.
    pub fn new(stream: S, peer: impl Into<String>) -> Self {
        let (peer, (reader, writer)) = (peer.into(), tokio::io::split(stream));
        FrameStream {
            reader: FrameReader::new(reader, peer.clone()),
            writer: FrameWriter::new(writer, peer),
        }
    }
}

impl TcpFrames {
    /// Frames over a TCP connection, with TCP_NODELAY: an ack that waits for more bytes costs a guest its latency.
    ///
    /// # Errors
    /// The connection is gone already.
    pub fn tcp(stream: TcpStream) -> Result<TcpFrames, TransportError> {
        let peer = stream
            .peer_addr()
            .map_or_else(|_| "a peer that is gone".to_owned(), |address| address.to_string());
        stream.set_nodelay(true).map_err(|source| TransportError::Io {
            doing: "set TCP_NODELAY to",
            peer: peer.clone(),
            source,
        })?;
        let (reader, writer) = stream.into_split();
        Ok(FrameStream {
            reader: FrameReader::new(reader, peer.clone()),
            writer: FrameWriter::new(writer, peer),
        })
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FrameStream<R, W> {
    /// As [`FrameWriter::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, generation: Generation, message: &Message) -> Result<(), TransportError> {
        self.writer.send(generation, message).await.map(|_| ())
    }

    /// As [`FrameReader::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&mut self) -> Result<(Generation, Message), TransportError> {
        self.reader.recv().await
    }

    /// The halves, for a task each.
    pub fn into_split(self) -> (FrameReader<R>, FrameWriter<W>) {
        (self.reader, self.writer)
    }

    #[must_use]
    pub fn peer(&self) -> &str {
        self.reader.peer()
    }
}
