//! From evidence to a verdict about the other side.
//!
//! Heartbeats alone prove nothing: a backup whose network stack still answers while its log is stuck protects nobody.
//! So a primary judges by the acks of its marks (a *mark* is an entry of the log that the backup must acknowledge), and
//! a backup judges by the marks that arrive. Heartbeats never change a verdict. They are kept for its text only, where
//! they tell whoever reads it later whether the host was dead as well or only its log.
//!
//! The opposite error is as bad. A process that was stopped, or whose host had no time for it, wakes up to evidence
//! that is old only because nobody looked. So a step that comes too late gives no verdict ([`Verdict::SelfStalled`]):
//! the caller first hands over what has arrived meanwhile, and ages are counted anew.
//!
//! All times are nanoseconds of one monotonic clock of this host, given by the caller. A time before the latest one
//! counts as that one.

use std::collections::VecDeque;
use std::fmt;

/// Steps in one detection time: callers make one at least every eighth of it.
const STEPS_PER_DETECTION: u64 = 8;

/// A step that is late by more than this part of the detection time (a quarter) means that this side was itself asleep.
const STALLS_PER_DETECTION: u64 = 4;

/// The most unacked marks that are remembered one by one. A mark goes with every output, so thousands a second are
/// usual. Beyond this many, each new mark replaces the youngest, which can delay a verdict and never causes one.
const UNACKED_MARKS: usize = 4096;

/// How much longer than the detection time a backup may stand still at a reset, in nanoseconds. A reset puts all of RAM
/// back, comparing it page by page: some GiB/s on hardware, but tens of MiB/s in an emulated host.
const RESET_NS: u64 = 30_000_000_000;

const NS_PER_MS: u64 = 1_000_000;

/// Which side of the pair this one is. It judges the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairRole {
    /// Sends marks and waits for acks.
    Primary,
    /// Receives marks.
    Backup,
}

/// What a detector needs to know from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DetectorConfig {
    /// Which side this one is.
    pub role: PairRole,
    /// The detection time D, in nanoseconds, at least 8: evidence older than this is too old. Both sides use the value
    /// that the primary was started with.
    pub detection_ns: u64,
}

impl DetectorConfig {
    /// The longest time between two steps, in nanoseconds: D/8.
    fn step_ns(&self) -> u64 {
        self.detection_ns / STEPS_PER_DETECTION
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against the other side.
    Healthy,
    /// It is lost. This is final, and every later verdict is the same: from here on only the test-and-set decides who
    /// lives (PROTOCOL 11).
    Lost(Reason),
    /// This side was asleep, so the age of its evidence says nothing. Nothing counts as older than this step: hand over
    /// what has arrived meanwhile before the next one.
    SelfStalled {
        /// How much later than due the step was, in nanoseconds.
        late_ns: u64,
    },
}

/// What speaks against the other side, with the figures that explain it to a person. Ages are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// On a primary: the oldest unacked mark is older than the detection time.
    MarkUnacked {
        /// The mark's number.
        mark: u64,
        /// Since it was sent, or since this side last woke up, if that is later.
        age_ms: u64,
        /// Since the last heartbeat, if there was one.
        heartbeat_ms: Option<u64>,
    },
    /// On a backup: neither a mark nor a piece of a checkpoint came within the detection time.
    NoMark {
        /// Since the last one, or since this side last woke up, if that is later.
        age_ms: u64,
        /// Since the last heartbeat, if there was one.
        heartbeat_ms: Option<u64>,
    },
    /// On a primary: the backup acks what it receives but does not execute it, although it has something to execute.
    NoProgress {
        /// Since its executed position last moved, or since it fell behind, if that is later.
        age_ms: u64,
        /// How far it has executed: the number of the exit, and of the inputs applied at it.
        executed: (u64, u32),
        /// How far it has received, likewise.
        received: (u64, u32),
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heard = |f: &mut fmt::Formatter<'_>, heartbeat_ms: &Option<u64>| match heartbeat_ms {
            Some(age) => write!(f, "; last heartbeat {age} ms ago"),
            None => write!(f, "; no heartbeat ever"),
        };
        match self {
            Reason::MarkUnacked {
                mark,
                age_ms,
                heartbeat_ms,
            } => {
                write!(f, "mark {mark} is unacked for {age_ms} ms")?;
                heard(f, heartbeat_ms)
            }
            Reason::NoMark { age_ms, heartbeat_ms } => {
                write!(f, "no mark for {age_ms} ms")?;
                heard(f, heartbeat_ms)
            }
            Reason::NoProgress {
                age_ms,
                executed,
                received,
            } => write!(
                f,
                "the backup executes nothing for {age_ms} ms: it stands at exit {}+{} and has received up to {}+{}",
                executed.0, executed.1, received.0, received.1
            ),
        }
    }
}

/// A mark that was sent and is not acked.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    mark: u64,
    sent: u64,
}

/// The backup has received more than it has executed.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// When its executed position last moved, or when it fell behind.
    since: u64,
    executed: (u64, u32),
    received: (u64, u32),
}

/// What one side knows of the other. A detector serves one pair: for a new backup there is a new one.
#[derive(Clone, Debug)]
pub struct Detector {
    config: DetectorConfig,
    /// The latest time seen.
    now: u64,
    last_step: u64,
    /// When this side last woke up: nothing counts as older.
    window_start: u64,
    last_heartbeat: Option<u64>,
    last_evidence: u64,
    /// In order of their numbers, at most [`UNACKED_MARKS`].
    unacked: VecDeque<Unacked>,
    behind: Option<Behind>,
    /// The exit at which the latest reset begins.
    reset: Option<u64>,
    lost: Option<Reason>,
}

