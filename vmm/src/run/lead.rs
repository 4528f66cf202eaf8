//! The primary's shell: one task that hears the vCPU thread, the backup, the storage and the clock, asks the pure core
//! (`roles::primary`) what to do, and does it. A backup that has gone live runs the same loop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ftvm_schema::entry::{ExitSeq, LogEntry, Position};
use logging_channel::clock::boottime_ns;
use logging_channel::message::Message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_disk::arbiter::{Arbiter, ClaimOutcome};
use shared_disk::plan::Gate;
use tokio::sync::{mpsc, oneshot, watch};

use super::accept::nanos;
use super::clone::PageSource;
use super::control::{Desk, Order, Role};
use super::door::{Door, Terms};
use super::events::Reporter;
use super::health::Probe;
use super::link::{Connection, LinkEvent, OUTBOUND_BYTES, at_once, claim};
use super::outside::{DiskLost, Outside, OutsideError};
use super::vcpu::{FromGuest, GuestStream};
use ftvm_host::queue::EventSender;
use ftvm_roles::disks::DiskEnd;
use ftvm_roles::event::{EXIT_HANDED_OVER, EXIT_LOST, Event, Protection};
use ftvm_roles::host_event::Control;
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::host_event::StopKind;
use ftvm_roles::operation::{Answer, Operation, Path};
use ftvm_roles::primary::{Action, Failure, Primary};

/// How long the last messages to a backup may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// RARP announcements after going live, and their interval: 5 in about 1 s (PROTOCOL 22).
const ANNOUNCEMENTS: (u32, Duration) = (5, Duration::from_millis(200));

/// Time between two reports of what the log costs.
const TRAFFIC_EVERY: Duration = Duration::from_secs(1);

/// How long an answer may take to its client before this process kills itself, or ends.
const LAST_ANSWER: Duration = Duration::from_millis(50);

/// How long noting the guest's clean end may take. Nobody waits for it but this process, and without it the guest cannot be
/// started again before `ftvm disown`.
const END_NOTED: Duration = Duration::from_secs(10);

/// Exit code when this host, not the guest, failed.
const EXIT_HOST_FAILED: u8 = 1;

/// Everything a primary has.
#[derive(Debug)]
pub(super) struct Lead {
    pub core: Primary,
    pub terms: Terms,
    pub outside: Outside,
    pub reporter: Reporter,
    pub arbiter: Arc<dyn Arbiter>,
    pub events: EventSender,
    pub door: Door,
    pub macs: Vec<[u8; 6]>,
    pub pages: PageSource,
    pub desk: Desk,
    /// Operators' orders, which come in as soon as the desk names this role.
    pub orders: mpsc::Receiver<Order>,
    pub probe: Probe,
}

/// A backup's first moments of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// The guest was started here.
    Started,
    /// It went live here: switches are to be told, and the first output is to be reported unless one of the old life's
    /// was emitted again.
    WentLive { reemitted: u64 },
}

#[derive(Debug)]
struct Leading {
    lead: Lead,
    link: mpsc::Sender<LinkEvent>,
    connection: Option<Connection>,
    guest: GuestStream,
    /// Ends of disk requests that the guest knows and the backup may not yet.
    done: VecDeque<DiskEnd>,
    first_output: Option<Beginning>,
    protection: Protection,
    over: Option<(u8, String)>,
    /// Where the log stands.
    logged_to: ExitSeq,
    /// Whether the vCPU thread still has something to say.
    listening: bool,
    /// Operators who wait for an answer.
    tickets: BTreeMap<u64, (Operation, oneshot::Sender<Answer>)>,
    next_ticket: u64,
    /// Failures that the guest is not told of while it is being handed over. As many as it has requests under way.
    withheld: Vec<HostEvent>,
    /// Bytes of log when the traffic was last reported.
    logged: u64,
}

