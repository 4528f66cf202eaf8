//! From evidence to a verdict about the other side (PROTOCOL 15 and 16; paper section 2.3).
//!
//! Heartbeats alone prove nothing: a backup whose network stack answers while its log is stuck protects nobody. So the
//! primary believes acks and the backup believes marks, and heartbeats only tell the reader of a timeline which part
//! died. The opposite error is as bad: whoever was asleep himself (a stopped process, a starved host) sees old evidence
//! and must not judge by it. A step that comes late therefore drains first and judges later.
//!
//! All times are nanoseconds of one monotonic clock of this host, given by the caller; a time before the latest one
//! counts as that. The verdict is final once it is [`Verdict::Lost`] (PROTOCOL 11).

use std::collections::VecDeque;
use std::fmt;

/// Steps per detection time: the caller makes one at least every [`Config::step_ns`].
const STEPS_PER_DETECTION: u64 = 8;

/// A step that is later than this part of the detection time finds that this side was itself asleep.
const STALLS_PER_DETECTION: u64 = 4;

/// Unacked marks kept apart. A mark goes with every output, so thousands a second are usual; beyond this many the
/// youngest are taken as one, which can only delay a verdict.
const UNACKED_MARKS: usize = 4096;

/// How much longer than the detection time a backup may stand still at a reset, in nanoseconds: RAM is compared page by page,
/// at some GiB/s on hardware, and at tens of MiB/s in an emulated host.
pub const LONG_STEP_NS: u64 = 30_000_000_000;

const NS_PER_MS: u64 = 1_000_000;

/// A position in the guest's history: the exit, and the inputs applied at it.
pub type Place = (u64, u32);

/// Which side this is; it watches the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends marks and waits for acks.
    Primary,
    /// Receives marks.
    Backup,
}

/// What a detector needs to know from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which side this is.
    pub role: Role,
    /// The detection time D, in nanoseconds: evidence older than this is too old. The pair uses the primary's.
    pub detection_ns: u64,
}

impl Config {
    /// The longest time between two steps, in nanoseconds: D/8.
    #[must_use]
    pub fn step_ns(&self) -> u64 {
        self.detection_ns / STEPS_PER_DETECTION
    }
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against the other side.
    Healthy,
    /// It may be dead: the test-and-set may begin, the lease must still be outwaited (PROTOCOL 13). Asking for it is
    /// final; a side that has not asked may see the hint go away again.
    EarlyHint(Reason),
    /// It is lost. Every later verdict is this one.
    Lost(Reason),
    /// This side was asleep. Drain all sockets, hand their evidence over, and step again; the window starts anew.
    SelfStalled {
        /// How late the step was, in nanoseconds.
        late_ns: u64,
    },
}

/// What speaks against the other side, with the figures for the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The oldest unacked mark is older than the detection time.
    MarkUnacked {
        /// The mark.
        mark: u64,
        /// Since it was sent, or since the window started anew.
        age_ms: u64,
        /// Since the last heartbeat, if there was one.
        heartbeat_ms: Option<u64>,
    },
    /// No mark, nor a piece of a checkpoint, within the detection time.
    NoMark {
        /// Since the last one, or since the window started anew.
        age_ms: u64,
        /// Since the last heartbeat, if there was one.
        heartbeat_ms: Option<u64>,
    },
    /// The backup acks but does not execute, although it is behind.
    NoProgress {
        /// Since its executed position last moved, or since it fell behind.
        age_ms: u64,
        /// How far it has executed.
        executed: Place,
        /// How far it has received.
        received: Place,
    },
    /// The logging channel was closed by the other side or broke.
    ChannelClosed {
        /// Since then.
        age_ms: u64,
    },
    /// Someone else found the other side unusable: a divergence, a refused resumption.
    Reported {
        /// What was found.
        what: String,
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
            Reason::ChannelClosed { age_ms } => write!(f, "the logging channel is closed for {age_ms} ms"),
            Reason::Reported { what } => f.write_str(what),
        }
    }
}

/// A mark that was sent and not acked.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    mark: u64,
    sent: u64,
}

/// The backup is behind and stands still.
#[derive(Clone, Copy, Debug)]
struct Behind {
    since: u64,
    executed: Place,
    received: Place,
}

/// The state of one side's judgement about the other. One lives as long as the pair: a new backup gets a new one.
#[derive(Clone, Debug)]
pub struct Detector {
    config: Config,
    /// The latest time seen.
    now: u64,
    last_step: u64,
    /// Nothing counts as older than this.
    window_start: u64,
    last_heartbeat: Option<u64>,
    last_evidence: u64,
    /// In order of their numbers, at most [`UNACKED_MARKS`].
    unacked: VecDeque<Unacked>,
    behind: Option<Behind>,
    /// The exit behind which a long step comes.
    long_step: Option<u64>,
    closed: Option<u64>,
    lost: Option<Reason>,
}

