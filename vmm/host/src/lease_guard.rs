//! The timer that kills this process when its lease ends, even while it is stopped (PROTOCOL 14).
//!
//! A late frame or console byte of a side that has lost its lease is a duplicate; a late write to a shared disk is
//! corruption. Checking the lease before the write is not enough: the process may be stopped between check and write,
//! and go on after the other side has gone live. So the kernel is told to kill it: a POSIX timer on CLOCK_BOOTTIME, which
//! also counts suspension, with SIGKILL, which a stopped process dies of without being continued. Re-arming is one system
//! call (0.3 us). What it does not cover is a host whose own clock stops, and data that a kernel has already queued.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// Why there is no lease guard. Without one no write to shared storage may be released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseGuardError {
    /// Two owners would re-arm each other's deadline.
    #[error("this process has a lease guard already: one lease, one guard")]
    Taken,
    /// The kernel refused the timer.
    #[error("lease guard: cannot {what}: {source}")]
    Timer { what: &'static str, source: io::Error },
}

/// There is one lease per process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The armed, or disarmed, timer. Dropping it disarms it.
#[derive(Debug)]
pub struct LeaseGuard {
    timer: Timer,
}

#[allow(unsafe_code, reason = "nix's timer is Send in all but name")]
// SAFETY: a `timer_t` is the kernel's number for a timer of this process, valid in each of its threads; nix keeps it
// as a pointer only because C does.
unsafe impl Send for LeaseGuard {}

impl LeaseGuard {
    /// Makes the process's one guard, disarmed.
    ///
    /// # Errors
    /// [`LeaseGuardError::Taken`], or [`LeaseGuardError::Timer`] if the kernel has no timer left (RLIMIT_SIGPENDING).
    pub fn new() -> Result<LeaseGuard, LeaseGuardError> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(LeaseGuardError::Taken);
        }
        let kill = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        });
        match Timer::new(ClockId::CLOCK_BOOTTIME, kill) {
            Ok(timer) => Ok(LeaseGuard { timer }),
            Err(errno) => {
                TAKEN.store(false, Ordering::Release);
                let what = "create a timer that sends SIGKILL";
                let source = errno.into();
                Err(LeaseGuardError::Timer { what, source })
            }
        }
    }

    /// From now on the process dies when CLOCK_BOOTTIME reaches `deadline_ns`, unless this is called again or the guard
    /// disarmed. A deadline that has passed kills at once.
    ///
    /// # Errors
    /// [`LeaseGuardError::Timer`]; the guard is then in the state it was in before.
    pub fn arm(&mut self, deadline_ns: u64) -> Result<(), LeaseGuardError> {
        // timer_settime(2) takes zero for "disarm": the one deadline that must not be passed on as it is.
        let deadline = TimeSpec::from_duration(Duration::from_nanos(deadline_ns.max(1)));
        self.set("arm it", Expiration::OneShot(deadline))
    }

    /// The process may live on: nothing is under way that must not outlive the lease.
    ///
    /// # Errors
    /// [`LeaseGuardError::Timer`].
    pub fn disarm(&mut self) -> Result<(), LeaseGuardError> {
        self.set("disarm it", Expiration::OneShot(TimeSpec::new(0, 0)))
    }

    fn set(&mut self, what: &'static str, expiration: Expiration) -> Result<(), LeaseGuardError> {
        let absolute = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        self.timer
            .set(expiration, absolute)
            .map_err(|errno| LeaseGuardError::Timer {
                what,
                source: errno.into(),
            })
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        // The timer itself is deleted by its own destructor, which runs after this one: until then another guard may
        // exist for an instant, with a timer of its own.
        TAKEN.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "processes that the guard is to kill are forked")]
mod tests {
    use std::time::Instant;

    use logging_channel::clock::boottime_ns;
    use nix::sys::signal::{kill, raise};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    /// Longer than anything here takes on a loaded machine.
    const PATIENCE: Duration = Duration::from_secs(60);
    const MS: u64 = 1_000_000;

