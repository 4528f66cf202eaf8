//! What the shells of both links have: the channel of what happens, the connection, heartbeats, the arbiter and the
//! reporter.

use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::clock::boottime_ns;
use logging_channel::message::Message;
use shared_disk::arbiter::Arbiter;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::events::Reporter;
use crate::link::connection::{Connection, claim, link_events};
use crate::link::heartbeats::Heartbeats;
use ftvm_roles::event::Event;
use ftvm_roles::link::world::{ConnectionId, LinkEvent, World};

/// How long the last messages to the other side may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A link's shell, with what its `side` of the pair has besides.
#[derive(Debug)]
pub(crate) struct Shell<S> {
    /// This side.
    pub me: Incarnation,
    pub reporter: Reporter,
    pub arbiter: Arc<dyn Arbiter>,
    /// Sent with every tick: a side that has gone live goes on with those that it sent as a backup.
    pub heartbeats: Vec<Heartbeats>,
    /// Where whoever has something to tell the link says so.
    pub link: mpsc::Sender<LinkEvent>,
    pub events: mpsc::Receiver<LinkEvent>,
    pub connection: Option<Connection>,
    /// Connections whose last messages are leaving.
    closing: JoinSet<()>,
    pub side: S,
}

impl<S> Shell<S> {
    pub(crate) fn new(me: Incarnation, reporter: Reporter, arbiter: Arc<dyn Arbiter>, side: S) -> Self {
        let (link, events) = link_events();
        Shell {
            me,
            reporter,
            arbiter,
            heartbeats: Vec::new(),
            link,
            events,
            connection: None,
            closing: JoinSet::new(),
            side,
        }
    }

    /// The connection, if it is that one.
    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connection.as_ref().filter(|connection| connection.id() == id)
    }

    /// Waits until the last messages have left, or cannot.
    pub(crate) async fn last_words(&mut self) {
        while self.closing.join_next().await.is_some() {}
    }
}

impl<S> World for Shell<S> {
    fn now_ns(&self) -> u64 {
        boottime_ns()
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        self.events.try_recv().ok()
    }

    fn send(&mut self, connection: ConnectionId, generation: Generation, message: Message) {
        if let Some(connection) = self.connection(connection) {
            connection.send(generation, message);
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        while self.closing.try_join_next().is_some() {}
        if let Some(connection) = self.connection.take_if(|open| open.id() == connection) {
            self.closing.spawn(connection.close(LAST_WORDS));
        }
    }

    fn heartbeat(&mut self, generation: Generation) -> Option<u64> {
        let sent = self.heartbeats.iter_mut().filter_map(|side| side.send(generation));
        sent.max()
    }

    fn claim(&mut self, of: Generation, owner: Incarnation) {
        claim(&self.arbiter, of, owner, self.me, self.link.clone());
    }

    fn report(&mut self, event: Event) {
        self.reporter.report(event);
    }
}
