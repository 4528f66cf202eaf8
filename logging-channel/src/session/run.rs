//! Driving the handshake over connections, each step within a bound.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::{Candidate, JoinClient, JoinServer, MAX_NONCE_BYTES, Offer, ServerStep, SessionError};
use crate::codec::MAX_PAYLOAD;
use crate::message::{Message, Welcome};
use crate::transport::{FrameStream, TcpFrames, WRITE_TIMEOUT};
use ftvm_schema::entry::Generation;

/// The longest payload of a handshake frame, in bytes: a configuration, with room to spare.
pub const HANDSHAKE_LIMIT: usize = 1 << 20;

/// How long a handshake may take, unless said otherwise: a few round trips and one read of a small file over NFS.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most handshakes at a time; when another peer comes, the oldest is dropped.
pub const MAX_HANDSHAKES: usize = 8;

/// Pause after a connection could not be accepted (no file descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a refusal may take to leave: the peer may well be one that does not read.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the primary's side over one connection.
///
/// # Errors
/// The peer does not pass, or not within `limit`; it has been told why, if it listens.
pub async fn serve_join<R, W>(
    stream: &mut FrameStream<R, W>,
    mut server: JoinServer,
    limit: Duration,
) -> Result<Candidate, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    stream.reader.set_limit(HANDSHAKE_LIMIT);
    let generation = server.generation();
    let handshake = async {
        loop {
            let (_, message) = stream.recv().await?;
            match server.on_message(message)? {
                ServerStep::Send(answer) => stream.send(generation, &answer).await?,
                ServerStep::Accepted(candidate) => return Ok(candidate),
            }
        }
    };
    let result = bounded(limit, "the backup did not complete the handshake", handshake).await;
    conclude(stream, generation, result).await
}

/// Runs the backup's side over one connection, up to its proof. `prove` looks at the terms and reads the nonce file
/// (at most [`MAX_NONCE_BYTES`] bytes); what it complains about, the primary is told.
///
/// Whether the primary accepts the proof shows with its next message: what comes first of the state, or a `Refuse`.
///
/// # Errors
/// The primary cannot be joined, refuses, or did not answer within `limit`.
pub async fn join<R, W, E>(
    stream: &mut FrameStream<R, W>,
    mut client: JoinClient,
    limit: Duration,
    prove: impl AsyncFnOnce(&Welcome) -> Result<Vec<u8>, E>,
) -> Result<Welcome, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    stream.reader.set_limit(HANDSHAKE_LIMIT);
    let handshake = async {
        stream.send(Generation(0), &client.hello()).await?;
        let (_, message) = stream.recv().await?;
        let welcome = client.on_message(message)?;
        let nonce = prove(&welcome)
            .await
            .map_err(|error| SessionError::Unacceptable(error.into()))?;
        if nonce.len() > MAX_NONCE_BYTES {
            return Err(SessionError::WrongNonce {
                name: welcome.nonce_name,
            });
        }
        stream.send(welcome.generation, &Message::Proof { nonce }).await?;
        Ok(welcome)
    };
    let result = bounded(limit, "the primary did not complete the handshake", handshake).await;
    conclude(stream, Generation(0), result).await
}

/// Waits for a backup to join: accepts connections and runs their handshakes side by side, at most
/// [`MAX_HANDSHAKES`], each within `limit`. Whoever fails is refused and logged; whoever else is in the middle when one
/// succeeds is dropped. `offer` is asked anew for each connection: the nonce should be fresh.
pub async fn accept_backup(
    listener: &TcpListener,
    limit: Duration,
    mut offer: impl FnMut() -> Offer,
) -> (TcpFrames, Candidate) {
    let mut handshakes = JoinSet::new();
    let mut running: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.map(|(stream, _)| TcpFrames::tcp(stream)) {
                Ok(Ok(stream)) => {
                    running.retain(|handshake| !handshake.is_finished());
                    if running.len() == MAX_HANDSHAKES && let Some(oldest) = running.pop_front() {
                        oldest.abort();
                    }
                    running.push_back(handshakes.spawn(attempt(stream, JoinServer::new(offer()), limit)));
                }
                Ok(Err(error)) => tracing::debug!(%error, "a peer went away at once"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = handshakes.join_next() => match ended {
                Ok(Ok(joined)) => return joined,
                Ok(Err((peer, error @ SessionError::NotItsTurn { .. }))) => tracing::debug!(peer, %error, "a standby waits"),
                Ok(Err((peer, error))) => tracing::warn!(peer, %error, "a peer was not taken as backup"),
                Err(error) => tracing::debug!(%error, "a handshake was dropped for a newer one"),
            },
        }
    }
}

async fn attempt(
    mut stream: TcpFrames,
    server: JoinServer,
    limit: Duration,
) -> Result<(TcpFrames, Candidate), (String, SessionError)> {
    match serve_join(&mut stream, server, limit).await {
        Ok(candidate) => Ok((stream, candidate)),
        Err(error) => Err((stream.peer().to_owned(), error)),
    }
}

async fn bounded<T>(
    after: Duration,
    what: &'static str,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    timeout(after, step)
        .await
        .unwrap_or(Err(SessionError::TimedOut { what, after }))
}

/// Lifts the limit on success; on failure tells the other side why.
async fn conclude<T, R, W>(
    stream: &mut FrameStream<R, W>,
    generation: Generation,
    result: Result<T, SessionError>,
) -> Result<T, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match &result {
        Ok(_) => stream.reader.set_limit(MAX_PAYLOAD),
        Err(error) => {
            if let Some(refusal) = error.refusal() {
                stream.writer.set_timeout(REFUSAL_TIMEOUT);
                if let Err(error) = stream.send(generation, &refusal).await {
                    tracing::debug!(%error, "the other side could not be told");
                }
                stream.writer.set_timeout(WRITE_TIMEOUT);
            }
        }
    }
    result
}
