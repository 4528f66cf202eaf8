//! Frames over a byte stream: the thin shell around `codec` that owns a socket.
//!
//! Works over any tokio stream, so that TLS can be slipped under it and tests can do without a network. Nothing here
//! waits without a bound but [`FrameReader::recv`], whose caller knows how long silence is tolerable. Every error names
//! the peer.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use crate::codec::{EncodeError, FrameDecoder, FrameEncoder, FrameError, READ_CHUNK};
use crate::message::Message;
use ftvm_schema::entry::Generation;

/// How long a frame may take to leave, if nothing else is said. The detector has its own, shorter idea of when a peer
/// is lost; this only keeps a task from hanging for ever.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What can go wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
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
    #[error("from {peer}: {source}")]
    Frame {
        peer: String,
        #[source]
        source: FrameError,
    },
    #[error("to {peer}: {source}")]
    Encode {
        peer: String,
        #[source]
        source: EncodeError,
    },
    #[error("cannot {doing} {peer}: {source}")]
    Io {
        doing: &'static str,
        peer: String,
        #[source]
        source: io::Error,
    },
    #[error("{peer} took nothing for {after:?}: it is stuck, or the network is")]
    WriteTimeout { peer: String, after: Duration },
    #[error("an earlier frame to {peer} was cut off: nothing more can be sent on this connection")]
    Broken { peer: String },
}

/// How often and how patiently to try to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first failure; doubled after each further one.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Time for one attempt.
    pub each: Duration,
}

impl Default for Backoff {
    /// About 10 s in all where the connection is refused: a primary that is just being started is found.
    fn default() -> Backoff {
        Backoff {
            first: Duration::from_millis(50),
            most: Duration::from_secs(2),
            attempts: 10,
            each: Duration::from_secs(2),
        }
    }
}

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

