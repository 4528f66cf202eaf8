//! The thread that a live guest has for itself: it runs the guest, waits while the guest sleeps, and stands still for the share of
//! the time that a slow backup needs ([`Brake`]). Beside it a [`monitor`] kicks a guest that does not exit while something waits.

mod monitor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::Machine;
use ftvm_roles::live::{Brake, Live, LiveError, Next, Sink, Totals};
use ftvm_schema::entry::EndReason;
use nix::time::{ClockId, clock_gettime};

use crate::queue::{EventQueue, EventSender};
use monitor::Monitor;

/// Lives until the guest ends, is stopped, or cannot go on. `observed` is the other end of the queue that `live` reads.
///
/// # Errors
/// If the hypervisor or the sink fails.
pub fn run<C: Cpu, S: Sink>(
    mut live: Live<C, S, EventQueue>,
    observed: EventSender,
) -> Result<(Machine<C>, S, EndReason, Totals), LiveError> {
    let kick = live.machine().cpu().kicker();
    let _monitor = Monitor::start(Arc::clone(live.watched()), observed, kick, live.config().patience);
    let mut next = live.begin(&Instant::now)?;
    let mut brake = Brake::default();
    loop {
        next = match next {
            Next::Run => {
                let next = live.step(&Instant::now)?;
                let pause = brake.stepped(live.sink().idle_permille(), thread_time);
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
                next
            }
            Next::Wait(deadline) => {
                let event = live.events().recv_deadline(deadline);
                live.woken(event, &Instant::now)?
            }
            Next::Ended(reason) => {
                live.finish(&reason)?;
                let (machine, sink, totals) = live.into_parts();
                return Ok((machine, sink, reason, totals));
            }
        };
    }
}

/// Processor time that the calling thread has used, a guest's on it included.
///
/// # Panics
/// Never on Linux: every thread has this clock.
#[must_use]
fn thread_time() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has CLOCK_THREAD_CPUTIME_ID");
    Duration::from(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_uses_nothing() {
        let begun = thread_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time() - begun < Duration::from_millis(40));
        while thread_time() - begun < Duration::from_millis(40) {}
    }
}