impl Lead {
    /// Leads until this process is to end; the exit code.
    ///
    /// # Errors
    /// If this host's devices fail.
    pub(super) async fn run(mut self, guest: GuestStream, beginning: Beginning) -> Result<u8, OutsideError> {
        let (link, mut events) = super::link::link_events();
        let allowed = watch::Sender::new(true);
        let offers = self.door.offers.take();
        let accepting = offers.map(|offers| tokio::spawn(offers.serve(link.clone(), allowed.subscribe())));
        let mut heartbeats = std::mem::take(&mut self.door.heartbeats);
        let mut lost = self.outside.losses();
        let mut tick = tokio::time::interval(self.terms.detection / 8);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut traffic = tokio::time::interval(TRAFFIC_EVERY);
        traffic.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut announce = tokio::time::interval(ANNOUNCEMENTS.1);
        let mut announcements = if beginning == Beginning::Started {
            0
        } else {
            ANNOUNCEMENTS.0
        };
        let superseded = self.outside.superseded();
        let mut leading = Leading {
            protection: self.core.protection(),
            lead: self,
            link,
            connection: None,
            guest,
            done: VecDeque::new(),
            first_output: Some(beginning),
            over: None,
            logged_to: ExitSeq(0),
            listening: true,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            withheld: Vec::new(),
            logged: 0,
        };
        leading.show();
        while leading.over.is_none() {
            let mut actions = Vec::new();
            let takes_more = leading.takes_more();
            tokio::select! {
                event = events.recv() => for event in at_once(event, &mut events) {
                    leading.link_event(event, &mut actions);
                    leading.act(std::mem::take(&mut actions)).await?;
                },
                batch = leading.guest.next(), if takes_more => leading.guest_says(batch, &mut actions)?,
                Some(heartbeat) = leading.lead.door.heard.recv() => {
                    leading.lead.core.heartbeat(boottime_ns(), &heartbeat, &mut actions);
                }
                Some(order) = leading.lead.orders.recv() => leading.operate(order, &mut actions),
                Some(lost) = lost.recv() => leading.disk_lost(lost, &mut actions)?,
                Some(health) = leading.lead.probe.next() => {
                    for (nic, _) in (0u8..).zip(&health.nics).filter(|(_, reached)| !**reached) {
                        let what = "its interface is gone or down";
                        leading.lead.core.path_lost(boottime_ns(), Path::Nic(nic), what, &mut actions);
                    }
                }
                _ = tick.tick() => {
                    // Whatever arrived while this process slept is evidence, and comes before the verdict (PROTOCOL 15).
                    while let Ok(event) = events.try_recv() {
                        leading.link_event(event, &mut actions);
                        leading.act(std::mem::take(&mut actions)).await?;
                    }
                    leading.lead.core.tick(boottime_ns(), &mut actions);
                    let under_way = leading.lead.outside.under_way();
                    leading.lead.core.disks_under_way(boottime_ns(), &under_way, &mut actions);
                    for heartbeats in &mut heartbeats {
                        heartbeats.set_generation(leading.lead.core.generation());
                        if let Some(sent_ns) = heartbeats.send().await {
                            leading.lead.core.heartbeat_sent(sent_ns);
                        }
                    }
                }
                _ = traffic.tick() => {
                    leading.show();
                    leading.report_progress();
                }
                () = superseded.noticed() => {
                    let why = "another side has fenced this one off a disk: it is live, and nothing more is written here";
                    leading.over = Some((EXIT_LOST, why.to_owned()));
                    break;
                }
                _ = announce.tick(), if announcements > 0 => {
                    announcements -= 1;
                    leading.lead.outside.announce(&leading.lead.macs);
                }
            }
            leading.act(actions).await?;
            leading.release().await?;
            allowed.send_if_modified(|allowed| {
                std::mem::replace(allowed, leading.lead.core.may_join().is_ok()) != leading.lead.core.may_join().is_ok()
            });
        }
        if let Some(accepting) = accepting {
            accepting.abort();
        }
        leading.end().await
    }
}

impl Leading {
    /// Whether the vCPU thread is listened to; if not, its queue fills and it stops (PROTOCOL 9).
    fn takes_more(&self) -> bool {
        let queued = self.connection.as_ref().map_or(0, Connection::queued);
        self.listening
            && self.lead.core.has_room(boottime_ns())
            && queued < OUTBOUND_BYTES
            && self.lead.outside.has_room()
    }