/// Connects to `address` ("host:port"), trying again with growing pauses.
///
/// # Errors
/// The last attempt's error, with how many there were.
pub async fn connect(address: &str, backoff: Backoff) -> Result<TcpFrames, TransportError> {
    let mut pause = backoff.first;
    let attempts = backoff.attempts.max(1);
    let mut attempt = 1;
    loop {
        let error = match timeout(backoff.each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return FrameStream::tcp(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", backoff.each)),
        };
        if attempt == attempts {
            return Err(TransportError::Connect {
                peer: address.to_owned(),
                attempts,
                source: error,
            });
        }
        tracing::debug!(address, attempt, %error, "cannot connect yet");
        sleep(pause).await;
        pause = (pause * 2).min(backoff.most);
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::samples::{GENERATION, messages};
    use crate::codec::{FrameFault, LogBatch};
    use ftvm_schema::entry::{LogEntry, OutputSeq};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    #[tokio::test]
    async fn all_messages_travel_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = tokio::spawn(async move {
            let mut stream = connect(&address, Backoff::default()).await.unwrap();
            for (_, message) in messages() {
                stream.send(GENERATION, &message).await.unwrap();
            }
            let mut batch = LogBatch::new(9);
            batch.push(&LogEntry::Released { through: OutputSeq(4) }).unwrap();
            stream.writer.send_frame(batch.seal(GENERATION)).await.unwrap();
            stream.writer.shutdown().await.unwrap();
            stream.recv().await.unwrap_err()
        });
        let mut server = FrameStream::tcp(listener.accept().await.unwrap().0).unwrap();
        for (_, message) in messages() {
            assert_eq!(server.recv().await.unwrap(), (GENERATION, message));
        }
        assert!(matches!(server.recv().await.unwrap().1, Message::Log { number: 9, .. }));
        let closed = server.recv().await.unwrap_err();
        assert!(matches!(closed, TransportError::Closed { .. }));
        assert!(closed.to_string().starts_with("127.0.0.1:"), "{closed}");
        drop(server);
        assert!(matches!(client.await.unwrap(), TransportError::Closed { .. }));
    }

    #[tokio::test]
    async fn a_frame_cut_off_by_the_end_is_no_clean_end() {
        let frame = FrameEncoder::new().message(GENERATION, &Message::Bye).unwrap().to_vec();
        let mut reader = FrameReader::new(&frame[..frame.len() - 1], "them".into());
        let error = reader.recv().await.unwrap_err();
        let TransportError::Frame { source, .. } = &error else {
            panic!("{error}")
        };
        assert!(matches!(source.fault, FrameFault::Truncated { .. }));
        assert!(error.to_string().starts_with("from them: frame 0"), "{error}");
    }

    #[tokio::test]
    async fn garbage_and_frames_above_the_limit_are_refused() {
        let mut reader = FrameReader::new(&b"GET / HTTP/1.1\r\nHost: ftvm\r\n\r\n"[..], "a browser".into());
        assert!(matches!(reader.recv().await, Err(TransportError::Frame { .. })));
        let reason = "x".repeat(100);
        let frame = FrameEncoder::new()
            .message(GENERATION, &Message::Refuse { reason })
            .unwrap()
            .to_vec();
        for (limit, passes) in [(101, true), (100, false)] {
            let mut reader = FrameReader::new(frame.as_slice(), "them".into());
            reader.set_limit(limit);
            assert_eq!(reader.recv().await.is_ok(), passes);
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_times_out_and_the_connection_is_broken() {
        let (ours, _theirs) = tokio::io::duplex(100);
        let mut stream = FrameStream::new(ours, "them");
        stream.writer.set_timeout(Duration::from_millis(300));
        let start = Instant::now();
        let nonce = vec![1; 200];
        let error = stream.send(GENERATION, &Message::Proof { nonce }).await.unwrap_err();
        assert!(matches!(error, TransportError::WriteTimeout { .. }), "{error}");
        assert!((Duration::from_millis(300)..WRITE_TIMEOUT).contains(&start.elapsed()));
        let error = stream.send(GENERATION, &Message::Bye).await.unwrap_err();
        assert!(matches!(error, TransportError::Broken { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_cancelled_recv_loses_nothing_and_a_cancelled_send_breaks_the_connection() {
        let (ours, theirs) = tokio::io::duplex(20);
        let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
        let nonce = vec![7; 500];
        let proof = Message::Proof { nonce };
        let sender = tokio::spawn({
            let proof = proof.clone();
            async move {
                ours.send(GENERATION, &proof).await.unwrap();
                ours
            }
        });
        let received = loop {
            tokio::select! {
                biased;
                received = theirs.recv() => break received,
                () = tokio::task::yield_now() => {}
            }
        };
        assert_eq!(received.unwrap().1, proof);
        let mut ours = sender.await.unwrap();
        assert!(
            timeout(Duration::from_millis(1), ours.send(GENERATION, &proof))
                .await
                .is_err()
        );
        assert!(matches!(
            ours.send(GENERATION, &Message::Bye).await,
            Err(TransportError::Broken { .. })
        ));
    }

    #[tokio::test]
    async fn a_message_too_long_leaves_the_connection_usable() {
        let (ours, theirs) = tokio::io::duplex(1000);
        let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
        let reason = "x".repeat(crate::codec::MAX_PAYLOAD);
        let error = ours.send(GENERATION, &Message::Refuse { reason }).await.unwrap_err();
        assert!(matches!(error, TransportError::Encode { .. }), "{error}");
        ours.send(GENERATION, &Message::Bye).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap(), (GENERATION, Message::Bye));
    }

    #[tokio::test]
    async fn connecting_gives_up_after_the_stated_attempts() {
        let unused = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let backoff = Backoff {
            first: Duration::from_millis(1),
            most: Duration::from_millis(2),
            attempts: 3,
            each: Duration::from_secs(1),
        };
        let error = connect(&unused, backoff).await.unwrap_err().to_string();
        assert!(error.contains(&unused) && error.contains("tried 3 times"), "{error}");
    }
}
