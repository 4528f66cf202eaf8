//! The primary's shell: tokio, the devices of this host and its threads behind the world of a primary's link
//! (`roles::link::primary`), which decides everything. A backup that has gone live runs in the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ftvm_schema::entry::{ExitSeq, Generation, Incarnation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::Heartbeat;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_disk::arbiter::ArbiterError;
use shared_disk::scsi::ScsiError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::control::{Desk, Order, Role};
use crate::link::connection::Connection;
use crate::link::listening::Listener;
use crate::link::pages::PageSource;
use crate::link::shell::Shell;
use crate::link::vcpu::GuestStream;
use crate::outside::disk_threads::DiskThreads;
use crate::outside::disks::DiskLost;
use crate::outside::probe::Probe;
use crate::outside::{Outside, OutsideError};
use crate::signals::watch_signals;
use ftvm_host::queue::EventSender;
use ftvm_host::reservations::Reservations;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::Output;
use ftvm_roles::clone::{Blocks, Selection};
use ftvm_roles::disks::Disks;
use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::link::ending::Ended;
use ftvm_roles::link::guest::Reins;
use ftvm_roles::link::primary::{ANNOUNCE_EVERY, PrimaryEvent, PrimaryLink, SECOND};
use ftvm_roles::link::world::{Call, ConnectionId, PrimaryWorld};
use ftvm_roles::operation::Answer;
use ftvm_roles::primary::Primary;
use ftvm_roles::terms::Terms;

/// How long an answer may take to its client before this process kills itself, or ends.
const LAST_ANSWER: Duration = Duration::from_millis(50);

/// How long noting the guest's clean end may take. Nobody waits for it but this process, and without it the guest cannot be
/// started again before `ftvm disown`.
const END_NOTED: Duration = Duration::from_secs(10);

/// What a primary has on this host.
#[derive(Debug)]
pub(crate) struct PrimarySide {
    pub terms: Terms,
    pub outside: Outside,
    /// To the vCPU thread.
    pub events: EventSender,
    pub reins: Reins,
    pub listener: Listener,
    pub macs: Vec<[u8; 6]>,
    pub pages: PageSource,
    pub desk: Desk,
    pub pending: Pending,
}

/// What is under way between a primary and others.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Operators' orders, once they are taken.
    orders: Option<mpsc::Receiver<Order>>,
    /// Operators who wait for an answer.
    clients: BTreeMap<u64, oneshot::Sender<Answer>>,
    next_ticket: u64,
    /// The disks' devices are being asked to refuse other hosts.
    reserving: Option<JoinHandle<(Reservations, Result<(), ScsiError>)>>,
    /// The guest's end is being noted.
    noting: Option<JoinHandle<Result<(), ArbiterError>>>,
}

/// What a primary hears besides.
#[derive(Debug)]
pub(crate) struct Hears {
    pub guest: GuestStream,
    pub heartbeats: mpsc::Receiver<Heartbeat>,
    pub probe: Probe,
}

/// The primary's shell.
pub(crate) type PrimaryShell = Shell<PrimarySide>;

/// A primary begins here, where the guest is started as where it goes live.
///
/// # Errors
/// If this host's devices fail.
pub(crate) async fn begin(
    shell: &mut PrimaryShell,
    boot: BootCell,
    beginning: Beginning,
) -> Result<PrimaryLink<DiskThreads>, OutsideError> {
    let mut link = PrimaryLink::begin(shell.side.terms, boot, beginning, shell)?;
    if let Some(reserving) = shell.side.pending.reserving.take() {
        shell.side.outside.disks.reserved(reserving).await?;
    }
    link.fenced(shell)?;
    Ok(link)
}

