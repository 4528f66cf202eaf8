//! A world that only writes down what is asked of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;

use ftvm_schema::entry::{ExitSeq, Generation, Incarnation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::{Health, Message};

use super::NOW;
use crate::backup::Backup;
use crate::clone::{Blocks, Selection};
use crate::disks::UnderWay;
use crate::disks::{DiskShell, Disks, DisksError};
use crate::event::Event;
use crate::following::FollowOrder;
use crate::host_event::HostEvent;
use crate::link::world::{BackupWorld, Call, ConnectionId, LinkEvent, PrimaryWorld, World};
use crate::operation::Answer;
use crate::primary::Primary;
use ftvm_machine::output::Output;

/// Something that was asked of a world.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Did {
    OpenDisks,
    ReserveDisks,
    Mark(u64),
    TakeOperations,
    TakeInputs,
    ListenForBackups,
    Accept(u64),
    Refuse(u64),
    Send(u64, &'static str),
    Close(u64),
    Heartbeat,
    Tell(HostEvent),
    LetOut(u64),
    Entropy,
    Claim(u64),
    Report(Event),
    Arm(u64),
    Disarm,
    Start(u8, u64),
    FinishPrivate(Vec<u64>),
    GiveDisksBack,
    NoteEnd,
    Order(&'static str),
}

pub(super) type Log = Rc<RefCell<Vec<Did>>>;

/// Hands that write down what they are told; their writes never end by themselves.
#[derive(Debug)]
pub(super) struct Hands {
    pub log: Log,
    pub writes: usize,
    pub under_way: Vec<UnderWay>,
}

impl DiskShell for Hands {
    type Error = Infallible;

    fn write_begins(&mut self) {
        self.writes += 1;
    }

    fn writes(&self) -> usize {
        self.writes
    }

    fn write_given_up(&mut self) -> Result<(), Infallible> {
        self.writes -= 1;
        Ok(())
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), Infallible> {
        if self.writes > 0 {
            self.log.borrow_mut().push(Did::Arm(deadline_ns));
        }
        Ok(())
    }

    fn disarm(&mut self) -> Result<(), Infallible> {
        self.log.borrow_mut().push(Did::Disarm);
        Ok(())
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), Infallible> {
        self.log.borrow_mut().push(Did::Start(request.disk, request.id));
        Ok(())
    }

    fn under_way(&self) -> Vec<UnderWay> {
        self.under_way.clone()
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RecorderError {
    #[error(transparent)]
    Disks(#[from] DisksError<Infallible>),
    #[error("this is to fail")]
    Wanted,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Recorder {
    pub log: Log,
    pub now: Cell<u64>,
    /// Events that have come already.
    pub waiting: VecDeque<LinkEvent>,
    /// What comes of an output's system call, and how long it takes if it is over at once.
    pub call: (Call, u64),
    pub private: Vec<u8>,
    /// What fails when it is asked for.
    pub fails: Option<Did>,
}

impl Recorder {
    pub fn new() -> Self {
        Recorder {
            log: Log::default(),
            now: Cell::new(NOW),
            waiting: VecDeque::new(),
            call: (Call::Over, 0),
            private: Vec::new(),
            fails: None,
        }
    }

    fn did(&self, what: Did) {
        self.log.borrow_mut().push(what);
    }

    fn tried(&self, what: Did) -> Result<(), RecorderError> {
        let fails = self.fails.as_ref() == Some(&what);
        self.did(what);
        if fails { Err(RecorderError::Wanted) } else { Ok(()) }
    }

    /// What was asked for since this was last called, without what `leaves_out` names.
    pub fn taken(&self, leaves_out: impl Fn(&Did) -> bool) -> Vec<Did> {
        let mut taken = std::mem::take(&mut *self.log.borrow_mut());
        taken.retain(|did| !leaves_out(did));
        taken
    }

    /// The same without events.
    pub fn deeds(&self) -> Vec<Did> {
        self.taken(|did| matches!(did, Did::Report(_)))
    }

    pub fn later(&self, ns: u64) {
        self.now.set(self.now.get() + ns);
    }
}

impl World for Recorder {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        self.waiting.pop_front()
    }

    fn send(&mut self, connection: ConnectionId, _generation: Generation, message: Message) {
        self.did(Did::Send(connection.0, message.name()));
    }

    fn close(&mut self, connection: ConnectionId) {
        self.did(Did::Close(connection.0));
    }

    fn heartbeat(&mut self, _generation: Generation) -> Option<u64> {
        self.did(Did::Heartbeat);
        Some(self.now.get())
    }

    fn claim(&mut self, of: Generation, _owner: Incarnation) {
        self.did(Did::Claim(of.0));
    }

    fn report(&mut self, event: Event) {
        self.did(Did::Report(event));
    }
}

impl PrimaryWorld for Recorder {
    type Hands = Hands;
    type Error = RecorderError;

    fn open_disks(&mut self) -> Result<Disks<Hands>, RecorderError> {
        self.did(Did::OpenDisks);
        let hands = Hands {
            log: Rc::clone(&self.log),
            writes: 0,
            under_way: Vec::new(),
        };
        Ok(Disks::new(hands, 2).with_private(self.private.clone()))
    }

    fn reserve_disks(&mut self) {
        self.did(Did::ReserveDisks);
    }

    fn mark_current(&mut self, generation: Generation) -> Result<(), RecorderError> {
        self.tried(Did::Mark(generation.0))
    }

    fn take_operations(&mut self, _core: &Primary) {
        self.did(Did::TakeOperations);
    }

    fn take_inputs(&mut self) -> Result<(), RecorderError> {
        self.tried(Did::TakeInputs)
    }

    fn listen_for_backups(&mut self) -> Result<(), RecorderError> {
        self.tried(Did::ListenForBackups)
    }

    fn accept(&mut self, connection: ConnectionId) {
        self.did(Did::Accept(connection.0));
    }

    fn refuse(&mut self, connection: ConnectionId) {
        self.did(Did::Refuse(connection.0));
    }

    fn offer(&mut self, _generation: Generation, _may_join: bool) {}

    fn queued(&self, _connection: ConnectionId) -> usize {
        0
    }

    fn logged(&self, _connection: ConnectionId) -> u64 {
        0
    }

    fn send_pages(&mut self, _: ConnectionId, _: Generation, _: Incarnation, _: Selection) {}

    fn send_blocks(&mut self, _: ConnectionId, _: Generation, _: Incarnation, _: Blocks) {}

    fn blocks_written(&mut self, _by: Incarnation, _messages: u64) {}

    fn copying(&mut self) -> Option<Event> {
        None
    }

    fn tell(&mut self, event: HostEvent) -> Result<(), RecorderError> {
        self.tried(Did::Tell(event))
    }

    fn pace(&mut self, _idle_permille: u32) {}

    fn stop_logging(&mut self) {}

    fn want_entropy(&mut self, _len: u32) -> Result<(), RecorderError> {
        self.tried(Did::Entropy)
    }

    fn release(&mut self, output: &Output) -> Result<Call, RecorderError> {
        self.did(Did::LetOut(output.seq.0));
        if self.call.0 == Call::Over {
            self.later(self.call.1);
        }
        Ok(self.call.0)
    }

    fn announce(&mut self) {}

    fn answer(&mut self, _ticket: u64, _answer: Answer) {}

    fn show(&mut self, _core: &Primary, _logged_to: ExitSeq, _log_bytes_per_second: Option<u64>) {}

    fn die(&mut self) {}

    fn finish_private(&mut self, unfinished: Vec<DiskRequest>, _hands: Hands) -> Result<(), RecorderError> {
        let ids = unfinished.iter().map(|request| request.id).collect();
        self.tried(Did::FinishPrivate(ids))
    }

    fn give_disks_back(&mut self) {
        self.did(Did::GiveDisksBack);
    }

    fn note_end(&mut self) {
        self.did(Did::NoteEnd);
    }
}

impl BackupWorld for Recorder {
    fn order(&mut self, order: FollowOrder) {
        self.did(Did::Order(match order {
            FollowOrder::Pages { .. } => "pages",
            FollowOrder::Blocks { .. } => "blocks",
            FollowOrder::FlushBlocks => "flush",
            FollowOrder::Load(_) => "load",
            FollowOrder::Entries(_) => "entries",
            FollowOrder::Drain => "drain",
        }));
    }

    fn keep_boot(&mut self, _record: Vec<u8>) {}

    fn silent_health(&mut self) -> Option<Health> {
        None
    }

    fn show(&mut self, _core: &Backup) {}
}
