//! What a link needs from outside. Production has sockets, threads, disks and an arbiter behind it, the simulator has
//! simulated ones; nothing of what a link decides is behind it.

use ftvm_schema::entry::{ExitSeq, Generation, Incarnation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::{Health, Message};
use shared_disk::arbiter::ClaimOutcome;

use super::super::backup::Backup;
use super::super::clone::{Blocks, Selection};
use super::super::disks::{DiskShell, Disks, DisksError};
use super::super::event::Event;
use super::super::following::FollowOrder;
use super::super::operation::Answer;
use super::super::primary::Primary;
use crate::host_event::HostEvent;
use ftvm_machine::output::Output;

/// A connection of this process. The world gives each number out once, so what an old connection still says is never
/// taken for a word of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Something that has happened to a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// A backup has passed the handshake and waits for the answer: [`PrimaryWorld::accept`] or
    /// [`PrimaryWorld::refuse`].
    Joined {
        connection: ConnectionId,
        backup: Incarnation,
    },
    /// The peer says something under a generation.
    Message {
        connection: ConnectionId,
        generation: Generation,
        message: Message,
    },
    /// The connection is gone.
    Closed { connection: ConnectionId, why: String },
    /// The pages of a [`PrimaryWorld::send_pages`] are on their way.
    PagesSent { to: Incarnation, pages: u64, bytes: u64 },
    /// The blocks of a [`PrimaryWorld::send_blocks`] have been written by the backup: so many bytes of its disks.
    BlocksSent { to: Incarnation, bytes: u64 },
    /// The storage has answered a [`World::claim`].
    Claimed(ClaimOutcome),
    /// The storage does not answer, or not usefully; it is asked again.
    StorageSilent(String),
}

/// What both sides need.
pub trait World {
    /// CLOCK_BOOTTIME in nanoseconds.
    fn now_ns(&self) -> u64;
    /// The oldest event of the link that has come and has not been handled yet, if there is one; does not wait.
    fn next_event(&mut self) -> Option<LinkEvent>;
    /// Sends a message, after those sent before. If the connection is gone, an event says so.
    fn send(&mut self, connection: ConnectionId, generation: Generation, message: Message);
    /// Closes a connection after what has been sent.
    fn close(&mut self, connection: ConnectionId);
    /// Sends a heartbeat under a generation, if there is anybody to send it to: its send time.
    fn heartbeat(&mut self, generation: Generation) -> Option<u64>;
    /// Asks the storage for the generation after `of`, whose owner is `owner`, until it answers ([`LinkEvent::Claimed`]).
    fn claim(&mut self, of: Generation, owner: Incarnation);
    /// Publishes what has happened.
    fn report(&mut self, event: Event);
}

/// Whether the system call of an output is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Over,
    /// It takes its time, and until [`PrimaryLink::call_over`](super::primary::PrimaryLink::call_over) the link does
    /// nothing else.
    UnderWay,
}

/// What a primary needs.
pub trait PrimaryWorld: World {
    /// What touches the disks, and the timer that ends this process with its lease.
    type Hands: DiskShell;
    /// Something of this host fails so that the guest cannot go on here.
    type Error: std::error::Error + From<DisksError<<Self::Hands as DiskShell>::Error>>;

    // The beginning, in this order.

    /// Opens the disks: only a side that is live has them open (PROTOCOL 8).
    ///
    /// # Errors
    /// One cannot be opened.
    fn open_disks(&mut self) -> Result<Disks<Self::Hands>, Self::Error>;
    /// Has the devices themselves refuse every other host's writes (PROTOCOL 14). That may take a while: the shell says when
    /// it is done ([`PrimaryLink::disks_reserved`](super::primary::PrimaryLink::disks_reserved)), and until then nothing is
    /// written.
    fn reserve_disks(&mut self);
    /// Notes in the disk marks that this host's copies of the private disks are the newest, under this generation, which this
    /// side owns.
    ///
    /// # Errors
    /// That cannot be noted beside them.
    fn mark_current(&mut self, generation: Generation) -> Result<(), Self::Error>;
    /// Clients see a primary from now on, and their operations are taken.
    fn take_operations(&mut self, core: &Primary);
    /// Inbound frames, those kept meanwhile first, typed bytes and signals reach the guest from now on.
    ///
    /// # Errors
    /// One cannot be listened to.
    fn take_inputs(&mut self) -> Result<(), Self::Error>;
    /// Backups may join from now on, if [`PrimaryWorld::offer`] says so.
    ///
    /// # Errors
    /// There is no place for them to join at.
    fn listen_for_backups(&mut self) -> Result<(), Self::Error>;