impl Detector {
    /// A detector for a pair that is complete `now`: evidence has D from here to come.
    ///
    /// # Panics
    /// If the detection time is under 8 ns, which leaves no step.
    #[must_use]
    pub fn new(config: DetectorConfig, now: u64) -> Self {
        assert!(
            config.step_ns() > 0,
            "a detection time of {} ns leaves no step",
            config.detection_ns
        );
        Detector {
            config,
            now,
            last_step: now,
            window_start: now,
            last_heartbeat: None,
            last_evidence: now,
            unacked: VecDeque::new(),
            behind: None,
            reset: None,
            lost: None,
        }
    }

    /// A valid heartbeat of the other side arrived. It is shown in a [`Reason`] and changes no verdict.
    pub fn heartbeat(&mut self, now: u64) {
        self.advance(now);
        self.last_heartbeat = Some(self.now);
    }

    /// On a backup: a whole mark arrived, or a piece of a checkpoint or state record (PROTOCOL 4). On a primary this
    /// changes no verdict, where only the ack of its oldest mark helps.
    pub fn evidence(&mut self, now: u64) {
        self.advance(now);
        self.last_evidence = self.now;
    }

    /// On a primary: `mark` was sent. Marks are numbered upwards (the numbers of log frames serve), and a number that
    /// is not above the last one is ignored.
    pub fn mark_sent(&mut self, now: u64, mark: u64) {
        self.advance(now);
        if self.unacked.back().is_some_and(|last| mark <= last.mark) {
            return;
        }
        if self.unacked.len() == UNACKED_MARKS {
            self.unacked.pop_back();
        }
        self.unacked.push_back(Unacked { mark, sent: self.now });
    }

    /// On a primary: the backup acked `mark`, and with it every earlier one.
    pub fn mark_acked(&mut self, now: u64, mark: u64) {
        self.advance(now);
        while self.unacked.front().is_some_and(|oldest| oldest.mark <= mark) {
            self.unacked.pop_front();
        }
    }

    /// On a primary: how far the backup has executed and received, by its latest ack (PROTOCOL 16). Each is the number
    /// of an exit and of the inputs applied at it.
    pub fn progress(&mut self, now: u64, executed: (u64, u32), received: (u64, u32)) {
        self.advance(now);
        self.behind = match self.behind {
            _ if executed >= received => None,
            Some(behind) if executed <= behind.executed => Some(Behind { received, ..behind }),
            _ => Some(Behind {
                since: self.now,
                executed,
                received,
            }),
        };
    }

    /// On a primary: the guest is reset at `exit`. Until the backup has executed past that exit it may stand still for
    /// 30 s more than D, as it puts all of RAM back. It must ack what it receives meanwhile, as ever (PROTOCOL 16).
    pub fn reset_at(&mut self, exit: u64) {
        self.reset = Some(exit);
    }

    /// Judges. To be called at least every D/8. A call that is later than that by more than D/4 gives no verdict but
    /// [`Verdict::SelfStalled`], unless there was one before (PROTOCOL 15).
    pub fn step(&mut self, now: u64) -> Verdict {
        self.advance(now);
        let late_ns = (self.now - self.last_step).saturating_sub(self.config.step_ns());
        self.last_step = self.now;
        if self.lost.is_none() && late_ns > self.config.detection_ns / STALLS_PER_DETECTION {
            self.window_start = self.now;
            return Verdict::SelfStalled { late_ns };
        }
        if self.lost.is_none() {
            self.lost = self.grounds();
        }
        self.lost.map_or(Verdict::Healthy, Verdict::Lost)
    }

    /// What speaks against the other side now.
    fn grounds(&self) -> Option<Reason> {
        let heartbeat_ms = self.last_heartbeat.map(|heard| (self.now - heard) / NS_PER_MS);
        let is_old = |since: u64| self.age(since) > self.config.detection_ns;
        let age_ms = |since: u64| self.age(since) / NS_PER_MS;
        match self.config.role {
            PairRole::Backup => is_old(self.last_evidence).then(|| Reason::NoMark {
                age_ms: age_ms(self.last_evidence),
                heartbeat_ms,
            }),
            PairRole::Primary => {
                let unacked = self.unacked.front().filter(|oldest| is_old(oldest.sent));
                let unacked = unacked.map(|oldest| Reason::MarkUnacked {
                    mark: oldest.mark,
                    age_ms: age_ms(oldest.sent),
                    heartbeat_ms,
                });
                unacked.or_else(|| self.stands_still())
            }
        }
    }

    /// Whether the backup has been behind without moving for too long.
    fn stands_still(&self) -> Option<Reason> {
        let Behind {
            since,
            executed,
            received,
        } = self.behind?;
        let resets = self.reset.is_some_and(|exit| executed.0 <= exit);
        let more = if resets { RESET_NS } else { 0 };
        let age = self.age(since);
        (age > self.config.detection_ns.saturating_add(more)).then_some(Reason::NoProgress {
            age_ms: age / NS_PER_MS,
            executed,
            received,
        })
    }

    /// Nanoseconds since `since`, or since this side last woke up, if that is later.
    fn age(&self, since: u64) -> u64 {
        self.now - since.max(self.window_start)
    }

    fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
    }
}

#[cfg(test)]
#[path = "detector_tests.rs"]
mod tests;
