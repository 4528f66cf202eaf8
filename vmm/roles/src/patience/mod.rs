//! How long an input waits for the guest to exit by itself before it is moved by a micro-checkpoint (docs, "Design", idea 3).
//!
//! A checkpoint stops the guest and costs the channel some kilobytes, so the guest gets a chance to exit first. How long
//! depends on what waits: somebody outside waits for the answer to a frame or a disk request, but nobody for a tick while
//! one program computes undisturbed. And whatever a checkpoint costs on this host, the guest runs three times as long
//! before the next one: without that rule an eager setting on a slow host leaves the guest no time to get anywhere.
//!
//! The policy here is pure; the monitor thread that kicks belongs to the host, and looks at what is [`watched`].

pub mod watched;

use std::time::{Duration, Instant};

/// A frame, a finished disk request or a typed byte waits this fraction of the patience.
const EVENT_FRACTION: u32 = 4;

/// An event waits at least this long, which a kick costs anyhow.
const LEAST: Duration = Duration::from_millis(1);

/// A tick's wait is doubled at most so often while one program computes: a sleeper wakes later by that.
const MOST_STRETCH: u32 = 2;

/// Once a tick's wait is stretched that far, it is at least so many times as long as a checkpoint takes: where checkpoints are
/// slow, the program keeps 95 % of the time.
const UNDISTURBED: u32 = 19;

/// A tick's wait is not stretched beyond this.
const MOST_TICK: Duration = Duration::from_millis(500);

/// Times the cost of a checkpoint that the guest runs before the next one: it keeps three quarters of the time.
const REST: u32 = 3;

/// Most time between two checkpoints that [`REST`] asks for, whatever a checkpoint has cost (a stopped link, a stopped host).
const MOST_REST: Duration = Duration::from_millis(500);

/// What waits for an exit, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// A timer's deadline has passed.
    pub tick: Option<Instant>,
    /// The oldest host event.
    pub event: Option<Instant>,
}

/// How long things may wait now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub tick: Duration,
    pub event: Duration,
    /// No checkpoint before.
    pub rest_until: Option<Instant>,
}

impl Limits {
    /// Whether something has waited long enough at `now`.
    #[must_use]
    pub fn due(&self, waiting: &Waiting, now: Instant) -> bool {
        let passed = |since: Option<Instant>, wait| since.is_some_and(|since| now >= since + wait);
        self.rest_until.is_none_or(|until| now >= until)
            && (passed(waiting.tick, self.tick) || passed(waiting.event, self.event))
    }
}

/// The policy, with what it has learned of guest and host.
#[derive(Clone, Debug)]
pub struct Patience {
    base: Duration,
    /// What checkpoints have cost lately: a moving average.
    cost: Duration,
    rest_until: Option<Instant>,
    /// The program that the last checkpoint found computing, by its address space.
    program: Option<u64>,
    stretch: u32,
}

impl Patience {
    /// Begins with `base` for a tick.
    #[must_use]
    pub fn new(base: Duration) -> Self {
        Patience {
            base,
            cost: Duration::ZERO,
            rest_until: None,
            program: None,
            stretch: 0,
        }
    }