    // The link.

    /// Takes the backup that has joined.
    fn accept(&mut self, connection: ConnectionId);
    /// Sends it away.
    fn refuse(&mut self, connection: ConnectionId);
    /// Whether a backup may join now, and under which generation.
    fn offer(&mut self, generation: Generation, may_join: bool);
    /// Bytes that wait to be written to a connection.
    fn queued(&self, connection: ConnectionId) -> usize;
    /// Bytes of log frames that the kernel has taken on a connection.
    fn logged(&self, connection: ConnectionId) -> u64;
    /// Starts sending pages to the backup `to`; [`LinkEvent::PagesSent`] ends it, or the end of the connection.
    fn send_pages(&mut self, connection: ConnectionId, generation: Generation, to: Incarnation, pages: Selection);
    /// Starts sending blocks of the private disks; [`LinkEvent::BlocksSent`] ends it, or the end of the connection.
    fn send_blocks(&mut self, connection: ConnectionId, generation: Generation, to: Incarnation, blocks: Blocks);
    /// The backup `by` has carried out so many messages about blocks.
    fn blocks_written(&mut self, by: Incarnation, messages: u64);
    /// How far the pages or blocks are that are being sent.
    fn copying(&mut self) -> Option<Event>;

    // The guest and the outside.

    /// Something for the vCPU thread to look at, at its next exit.
    ///
    /// # Errors
    /// The thread is gone.
    fn tell(&mut self, event: HostEvent) -> Result<(), Self::Error>;
    /// The guest is to stand still for so many thousandths of the time.
    fn pace(&mut self, idle_permille: u32);
    /// Nobody reads the log any more.
    fn stop_logging(&mut self);
    /// The guest asks for so many random bytes; the vCPU thread gets them.
    ///
    /// # Errors
    /// The host has none, or the thread is gone.
    fn want_entropy(&mut self, len: u32) -> Result<(), Self::Error>;
    /// Lets an output go whose turn has come. That of a frame or of console bytes is one system call; a disk request only
    /// leaves its plan, which the link does itself, and there is no call.
    ///
    /// # Errors
    /// The outside cannot take it for good, as a file on a full disk.
    fn release(&mut self, output: &Output) -> Result<Call, Self::Error>;
    /// Tells the switches where the guest is now (PROTOCOL 22).
    fn announce(&mut self);

    // Operators.

    /// An operation has come to its end.
    fn answer(&mut self, ticket: u64, answer: Answer);
    /// What clients see has changed; the log reaches `logged_to`, and its last second had so many bytes, if that is new.
    fn show(&mut self, core: &Primary, logged_to: ExitSeq, log_bytes_per_second: Option<u64>);
    /// Kills this process at once, and without a word to its backup.
    fn die(&mut self);

    // The end of the guest's life.

    /// Carries out on the private disks what the guest asked for and was not told of, once what `hands` are at has landed,
    /// and makes it stable.
    ///
    /// # Errors
    /// A disk fails: the copies may differ.
    fn finish_private(&mut self, unfinished: Vec<DiskRequest>, hands: Self::Hands) -> Result<(), Self::Error>;
    /// This host's disks are free for others to write.
    fn give_disks_back(&mut self);
    /// Notes on the storage that the guest has ended here (PROTOCOL 18).
    fn note_end(&mut self);
}

/// What a backup needs.
pub trait BackupWorld: World {
    /// An order to the vCPU thread, carried out in their order; each is answered once.
    fn order(&mut self, order: FollowOrder);
    /// Keeps the state from which a reset starts.
    fn keep_boot(&mut self, record: Vec<u8>);
    /// What the primary must be told of this host if its own look at disks and cards has not come back in time.
    fn silent_health(&mut self) -> Option<Health>;
    /// What clients see has changed.
    fn show(&mut self, core: &Backup);
}