/// Leads until this process is to end; the exit code.
///
/// # Errors
/// If this host's devices fail.
pub(crate) async fn lead(
    mut shell: PrimaryShell,
    mut link: PrimaryLink<DiskThreads>,
    mut hears: Hears,
) -> Result<ExitCode, OutsideError> {
    let mut lost = shell.side.outside.disks.losses();
    let superseded = shell.side.outside.disks.superseded();
    let mut orders = shell.side.pending.orders.take().unwrap_or_else(|| mpsc::channel(1).1);
    let mut tick = interval(shell.side.terms.detection() / 8);
    let mut second = interval(SECOND);
    let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
    while link.over().is_none() {
        let takes_more = link.takes_more(&shell);
        let event = tokio::select! {
            Some(event) = shell.events.recv() => PrimaryEvent::Link(event),
            message = hears.guest.next(), if takes_more => message.map_or(PrimaryEvent::GuestGone, PrimaryEvent::Guest),
            Some(heartbeat) = hears.heartbeats.recv() => PrimaryEvent::Heartbeat(heartbeat),
            Some(order) = orders.recv() => shell.side.pending.client(order),
            Some(DiskLost { disk, what, failure }) = lost.recv() => PrimaryEvent::DiskLost { disk, what, failure },
            Some(health) = hears.probe.next() => PrimaryEvent::Health(health),
            _ = tick.tick() => PrimaryEvent::Tick,
            _ = second.tick() => PrimaryEvent::Second,
            () = superseded.noticed() => PrimaryEvent::Superseded,
            _ = announce.tick(), if link.announces() => PrimaryEvent::Announce,
        };
        link.step(event, &mut shell)?;
    }
    Ok(end(shell, link).await)
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

async fn end(mut shell: PrimaryShell, mut link: PrimaryLink<DiskThreads>) -> ExitCode {
    link.leave(&mut shell);
    shell.last_words().await;
    let Ended { code, why, hands } = link.end(&mut shell);
    if let Some(noting) = shell.side.pending.noting.take() {
        match tokio::time::timeout(END_NOTED, noting).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!("the guest's end could not be noted: {error}"),
            _ => tracing::warn!("the guest's end could not be noted: the shared storage does not answer"),
        }
    }
    shell.reporter.report(Event::Ending { code, why });
    tokio::time::sleep(LAST_ANSWER).await;
    drop(hands);
    code
}

impl Pending {
    /// An operator waits from now on.
    fn client(&mut self, order: Order) -> PrimaryEvent {
        self.next_ticket += 1;
        self.clients.insert(self.next_ticket, order.answer);
        PrimaryEvent::Operate {
            ticket: self.next_ticket,
            operation: order.operation,
        }
    }
}

impl PrimaryWorld for PrimaryShell {
    type Hands = DiskThreads;
    type Error = OutsideError;

    fn open_disks(&mut self) -> Result<Disks<DiskThreads>, OutsideError> {
        Ok(self.side.outside.disks.take()?)
    }

    fn fence(&mut self) {
        self.side.pending.reserving = Some(self.side.outside.disks.reserve(self.me.0));
    }

    fn mark_current(&mut self, generation: Generation) -> Result<(), OutsideError> {
        Ok(self.side.outside.disks.mark_current(generation.0, self.me.0)?)
    }

    fn take_operations(&mut self, core: &Primary) {
        self.side.pending.orders = Some(self.side.desk.leads(core.generation(), core.paused()));
    }

    fn take_inputs(&mut self) -> Result<(), OutsideError> {
        self.side.outside.forward_frames();
        self.side.outside.listen()?;
        watch_signals(&self.side.events, None).map_err(OutsideError::Signals)
    }

    fn open_door(&mut self) -> Result<(), OutsideError> {
        let own = self.side.listener.open(&self.side.terms, &self.link)?;
        self.heartbeats.extend(own);
        Ok(())
    }

    fn accept(&mut self, connection: ConnectionId) {
        if let Some(arrived) = self.side.listener.lobby.leave(connection) {
            let (frames, placement) = (arrived.frames, arrived.candidate.placement);
            tracing::info!("a backup joins from {} ({placement:?})", frames.peer());
            self.connection = Some(Connection::start(connection, frames, &self.link));
        }
    }

    fn refuse(&mut self, connection: ConnectionId) {
        drop(self.side.listener.lobby.leave(connection));
    }

