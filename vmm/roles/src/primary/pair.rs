//! A pair: log and marks one way, acks the other, and what they say about the backup's health (PROTOCOL 2, 6, 12, 15, 16).

use fault_detector::detector::{Detector, DetectorConfig, PairRole, Verdict};
use ftvm_schema::entry::{Chunk, Incarnation, Input, Intervention, LogEntry, Mark, OutputSeq, Position};
use logging_channel::chunk;
use logging_channel::codec::data_bytes;
use logging_channel::flow::{AckTracker, Lease, Pace};
use logging_channel::message::{Ack, Health, Message};

use super::super::event::Cost;
use super::super::terms::JOIN_SILENCE_NS;
use super::super::terms::Terms;
use super::operating::Leaving;
use super::{FRAME_BYTES, LONG_CHANNEL, Phase, Primary, PrimaryAction, SLOW_AT};

#[derive(Debug)]
pub(super) struct Pair {
    pub backup: Incarnation,
    pub tracker: AckTracker,
    pub lease: Lease,
    pub detector: Detector,
    pub next_frame: u64,
    pub cost: Cost,
    pub pace: Pace,
    /// Nanoseconds for which a mark may be unacked because the channel is long.
    channel_ns: u64,
    /// Thousandths of the time that the guest was last told to stand still.
    pub idle: u32,
    /// The last mark sent: repeated when the guest has nothing new to say.
    pub mark: Mark,
    pub mark_sent: u64,
    pub last_ack: u64,
    /// Whether the backup has acked anything since the grant: before that it is still taking the state.
    pub level: bool,
    /// Up to where the backup has been told what has left.
    pub released_told: OutputSeq,
    /// Since when the guest's life is over, if it is.
    pub ended: Option<u64>,
    pub leaving: Leaving,
    /// What the backup has last said of its host.
    pub health: Option<Health>,
    pub boot: Boot,
}

/// How much of the boot record the backup has got: one chunk with every tick, a few MiB a second, behind the log.
#[derive(Debug, Default)]
pub(super) enum Boot {
    #[default]
    NotYet,
    UnderWay(std::vec::IntoIter<Chunk>),
    Sent,
}

impl Primary {
    /// Time passes for a pair.
    pub(super) fn pair_tick(&mut self, now: u64, actions: &mut Vec<PrimaryAction>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        let verdict = pair.detector.step(now);
        let silence = now.saturating_sub(pair.last_ack);
        if pair.level
            && let Verdict::Lost(reason) = verdict
        {
            return self.suspect(now, reason.to_string(), actions);
        }
        if !pair.level && silence > JOIN_SILENCE_NS {
            let reason = format!("the joining backup has been silent for {} ms", silence / 1_000_000);
            return self.suspect(now, reason, actions);
        }
        if pair.level {
            let idle = pair.pace.step(now, pair.backlog(now));
            if idle != std::mem::replace(&mut pair.idle, idle) {
                actions.push(PrimaryAction::Pace(idle));
            }
        }
        let due = now.saturating_sub(pair.mark_sent) >= self.terms.detection_ns / 8;
        if due || pair.released_told < self.released {
            let mark = pair.mark.clone();
            self.send_log(now, vec![LogEntry::Mark(mark)], actions);
        }
        self.send_boot(actions);
        self.check_end(now, actions);
    }

    /// The next piece of the boot record, to a backup that keeps up.
    fn send_boot(&mut self, actions: &mut Vec<PrimaryAction>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        if !pair.level || pair.leaving != Leaving::No {
            return;
        }
        if let (Boot::NotYet, Some(record)) = (&pair.boot, self.boot.get()) {
            pair.boot = Boot::UnderWay(chunk::split(record).collect::<Vec<_>>().into_iter());
        }
        if let Boot::UnderWay(chunks) = &mut pair.boot {
            match chunks.next() {
                Some(piece) => actions.push(PrimaryAction::Send(Message::Boot(piece))),
                None => pair.boot = Boot::Sent,
            }
        }
    }

    /// The guest's log goes on.
    pub(crate) fn log(&mut self, now: u64, entries: Vec<LogEntry>, actions: &mut Vec<PrimaryAction>) {
        if let Phase::Paired(pair) = &mut self.phase {
            // The backup may answer the end before the vCPU thread has said it here.
            if let Some(LogEntry::End { reason, .. }) = entries.last() {
                self.ended = Some(reason.clone());
                pair.ended = Some(now);
            }
            self.send_log(now, entries, actions);
        }
    }

