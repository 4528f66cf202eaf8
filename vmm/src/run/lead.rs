//! The primary's shell: one task that hears the vCPU thread, the backup, the storage and the clock, asks the pure core
//! (`roles::primary`) what to do, and does it. A backup that has gone live runs the same loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use logging_channel::clock::boottime_ns;
use logging_channel::entry::{ExitSeq, Generation, Incarnation, LogEntry, Position};
use logging_channel::message::Heartbeat;
use shared_disk::arbiter::SharedDirectory;
use shared_disk::plan::Gate;
use tokio::sync::{mpsc, watch};

use super::accept::{Offers, nanos};
use super::clone::PageSource;
use super::events::Reporter;
use super::heartbeat::Heartbeats;
use super::link::{Connection, LinkEvent, OUTBOUND_BYTES, claim};
use super::outside::{Outside, OutsideError};
use super::vcpu::{FromGuest, GuestStream};
use crate::backends::queue::EventSender;
use crate::backends::{Control, HostEvent};
use crate::roles::disks::DiskEnd;
use crate::roles::event::{Event, Protection};
use crate::roles::primary::{Action, Primary};

/// How long the last messages to a backup may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// RARP announcements after going live, and their interval: 5 in about 1 s (PROTOCOL 22).
const ANNOUNCEMENTS: (u32, Duration) = (5, Duration::from_millis(200));

/// Time between two reports of what the log costs.
const TRAFFIC_EVERY: Duration = Duration::from_secs(1);

/// Exit code when this host, not the guest, failed.
const EXIT_HOST_FAILED: u8 = 1;

/// Everything a primary has.
#[derive(Debug)]
pub struct Lead {
    pub core: Primary,
    pub me: Incarnation,
    pub detection: Duration,
    pub outside: Outside,
    pub reporter: Reporter,
    pub arbiter: Arc<SharedDirectory>,
    pub events: EventSender,
    pub offers: Option<Offers>,
    /// At the door, and, after going live, towards the old primary: a revenant must hear of the new generation.
    pub heartbeats: Vec<Heartbeats>,
    pub heard: mpsc::Receiver<Heartbeat>,
    /// What joining backups are told.
    pub generation: watch::Sender<Generation>,
    pub macs: Vec<[u8; 6]>,
    pub pages: PageSource,
}

/// A backup's first moments of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
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
}

impl Lead {
    /// Leads until this process is to end; the exit code.
    ///
    /// # Errors
    /// If this host's devices fail.
    pub async fn run(mut self, guest: GuestStream, beginning: Beginning) -> Result<u8, OutsideError> {
        let (link, mut events) = super::link::link_events();
        let allowed = watch::Sender::new(true);
        let accepting = self
            .offers
            .take()
            .map(|offers| tokio::spawn(offers.serve(link.clone(), allowed.subscribe())));
        let mut heartbeats = std::mem::take(&mut self.heartbeats);
        let mut tick = tokio::time::interval(self.detection / 8);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut traffic = tokio::time::interval(TRAFFIC_EVERY);
        traffic.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut announce = tokio::time::interval(ANNOUNCEMENTS.1);
        let mut announcements = if beginning == Beginning::Started {
            0
        } else {
            ANNOUNCEMENTS.0
        };
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
        };
        while leading.over.is_none() {
            let mut actions = Vec::new();
            let takes_more = leading.takes_more();
            tokio::select! {
                event = events.recv() => if let Some(event) = event { leading.link_event(event, &mut actions) },
                batch = leading.guest.batches.recv(), if takes_more => leading.guest_says(batch, &mut actions)?,
                Some(heartbeat) = leading.lead.heard.recv() => {
                    leading.lead.core.heartbeat(boottime_ns(), &heartbeat, &mut actions);
                }
                _ = tick.tick() => {
                    // Whatever arrived while this process slept is evidence, and comes before the verdict (PROTOCOL 15).
                    while let Ok(event) = events.try_recv() {
                        leading.link_event(event, &mut actions);
                    }
                    leading.lead.core.tick(boottime_ns(), &mut actions);
                    for heartbeats in &mut heartbeats {
                        heartbeats.set_generation(leading.lead.core.generation());
                        if let Some(sent_ns) = heartbeats.send().await {
                            leading.lead.core.heartbeat_sent(sent_ns);
                        }
                    }
                }
                _ = traffic.tick() => leading.report_progress(),
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
            LinkEvent::Claimed(outcome) => {
                self.lead.core.claimed(now, &outcome, actions);
                self.lead.generation.send_replace(self.lead.core.generation());
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
            Some(FromGuest::Ended(Ok(reason))) => {
                self.listening = false;
                self.lead.core.guest_ended(now, reason, actions);
            }
            Some(FromGuest::Ended(Err(why))) => self.over = Some((EXIT_HOST_FAILED, why)),
            None => self.over = Some((EXIT_HOST_FAILED, "the vCPU thread ended without a word".to_owned())),
        }
        Ok(())
    }

    fn report_progress(&mut self) {
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
            (Some(_), Protection::Starting) => self.lead.pages.progress(),
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
                Action::SaveState => self.order(Control::SaveState)?,
                Action::Pace(idle) => self.guest.idle.store(idle, Ordering::Relaxed),
                Action::StopLogging => self.guest.logging.store(false, Ordering::Release),
                Action::Claim(generation) => {
                    claim(
                        &self.lead.arbiter,
                        generation,
                        self.lead.me,
                        self.lead.me,
                        self.link.clone(),
                    );
                }
                Action::Report(event) => self.lead.reporter.report(event),
                Action::End { code, why } => self.over = Some((code, why)),
            }
        }
        self.protection = self.lead.core.protection();
        Ok(())
    }

    fn order(&self, control: Control) -> Result<(), OutsideError> {
        self.lead
            .events
            .answer(HostEvent::Control(control))
            .map_err(|_| OutsideError::gone())
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
        if self.lead.core.guest_end().is_some() && code != crate::roles::event::EXIT_LOST {
            let (arbiter, me) = (Arc::clone(&self.lead.arbiter), self.lead.me);
            let ended = tokio::time::timeout(
                Duration::from_secs(2),
                tokio::task::spawn_blocking(move || arbiter.end(me.0)),
            );
            match ended.await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => tracing::warn!("the guest's end could not be noted: {error}"),
                _ => tracing::warn!("the guest's end could not be noted: the shared directory does not answer"),
            }
        }
        self.lead.reporter.report(Event::Ending { code, why });
        Ok(code)
    }
}