    fn offer(&mut self, generation: Generation, may_join: bool) {
        self.side.listener.offer(generation, may_join);
    }

    fn queued(&self, connection: ConnectionId) -> usize {
        self.connection(connection).map_or(0, Connection::queued)
    }

    fn logged(&self, connection: ConnectionId) -> u64 {
        self.connection(connection).map_or(0, Connection::logged)
    }

    fn send_pages(&mut self, connection: ConnectionId, generation: Generation, to: Incarnation, pages: Selection) {
        if let Some(outbox) = self.connection(connection).map(Connection::outbox) {
            self.side.pages.send(pages, to, generation, outbox, self.link.clone());
        }
    }

    fn send_blocks(&mut self, connection: ConnectionId, generation: Generation, to: Incarnation, blocks: Blocks) {
        if let Some(outbox) = self.connection(connection).map(Connection::outbox) {
            let source = self.side.outside.disks.blocks();
            source.send(blocks, to, generation, outbox, self.link.clone());
        }
    }

    fn blocks_written(&mut self, by: Incarnation, messages: u64) {
        self.side.outside.disks.blocks().confirmed(by, messages);
    }

    fn copying(&mut self) -> Option<Event> {
        let blocks = self.side.outside.disks.blocks().progress();
        blocks.or_else(|| self.side.pages.progress())
    }

    fn tell(&mut self, event: HostEvent) -> Result<(), OutsideError> {
        self.side.events.answer(event).map_err(|_| OutsideError::Gone)
    }

    fn pace(&mut self, idle_permille: u32) {
        self.side.reins.idle.store(idle_permille, Ordering::Relaxed);
    }

    fn stop_logging(&mut self) {
        self.side.reins.logging.store(false, Ordering::Release);
    }

    fn want_entropy(&mut self, len: u32) -> Result<(), OutsideError> {
        self.side.outside.want_entropy(len)
    }

    fn let_out(&mut self, output: &Output) -> Result<Call, OutsideError> {
        self.side.outside.emit(&output.emission).map(|_| Call::Over)
    }

    fn announce(&mut self) {
        self.side.outside.announce(&self.side.macs);
    }

    fn answer(&mut self, ticket: u64, answer: Answer) {
        if let Some(client) = self.side.pending.clients.remove(&ticket) {
            // A client that has gone does not want to know.
            let _ = client.send(answer);
        }
    }

    fn show(&mut self, core: &Primary, logged_to: ExitSeq, log_bytes_per_second: Option<u64>) {
        let cost = core.cost(logging_channel::clock::boottime_ns()).unwrap_or_default();
        self.side.desk.update(|status| {
            status.role = Role::Primary;
            status.generation = core.generation().0;
            status.why = core.unprotected();
            status.protected = status.why.is_none();
            status.paused = core.paused();
            status.execution_lag_ns = cost.lag_ns;
            status.slowed_permille = cost.idle_permille;
            status.exits = logged_to.0;
            status.checkpoints = cost.checkpoints;
            status.divergences = core.divergences();
            status.silent_disks = core.silent_disks().collect();
            status.log_bytes_per_second = log_bytes_per_second.unwrap_or(status.log_bytes_per_second);
        });
    }

    fn die(&mut self) {
        std::thread::spawn(|| {
            std::thread::sleep(LAST_ANSWER);
            let _ = kill(Pid::this(), Signal::SIGKILL);
        });
    }

    fn finish_private(&mut self, unfinished: Vec<DiskRequest>, hands: DiskThreads) -> Result<(), OutsideError> {
        Ok(self.side.outside.disks.finish_private(unfinished, hands)?)
    }

    fn give_disks_back(&mut self) {
        self.side.outside.disks.give_back();
    }

    fn note_end(&mut self) {
        let (arbiter, me) = (Arc::clone(&self.arbiter), self.me);
        self.side.pending.noting = Some(tokio::task::spawn_blocking(move || arbiter.end(me.0)));
    }
}