    pub(super) fn ack(&mut self, now: u64, ack: &Ack, actions: &mut Vec<PrimaryAction>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        pair.last_ack = now;
        if !pair.level && ack.frame == 0 && ack.incarnation == pair.backup {
            return; // a sign of life while it takes the state
        }
        let believed = pair.tracker.acked(ack, now).map_err(|error| error.to_string());
        let renewed = believed.and_then(|()| pair.lease.renew(ack.echo_ns, now).map_err(|error| error.to_string()));
        if let Err(error) = renewed {
            return self.suspect(now, format!("the backup's ack makes no sense: {error}"), actions);
        }
        if !pair.level {
            // Until here the backup was taking the state; from here on silence counts.
            pair.level = true;
            let config = DetectorConfig {
                detection_ns: self.terms.detection_ns,
                role: PairRole::Primary,
            };
            pair.detector = Detector::new(config, now);
            self.report_state("the backup holds everything", actions);
        }
        let Phase::Paired(pair) = &mut self.phase else { return };
        pair.detector.mark_acked(now, ack.frame);
        pair.detector.progress(now, place(ack.executed), place(ack.received));
        self.check_end(now, actions);
    }

    /// Sends entries, with release records, and stamps the marks.
    pub(super) fn send_log(&mut self, now: u64, mut entries: Vec<LogEntry>, actions: &mut Vec<PrimaryAction>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        if pair.released_told < self.released {
            pair.released_told = self.released;
            entries.insert(0, LogEntry::Released { through: self.released });
        }
        let mut frame = Vec::new();
        let mut bytes = 0;
        for mut entry in entries {
            if let LogEntry::Mark(mark) = &mut entry {
                mark.sent_ns = now;
                pair.mark = mark.clone();
                pair.mark_sent = now;
            }
            if let LogEntry::Input {
                at,
                input: Input::Control(Intervention::Reset),
            } = &entry
            {
                pair.detector.reset_at(at.0);
            }
            pair.cost.add(&entry);
            bytes += data_bytes(&entry);
            frame.push(entry);
            if bytes >= FRAME_BYTES {
                pair.send_frame(now, std::mem::take(&mut frame), bytes, actions);
                bytes = 0;
            }
        }
        if !frame.is_empty() {
            pair.send_frame(now, frame, bytes, actions);
        }
    }
}

impl Pair {
    /// A backup to which the state at `mark` has been sent.
    pub(super) fn new(terms: &Terms, now: u64, backup: Incarnation, mark: &Mark, released: OutputSeq) -> Self {
        let detector = DetectorConfig {
            detection_ns: terms.detection_ns,
            role: PairRole::Primary,
        };
        Pair {
            backup,
            tracker: AckTracker::new(backup, mark.at, mark.outputs),
            lease: Lease::new(terms.lease_ns),
            detector: Detector::new(detector, now),
            next_frame: 1,
            cost: Cost::default(),
            pace: Pace::new(terms.detection_ns / SLOW_AT),
            channel_ns: terms.detection_ns / LONG_CHANNEL,
            idle: 0,
            mark: mark.clone(),
            mark_sent: now,
            last_ack: now,
            level: false,
            released_told: released,
            ended: None,
            leaving: Leaving::No,
            health: None,
            boot: Boot::NotYet,
        }
    }

    /// How far the backup is behind what a slower guest would spare it, in nanoseconds.
    pub(super) fn backlog(&self, now: u64) -> u64 {
        self.tracker.backlog(now, self.channel_ns)
    }

    fn send_frame(&mut self, now: u64, entries: Vec<LogEntry>, bytes: usize, actions: &mut Vec<PrimaryAction>) {
        let number = self.next_frame;
        self.next_frame += 1;
        self.tracker
            .sent(number, bytes, &entries, now)
            .expect("the vCPU thread logs in order");
        self.detector.mark_sent(now, number);
        actions.push(PrimaryAction::Send(Message::Log { number, entries }));
    }
}

fn place(position: Position) -> (u64, u32) {
    (position.exit.0, position.k)
}