    /// How long things may wait now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let slow = if self.stretch == MOST_STRETCH {
            self.cost * UNDISTURBED
        } else {
            Duration::ZERO
        };
        Limits {
            tick: (self.base * (1 << self.stretch))
                .max(slow)
                .min(MOST_TICK)
                .max(self.base),
            event: (self.base / EVENT_FRACTION).max(LEAST.min(self.base)),
            rest_until: self.rest_until,
        }
    }

    /// The guest was stopped at `stopped` for what was `waiting`, found with `program` computing (at CPL 3; nothing at
    /// CPL 0), and runs on at `resumed`.
    pub fn moved(&mut self, stopped: Instant, resumed: Instant, waiting: &Waiting, program: Option<u64>) {
        let cost = resumed.saturating_duration_since(stopped);
        self.cost = if self.cost.is_zero() {
            cost
        } else {
            (self.cost * 3 + cost) / 4
        };
        self.rest_until = Some(resumed + (self.cost * REST).min(MOST_REST));
        let undisturbed = waiting.event.is_none() && program.is_some() && program == self.program;
        self.stretch = if undisturbed {
            (self.stretch + 1).min(MOST_STRETCH)
        } else {
            0
        };
        self.program = program;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(40);
    const MS: Duration = Duration::from_millis(1);

    fn tick(at: Instant) -> Waiting {
        Waiting {
            tick: Some(at),
            event: None,
        }
    }

    fn event(at: Instant) -> Waiting {
        Waiting {
            tick: None,
            event: Some(at),
        }
    }

    #[test]
    fn an_event_waits_less_than_a_tick() {
        let start = Instant::now();
        let limits = Patience::new(BASE).limits();
        assert!(!limits.due(&tick(start), start + 39 * MS) && limits.due(&tick(start), start + 40 * MS));
        assert!(!limits.due(&event(start), start + 9 * MS) && limits.due(&event(start), start + 10 * MS));
        assert!(!limits.due(&Waiting::default(), start + Duration::from_secs(9)));
        let eager = Patience::new(MS).limits();
        assert_eq!((eager.tick, eager.event), (MS, MS));
    }

    #[test]
    fn the_guest_runs_three_times_as_long_as_a_checkpoint_takes() {
        let start = Instant::now();
        let mut patience = Patience::new(MS);
        patience.moved(start, start + 20 * MS, &tick(start), None);
        let limits = patience.limits();
        assert!(!limits.due(&tick(start), start + 79 * MS) && limits.due(&tick(start), start + 80 * MS));
        // A link that stood still for a minute does not stop the inputs for three.
        patience.moved(start, start + Duration::from_secs(60), &tick(start), None);
        let resumed = start + Duration::from_secs(60);
        assert!(!patience.limits().due(&tick(start), resumed + MOST_REST - MS));
        assert!(patience.limits().due(&tick(start), resumed + MOST_REST));
    }

    #[test]
    fn ticks_wait_longer_while_one_program_computes() {
        let start = Instant::now();
        let mut patience = Patience::new(BASE);
        let mut after = |program, waiting: &Waiting| {
            patience.moved(start, start, waiting, program);
            patience.limits().tick / 40
        };
        let computing = [
            after(Some(1), &tick(start)),
            after(Some(1), &tick(start)),
            after(Some(1), &tick(start)),
        ];
        assert_eq!(computing, [MS, 2 * MS, 4 * MS]);
        assert_eq!(after(Some(1), &tick(start)), 4 * MS, "bounded");
        assert_eq!(after(Some(2), &tick(start)), MS, "another program runs");
        assert_eq!(after(Some(2), &tick(start)), 2 * MS);
        assert_eq!(after(Some(2), &event(start)), MS, "something came from outside");
        assert_eq!(after(None, &tick(start)), MS, "the kernel works");
        assert_eq!(after(None, &tick(start)), MS, "however long");
    }

    #[test]
    fn where_checkpoints_are_slow_a_lone_program_keeps_95_percent() {
        let start = Instant::now();
        let mut patience = Patience::new(BASE);
        let mut after = |cost| {
            patience.moved(start, start + cost, &tick(start), Some(1));
            patience.limits().tick
        };
        assert_eq!([after(10 * MS), after(10 * MS)], [BASE, 2 * BASE]);
        assert_eq!(after(10 * MS), 190 * MS);
        assert_eq!(after(10 * MS), 190 * MS);
        for _ in 0..20 {
            after(100 * MS);
        }
        assert_eq!(after(100 * MS), MOST_TICK);
    }

    #[test]
    fn a_long_base_is_kept() {
        let patience = Patience::new(Duration::from_secs(1));
        assert_eq!(patience.limits().tick, Duration::from_secs(1));
    }
}
