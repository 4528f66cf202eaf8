//! Connections, heartbeats and the storage, as tasks that turn what happens into [`LinkEvent`]s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::codec::data_bytes;
use logging_channel::message::Message;
use logging_channel::transport::{FrameReader, FrameWriter, TcpFrames};
use shared_disk::arbiter::{Arbiter, ArbiterError, Claimant};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use ftvm_roles::link::world::{ConnectionId, LinkEvent};

/// Messages read and not yet looked at; above it the socket is not read.
const INBOUND: usize = 64;

/// How long one try of the test-and-set is waited for before the user is told.
const CLAIM_TRY: Duration = Duration::from_secs(1);

/// Pause between tries that were answered with an error.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

/// A number for a connection that no other connection of this process has had.
#[must_use]
pub fn connection_id() -> ConnectionId {
    static GIVEN_OUT: AtomicU64 = AtomicU64::new(0);
    ConnectionId(GIVEN_OUT.fetch_add(1, Ordering::Relaxed))
}

/// A connection with its two tasks; dropping it closes it, after what was sent has left.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    outbound: mpsc::UnboundedSender<(Generation, Message)>,
    queued: Arc<AtomicUsize>,
    logged: Arc<AtomicU64>,
    reader: JoinHandle<()>,
    writer: Option<JoinHandle<()>>,
}

impl Connection {
    /// Starts the tasks; what the peer says arrives at `events`.
    #[must_use]
    pub fn start(id: ConnectionId, frames: TcpFrames, events: &mpsc::Sender<LinkEvent>) -> Self {
        let (reader, writer) = frames.into_split();
        let (outbound, messages) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let logged = Arc::new(AtomicU64::new(0));
        let writing = write(
            id,
            writer,
            messages,
            Arc::clone(&queued),
            Arc::clone(&logged),
            events.clone(),
        );
        Connection {
            id,
            outbound,
            queued,
            logged,
            reader: tokio::spawn(read(id, reader, events.clone())),
            writer: Some(tokio::spawn(writing)),
        }
    }

    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Queues a message. If the connection is gone, its reader says so.
    pub fn send(&self, generation: Generation, message: Message) {
        self.queued.fetch_add(weight(&message), Ordering::AcqRel);
        let _ = self.outbound.send((generation, message));
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    /// For those who send pages beside the link task.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox {
            outbound: self.outbound.downgrade(),
            queued: Arc::clone(&self.queued),
        }
    }

    /// Bytes of log frames that the kernel has taken.
    #[must_use]
    pub fn logged(&self) -> u64 {
        self.logged.load(Ordering::Acquire)
    }

    /// Closes after what was queued has left, waiting for that at most `limit`.
    pub async fn close(mut self, limit: Duration) {
        let Some(writer) = self.writer.take() else { return };
        let (gone, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut self.outbound, gone));
        if tokio::time::timeout(limit, writer).await.is_err() {
            tracing::debug!("the peer did not take the last messages");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A way to a connection for as long as it stands.
#[derive(Clone, Debug)]
pub struct Outbox {
    outbound: mpsc::WeakUnboundedSender<(Generation, Message)>,
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    /// Queues a message; false if the connection is gone.
    #[must_use]
    pub fn send(&self, generation: Generation, message: Message) -> bool {
        let Some(outbound) = self.outbound.upgrade() else {
            return false;
        };
        self.queued.fetch_add(weight(&message), Ordering::AcqRel);
        outbound.send((generation, message)).is_ok()
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    /// Whether the connection still stands, as far as its owner knows.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.outbound.upgrade().is_some_and(|outbound| !outbound.is_closed())
    }
}

/// The channel for [`LinkEvent`]s.
#[must_use]
pub fn link_events() -> (mpsc::Sender<LinkEvent>, mpsc::Receiver<LinkEvent>) {
    mpsc::channel(INBOUND)
}

fn weight(message: &Message) -> usize {
    let payload = match message {
        Message::State(chunk) | Message::Boot(chunk) => chunk.bytes.len(),
        Message::Pages { content, .. } | Message::Blocks { content, .. } => content.len(),
        Message::Log { entries, .. } => entries.iter().map(data_bytes).sum(),
        _ => 0,
    };
    payload + size_of::<Message>()
}

async fn read(connection: ConnectionId, mut reader: FrameReader<OwnedReadHalf>, events: mpsc::Sender<LinkEvent>) {
    loop {
        match reader.recv().await {
            Ok((generation, message)) => {
                let event = LinkEvent::Message {
                    connection,
                    generation,
                    message,
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let why = error.to_string();
                let _ = events.send(LinkEvent::Closed { connection, why }).await;
                return;
            }
        }
    }
}

async fn write(
    connection: ConnectionId,
    mut writer: FrameWriter<OwnedWriteHalf>,
    mut messages: mpsc::UnboundedReceiver<(Generation, Message)>,
    queued: Arc<AtomicUsize>,
    logged: Arc<AtomicU64>,
    events: mpsc::Sender<LinkEvent>,
) {
    while let Some((generation, message)) = messages.recv().await {
        let sent = writer.send(generation, &message).await;
        queued.fetch_sub(weight(&message), Ordering::AcqRel);
        match sent {
            Ok(bytes) if matches!(message, Message::Log { .. }) => {
                logged.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::AcqRel);
            }
            Ok(_) => {}
            Err(error) => {
                let why = error.to_string();
                let _ = events.send(LinkEvent::Closed { connection, why }).await;
                return;
            }
        }
    }
    if let Err(error) = writer.shutdown().await {
        tracing::debug!("closing the connection: {error}");
    }
}

/// Asks for the generation after `generation` until there is an answer (PROTOCOL 19: storage unreachable means wait).
pub fn claim(
    arbiter: &Arc<dyn Arbiter>,
    generation: Generation,
    owner: Incarnation,
    me: Incarnation,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut claimant = Claimant::new(Arc::clone(arbiter) as Arc<_>, generation.0, owner.0, me.0);
    tokio::task::spawn_blocking(move || {
        loop {
            let event = match claimant.claim_with_timeout(CLAIM_TRY) {
                Ok(outcome) => LinkEvent::Claimed(outcome),
                Err(ArbiterError::Unreachable { cause }) => LinkEvent::StorageSilent(cause.to_string()),
                Err(error) => LinkEvent::StorageSilent(error.to_string()),
            };
            let answered = matches!(event, LinkEvent::Claimed(_));
            if events.blocking_send(event).is_err() || answered {
                return;
            }
            std::thread::sleep(CLAIM_PAUSE);
        }
    });
}