impl Detector {
    /// A detector whose window starts `now`: create it when the pair is complete.
    ///
    /// # Panics
    /// If the detection time is under 8 ns, which leaves no step.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
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
            long_step: None,
            closed: None,
            lost: None,
        }
    }

    /// A valid heartbeat of the other side arrived. It is shown in reasons and changes no verdict.
    pub fn heartbeat(&mut self, now: u64) {
        self.advance(now);
        self.last_heartbeat = Some(self.now);
    }

    /// The other side's log traffic arrived. For a backup: a decoded mark or a piece of a checkpoint or state record
    /// (PROTOCOL 4). For a primary it changes no verdict, since only the ack of its oldest mark helps.
    pub fn evidence(&mut self, now: u64) {
        self.advance(now);
        self.last_evidence = self.now;
    }

    /// The primary sent `mark`. Marks are numbered upwards (log frames' numbers serve); anything that must be acked may
    /// be counted as one. A number not above the last is ignored.
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

    /// The backup acked `mark` and with it every earlier one.
    pub fn mark_acked(&mut self, now: u64, mark: u64) {
        self.advance(now);
        while self.unacked.front().is_some_and(|oldest| oldest.mark <= mark) {
            self.unacked.pop_front();
        }
    }

    /// How far the backup has executed and received, from its latest ack (PROTOCOL 16).
    pub fn progress(&mut self, now: u64, executed: Place, received: Place) {
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

    /// What the backup does behind `exit` is a reset, which puts back all of RAM: until it is past that exit, it may stand still
    /// for [`LONG_STEP_NS`] more. It acks what it receives meanwhile, as ever (PROTOCOL 16).
    pub fn long_step(&mut self, exit: u64) {
        self.long_step = Some(exit);
    }

    /// The logging channel was closed by the other side or broke: a dead process looks like that at once.
    pub fn channel_closed(&mut self, now: u64) {
        self.advance(now);
        self.closed.get_or_insert(self.now);
    }

    /// The channel stands again, with the same incarnation (PROTOCOL 6).
    pub fn channel_resumed(&mut self, now: u64) {
        self.advance(now);
        self.closed = None;
    }

    /// The other side was found unusable by other means: a divergence, a refused resumption. Final.
    pub fn report_lost(&mut self, now: u64, what: impl Into<String>) {
        self.advance(now);
        self.lost.get_or_insert_with(|| Reason::Reported { what: what.into() });
    }

    /// Judges. To be called at least every [`Config::step_ns`]; a call that is more than D/4 later than that gives no
    /// verdict but [`Verdict::SelfStalled`] (PROTOCOL 15).
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
        match (&self.lost, self.closed) {
            (Some(reason), _) => Verdict::Lost(reason.clone()),
            (None, Some(since)) => Verdict::EarlyHint(Reason::ChannelClosed {
                age_ms: (self.now - since) / NS_PER_MS,
            }),
            (None, None) => Verdict::Healthy,
        }
    }

    /// The latest time by which the next step is due, in nanoseconds.
    #[must_use]
    pub fn next_step_due(&self) -> u64 {
        self.last_step.saturating_add(self.config.step_ns())
    }

    /// Age of the oldest unacked mark within the window, in nanoseconds; none when every mark is acked.
    #[must_use]
    pub fn oldest_unacked_ns(&self) -> Option<u64> {
        self.unacked.front().map(|oldest| self.age(oldest.sent))
    }

    fn grounds(&self) -> Option<Reason> {
        let heartbeat_ms = self.last_heartbeat.map(|heard| (self.now - heard) / NS_PER_MS);
        let is_old = |since: u64| self.age(since) > self.config.detection_ns;
        let age_ms = |since: u64| self.age(since) / NS_PER_MS;
        match self.config.role {
            Role::Backup => is_old(self.last_evidence).then(|| Reason::NoMark {
                age_ms: age_ms(self.last_evidence),
                heartbeat_ms,
            }),
            Role::Primary => {
                let unacked = self.unacked.front().filter(|oldest| is_old(oldest.sent));
                let still = self.behind.filter(|behind| {
                    let resets = self.long_step.is_some_and(|exit| behind.executed.0 <= exit);
                    let more = if resets { LONG_STEP_NS } else { 0 };
                    self.age(behind.since) > self.config.detection_ns.saturating_add(more)
                });
                unacked
                    .map(|&Unacked { mark, sent }| Reason::MarkUnacked {
                        mark,
                        age_ms: age_ms(sent),
                        heartbeat_ms,
                    })
                    .or(still.map(
                        |Behind {
                             since,
                             executed,
                             received,
                         }| {
                            Reason::NoProgress {
                                age_ms: age_ms(since),
                                executed,
                                received,
                            }
                        },
                    ))
            }
        }
    }

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