    fn link_event(&mut self, event: LinkEvent, actions: &mut Vec<Action>) {
        let now = boottime_ns();
        match event {
            LinkEvent::Message(generation, message) => {
                if let Message::BlocksWritten { incarnation, messages } = message {
                    self.lead.outside.blocks().confirmed(incarnation, messages);
                }
                self.lead.core.message(now, generation, message, actions);
            }
            LinkEvent::Closed(why) => {
                self.connection = None;
                self.lead.core.closed(now, &why, actions);
            }
            LinkEvent::Joined(joined) => {
                let (frames, candidate) = *joined;
                if self.lead.core.may_join().is_ok() {
                    tracing::info!("a backup joins from {} ({:?})", frames.peer(), candidate.placement);
                    self.connection = Some(Connection::start(frames, &self.link));
                    self.lead.core.joined(now, candidate.incarnation, actions);
                }
            }
            LinkEvent::PagesSent { to, pages, bytes } => {
                self.lead.core.pages_sent(now, to, pages, bytes, actions);
            }
            LinkEvent::BlocksSent { to, bytes } => {
                self.lead.core.blocks_sent(now, to, bytes, actions);
            }
            LinkEvent::Claimed(outcome) => {
                self.lead.core.claimed(now, &outcome, actions);
                self.lead.door.generation.send_replace(self.lead.core.generation());
                if matches!(outcome, ClaimOutcome::Won { .. }) {
                    self.mark_current();
                }
                if self.lead.core.covered(Position::default()) {
                    self.lead.outside.release_all();
                }
            }
            LinkEvent::StorageSilent(why) => actions.push(Action::Report(Event::StorageUnreachable { why })),
        }
    }

    fn guest_says(&mut self, message: Option<FromGuest>, actions: &mut Vec<Action>) -> Result<(), OutsideError> {
        let now = boottime_ns();
        match message {
            Some(FromGuest::Batch { entries, outputs, done }) => {
                let last = entries.iter().rev().find_map(|entry| match entry {
                    LogEntry::Mark(mark) => Some(mark.at.exit),
                    _ => None,
                });
                self.logged_to = last.unwrap_or(self.logged_to);
                self.lead.core.log(now, entries, actions);
                for output in outputs {
                    self.lead.outside.accept(&output.emission, Gate::Held)?;
                    if output.emission.is_output() {
                        self.lead.core.hold(output);
                    }
                }
                for end in done {
                    self.lead.outside.finished(end.disk, end.id)?;
                    self.done.push_back(end);
                }
            }
            Some(FromGuest::Dirty(pages)) => self.lead.core.dirty(now, pages, actions),
            Some(FromGuest::State { record, mark, stopped }) => {
                // What was said before the state belongs to the time before the pair.
                self.release_due()?;
                self.lead.core.state_saved(now, &record, mark, nanos(stopped), actions);
            }
            Some(FromGuest::Obeyed(order)) => self.lead.core.obeyed(order, actions),
            Some(FromGuest::Ended(Ok(reason))) => {
                self.listening = false;
                self.lead.core.guest_ended(now, reason, actions);
            }
            Some(FromGuest::Ended(Err(why))) => self.over = Some((EXIT_HOST_FAILED, why)),
            None => self.over = Some((EXIT_HOST_FAILED, "the vCPU thread ended without a word".to_owned())),
        }
        Ok(())
    }

