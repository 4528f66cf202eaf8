//! Has a guest stand still for a share of its time, so that its backup keeps up (PROTOCOL 9).
//!
//! What counts is the processor time of the vCPU's thread, not the time that goes by. A step in which the host had no processor
//! to give, the process was stopped, or the link took nothing more, was a standstill already; counted as the guest's own,
//! a second of it was followed by nine more, in which nobody heard the guest.

use std::time::Duration;

/// A guest that is to stand still now and then runs about this long in between.
const BETWEEN_PAUSES: Duration = Duration::from_millis(5);

/// Most time that such a guest stands still at once: a little more than nine times the default patience, for which it may run
/// without an exit. What comes from outside waits no longer than that.
const MOST_PAUSE: Duration = Duration::from_millis(300);

/// How long a guest stands still after it has run for `ran`, if that is to be so many thousandths of the time: 300 ms at most.
#[must_use]
pub fn pause(ran: Duration, idle_permille: u32) -> Duration {
    let idle = idle_permille.min(999);
    (ran * idle / (1000 - idle)).min(MOST_PAUSE)
}

/// Knows when the guest has last stood still.
#[derive(Debug, Default)]
pub struct Brake {
    /// Processor time used until then; nothing while the guest need not stand still.
    used: Option<Duration>,
}

impl Brake {
    /// The guest has run a step, its thread has `used` so much of its processor in its life, and it is to stand still for so
    /// many thousandths of the time: how long it does so now.
    pub fn stepped(&mut self, idle_permille: u32, used: impl FnOnce() -> Duration) -> Duration {
        if idle_permille == 0 {
            self.used = None;
            return Duration::ZERO;
        }
        let used = used();
        let ran = used.saturating_sub(*self.used.get_or_insert(used));
        if ran < BETWEEN_PAUSES {
            return Duration::ZERO;
        }
        self.used = Some(used);
        pause(ran, idle_permille)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_guest_that_is_slowed_stands_still_for_its_share_and_never_for_long() {
        assert_eq!(pause(ms(30), 0), ms(0));
        assert_eq!(pause(ms(5), 500), ms(5));
        assert_eq!(pause(ms(5), 900), ms(45));
        assert_eq!(pause(ms(30), 900), ms(270), "one patience without an exit");
        assert_eq!(pause(ms(33), 900), ms(297));
        assert_eq!(pause(ms(34), 900), MOST_PAUSE);
        assert_eq!(pause(Duration::from_secs(3600), 1000), MOST_PAUSE);
    }

    #[test]
    fn only_what_the_guest_ran_counts() {
        let mut brake = Brake::default();
        assert_eq!(brake.stepped(0, || unreachable!("costs a system call")), ms(0));
        assert_eq!(
            brake.stepped(900, || ms(10_000)),
            ms(0),
            "what was before counts for nothing"
        );
        assert_eq!(brake.stepped(900, || ms(10_004)), ms(0));
        assert_eq!(brake.stepped(900, || ms(10_005)), ms(45));
        assert_eq!(brake.stepped(900, || ms(10_009)), ms(0), "that was paid for");
        assert_eq!(brake.stepped(500, || ms(10_011)), ms(6));
        assert_eq!(brake.stepped(0, || unreachable!()), ms(0));
        assert_eq!(brake.stepped(900, || ms(20_000)), ms(0), "nor what it ran undisturbed");
    }
}