    /// Runs `body` in a child process and returns its id. The child exits with `body`'s answer.
    fn child(body: impl FnOnce() -> i32) -> Pid {
        // SAFETY: the child calls only system calls (no allocation, no lock) before it ends by _exit.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                // Other tests of this process drop sockets and expect them to be gone.
                // SAFETY: the child has no use for any descriptor, and nothing of the parent changes.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                let code = body();
                // SAFETY: _exit is async-signal-safe and does not return.
                unsafe { libc::_exit(code) }
            }
        }
    }

    fn guard() -> LeaseGuard {
        // The parent test process may hold the flag in another test; the child has a copy of it and no guard.
        TAKEN.store(false, Ordering::Release);
        LeaseGuard::new().expect("a timer")
    }

    fn stop_here() {
        raise(Signal::SIGSTOP).expect("stops");
    }

    /// Waits for the child's end; kills it when that takes too long.
    fn end_of(pid: Pid) -> WaitStatus {
        let limit = Instant::now() + PATIENCE;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("waits") {
                WaitStatus::StillAlive if Instant::now() < limit => std::thread::sleep(Duration::from_millis(1)),
                WaitStatus::StillAlive => {
                    kill(pid, Signal::SIGKILL).expect("kills");
                    waitpid(pid, None).expect("waits");
                    return WaitStatus::StillAlive;
                }
                end => return end,
            }
        }
    }

    #[test]
    fn a_stopped_process_dies_at_its_deadline() {
        let pid = child(|| {
            let mut guard = guard();
            guard.arm(boottime_ns() + 2_000 * MS).expect("arms");
            stop_here();
            7
        });
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("waits");
        assert_eq!(
            stopped,
            WaitStatus::Stopped(pid, Signal::SIGSTOP),
            "it was stopped, alive, before the deadline"
        );
        assert_eq!(
            end_of(pid),
            WaitStatus::Signaled(pid, Signal::SIGKILL, false),
            "nobody continued it"
        );
    }

    #[test]
    fn a_disarmed_guard_kills_nobody() {
        let pid = child(|| {
            let mut guard = guard();
            guard.arm(boottime_ns() + 500 * MS).expect("arms");
            guard.disarm().expect("disarms");
            std::thread::sleep(Duration::from_millis(700));
            7
        });
        assert_eq!(end_of(pid), WaitStatus::Exited(pid, 7));
    }

    #[test]
    fn the_last_deadline_counts() {
        let pid = child(|| {
            let mut guard = guard();
            let begun = boottime_ns();
            while boottime_ns() < begun + 60 * MS {
                guard.arm(boottime_ns() + 500 * MS).expect("arms");
            }
            guard.arm(begun + 100 * MS).expect("arms");
            std::thread::sleep(Duration::from_secs(10));
            7
        });
        assert_eq!(end_of(pid), WaitStatus::Signaled(pid, Signal::SIGKILL, false));
    }

    #[test]
    fn a_deadline_in_the_past_kills_at_once_even_zero() {
        for deadline in [0, 1, MS] {
            let pid = child(|| {
                let mut guard = guard();
                let _ = guard.arm(deadline);
                std::thread::sleep(Duration::from_secs(10));
                7
            });
            assert_eq!(
                end_of(pid),
                WaitStatus::Signaled(pid, Signal::SIGKILL, false),
                "deadline {deadline}"
            );
        }
    }

    #[test]
    fn one_guard_per_process() {
        let pid = child(|| {
            let first = guard();
            let second = matches!(LeaseGuard::new(), Err(LeaseGuardError::Taken));
            drop(first);
            let third = LeaseGuard::new().is_ok();
            if second && third { 7 } else { 1 }
        });
        assert_eq!(end_of(pid), WaitStatus::Exited(pid, 7));
    }

    #[test]
    fn boottime_advances() {
        let first = boottime_ns();
        let second = boottime_ns();
        assert!(0 < first && first <= second);
    }
}