    /// An operator wants something.
    fn operate(&mut self, order: Order, actions: &mut Vec<Action>) {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (order.operation, order.answer));
        let now = boottime_ns();
        self.lead.core.operate(now, self.next_ticket, order.operation, actions);
    }

    /// Says what has happened. Whoever hears of it and asks for the status must see it there.
    fn report(&mut self, event: Event) {
        self.show();
        self.lead.reporter.report(event);
    }

    fn answer(&mut self, ticket: u64, answer: Answer) {
        if let Some((operation, client)) = self.tickets.remove(&ticket) {
            let (done, text) = match &answer {
                Ok(text) => (true, text.clone()),
                Err(text) => (false, text.clone()),
            };
            self.report(Event::Operated { operation, done, text });
            // A client that has gone does not want to know.
            let _ = client.send(answer);
        }
    }

    /// The way to a disk is lost, and a request with it.
    fn disk_lost(&mut self, lost: DiskLost, actions: &mut Vec<Action>) -> Result<(), OutsideError> {
        let path = Path::Disk(lost.disk);
        match self.lead.core.path_lost(boottime_ns(), path, &lost.what, actions) {
            Failure::Withheld => {
                self.withheld.push(lost.failure);
                Ok(())
            }
            Failure::Told => self.tell(lost.failure),
        }
    }

    fn tell(&self, event: HostEvent) -> Result<(), OutsideError> {
        self.lead.events.answer(event).map_err(|_| OutsideError::gone())
    }

    /// What clients see.
    fn show(&mut self) {
        let core = &self.lead.core;
        let cost = core.cost(boottime_ns()).unwrap_or_default();
        self.lead.desk.update(|status| {
            status.role = Role::Primary;
            status.generation = core.generation().0;
            status.why = core.unprotected();
            status.protected = status.why.is_none();
            status.paused = core.paused();
            status.execution_lag_ns = cost.lag_ns;
            status.slowed_permille = cost.idle_permille;
            status.exits = self.logged_to.0;
            status.checkpoints = cost.checkpoints;
            status.divergences = core.divergences();
            status.silent_disks = core.silent_disks().collect();
        });
    }

    fn report_progress(&mut self) {
        let logged = self.connection.as_ref().map_or(0, Connection::logged);
        let bytes = logged.saturating_sub(std::mem::replace(&mut self.logged, logged));
        self.lead.desk.update(|status| status.log_bytes_per_second = bytes);
        let event = match (&self.connection, self.protection) {
            (Some(connection), Protection::Protected) => {
                let cost = self.lead.core.cost(boottime_ns());
                cost.map(|cost| Event::Traffic {
                    log_bytes: connection.logged(),
                    exits: self.logged_to.0,
                    frames: cost.frames,
                    checkpoints: cost.checkpoints,
                    checkpoint_bytes: cost.checkpoint_bytes,
                    lag_ns: cost.lag_ns,
                    idle_permille: cost.idle_permille,
                })
            }
            (Some(_), Protection::Starting) => {
                let blocks = self.lead.outside.blocks().progress();
                blocks.or_else(|| self.lead.pages.progress())
            }
            _ => None,
        };
        if let Some(event) = event {
            self.lead.reporter.report(event);
        }
    }

    async fn act(&mut self, actions: Vec<Action>) -> Result<(), OutsideError> {
        for action in actions {
            match action {
                Action::Send(message) => {
                    if let Some(connection) = &self.connection {
                        connection.send(self.lead.core.generation(), message);
                    }
                }
                Action::Close => {
                    if let Some(connection) = self.connection.take() {
                        tokio::spawn(connection.close(LAST_WORDS));
                    }
                }
                Action::TakeDirty => self.order(Control::TakeDirty)?,
                Action::SendPages { to, pages } => {
                    if let Some(connection) = &self.connection {
                        let (generation, outbox) = (self.lead.core.generation(), connection.outbox());
                        self.lead.pages.send(pages, to, generation, outbox, self.link.clone());
                    }
                }
                Action::SendBlocks { to, blocks } => {
                    if let Some(connection) = &self.connection {
                        let (generation, outbox) = (self.lead.core.generation(), connection.outbox());
                        let source = self.lead.outside.blocks();
                        source.send(blocks, to, generation, outbox, self.link.clone());
                    }
                }
                Action::SaveState => self.order(Control::SaveState)?,
                Action::Pace(idle) => self.guest.idle.store(idle, Ordering::Relaxed),
                Action::StopLogging => self.guest.logging.store(false, Ordering::Release),
                Action::Claim(generation) => {
                    let me = self.lead.terms.me;
                    claim(&self.lead.arbiter, generation, me, me, self.link.clone());
                }
                Action::Order(order) => self.order(order)?,
                Action::PowerOff => self.tell(HostEvent::Stop(StopKind::Operator))?,
                Action::TellFailures => {
                    for failure in std::mem::take(&mut self.withheld) {
                        self.tell(failure)?;
                    }
                }
                Action::Answer { ticket, answer } => self.answer(ticket, answer),
                Action::Die => {
                    std::thread::spawn(|| {
                        std::thread::sleep(LAST_ANSWER);
                        let _ = kill(Pid::this(), Signal::SIGKILL);
                    });
                }
                Action::Report(event) => self.report(event),
                Action::End { code, why } => self.over = Some((code, why)),
            }
        }
        if self.protection != self.lead.core.protection() {
            self.protection = self.lead.core.protection();
            self.show();
        }
        Ok(())
    }

    fn order(&self, control: Control) -> Result<(), OutsideError> {
        self.tell(HostEvent::Control(control))
    }

    /// A failure does not matter as long as the guest lives: its clean end writes the marks again.
    fn mark_current(&self) {
        let (generation, me) = (self.lead.core.generation(), self.lead.terms.me);
        if let Err(error) = self.lead.outside.mark_current(generation.0, me.0) {
            tracing::warn!("{error}");
        }
    }

    /// Lets out what may leave, and sees whether that was the last thing waited for.
    async fn release(&mut self) -> Result<(), OutsideError> {
        self.release_due()?;
        let mut actions = Vec::new();
        let writes = self.lead.outside.writes();
        self.lead.core.settled(boottime_ns(), writes, &mut actions);
        self.act(actions).await
    }

    fn release_due(&mut self) -> Result<(), OutsideError> {
        // Writes in flight live as long as the lease does, and an ack may just have renewed it.
        let writes = self.lead.core.may_write(boottime_ns());
        self.lead.outside.extend_fence(writes)?;
        // The clock is read before each one: nothing lies between the check of the lease and the call (PROTOCOL 12).
        while let Some(output) = self.lead.core.next_release(boottime_ns()) {
            self.lead.outside.release(&output)?;
            self.lead.core.released(output.seq);
            if self.first_output.take() == Some(Beginning::WentLive { reemitted: 0 }) {
                self.lead.reporter.report(Event::FirstOutput);
            }
        }
        while let Some(end) = self.done.front().copied()
            && self.lead.core.knows(&end)
        {
            self.done.pop_front();
            self.lead.outside.acked(end.disk, end.id)?;
        }
        if self.lead.outside.has_ready() {
            let core = &self.lead.core;
            self.lead.outside.start_ready(|| core.may_write(boottime_ns()))?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<u8, OutsideError> {
        let (code, why) = self.over.take().unwrap_or((EXIT_HOST_FAILED, String::new()));
        if let Some(connection) = self.connection.take() {
            connection.close(LAST_WORDS).await;
        }
        if code == EXIT_HANDED_OVER {
            // The vCPU thread stands still, and is of no use any more: this process may go on as a standby.
            let _ = self.tell(HostEvent::Stop(StopKind::Operator));
        }
        if self.lead.core.guest_end().is_some() && !matches!(code, EXIT_LOST | EXIT_HANDED_OVER) {
            if let Err(error) = self.lead.outside.finish_private() {
                tracing::error!("this host's private disks may differ from the backup's: {error}");
            }
            self.mark_current();
            self.lead.outside.give_disks_back();
            let (arbiter, me) = (Arc::clone(&self.lead.arbiter), self.lead.terms.me);
            let ended = tokio::time::timeout(END_NOTED, tokio::task::spawn_blocking(move || arbiter.end(me.0)));
            match ended.await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => tracing::warn!("the guest's end could not be noted: {error}"),
                _ => tracing::warn!("the guest's end could not be noted: the shared storage does not answer"),
            }
        }
        self.lead.reporter.report(Event::Ending { code, why });
        tokio::time::sleep(LAST_ANSWER).await;
        Ok(code)
    }
}
