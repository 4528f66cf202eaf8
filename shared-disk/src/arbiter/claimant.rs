//! A claim with a time limit on the waiting, not on the claim.
//!
//! A call into a dead file server hangs, and may succeed minutes later. [`Claimant`] therefore makes each call on a
//! helper thread and lets the caller stop *waiting*; the claim itself cannot be taken back. That is safe because
//! suspicion is final (PROTOCOL 11): a side that has once asked never again serves under the old generation, so a win
//! that arrives late is still a win. The caller learns of it by waiting again, or by asking again, as a claim is
//! idempotent. If a process exits before its hung claim is carried out, the generation may come to have a dead owner:
//! the other side then loses and exits too, which costs availability and never safety.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use super::{ArbiterError, ClaimOutcome, TestAndSet};

/// Why there is no answer from the storage.
#[derive(Debug, thiserror::Error)]
enum ClaimantError {
    #[error("no answer to the test-and-set within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the test-and-set's helper thread panicked")]
    Panicked,
    #[error("cannot start a helper thread: {0}")]
    Thread(#[source] io::Error),
}

type Claimed = Result<ClaimOutcome, ArbiterError>;

/// One incarnation's claim to one generation, repeated until it is answered. At most one call is under way at a time,
/// so a storage that hangs for a day costs one thread.
pub struct Claimant {
    arbiter: Arc<dyn TestAndSet>,
    generation: u64,
    owner: u128,
    me: u128,
    /// Where the answer to a call will come that has not returned.
    under_way: Option<Receiver<Claimed>>,
}

impl std::fmt::Debug for Claimant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Claimant {
            generation,
            owner,
            me,
            under_way,
            ..
        } = self;
        write!(
            f,
            "Claimant({me:032x} after {generation} of {owner:032x}, under way: {})",
            under_way.is_some()
        )
    }
}

impl Claimant {
    /// A claim that has not been made yet. The arguments are those of [`TestAndSet::claim`].
    #[must_use]
    pub fn new(arbiter: Arc<dyn TestAndSet>, generation: u64, owner: u128, me: u128) -> Self {
        Claimant {
            arbiter,
            generation,
            owner,
            me,
            under_way: None,
        }
    }

    /// Makes the claim, or goes on waiting for the one that is under way, for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`TestAndSet::claim`], and [`ArbiterError::Unreachable`] when the storage stayed silent: call again.
    pub fn claim_with_timeout(&mut self, timeout: Duration) -> Claimed {
        let receiver = match self.under_way.take() {
            Some(receiver) => receiver,
            None => self.begin()?,
        };
        match receiver.recv_timeout(timeout) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.under_way = Some(receiver);
                Err(ArbiterError::unreachable(ClaimantError::Silent(timeout)))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ArbiterError::broken(
                ClaimantError::Panicked,
                "This is a bug in ftvm: please report it with the log",
            )),
        }
    }

    /// Makes the call on a thread of its own.
    fn begin(&self) -> Result<Receiver<Claimed>, ArbiterError> {
        let (sender, receiver) = sync_channel(1);
        let (arbiter, generation, owner, me) = (Arc::clone(&self.arbiter), self.generation, self.owner, self.me);
        let helper = thread::Builder::new().name("test-and-set".to_owned());
        // A caller that has gone away does not want the answer any more: the send may fail.
        let call = move || drop(sender.send(arbiter.claim(generation, owner, me)));
        match helper.spawn(call) {
            Ok(_) => Ok(receiver),
            Err(cause) => Err(ArbiterError::unreachable(ClaimantError::Thread(cause))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Hangs until the gate opens, then counts the call and wins.
    struct Slow {
        gate: Mutex<Receiver<()>>,
        calls: AtomicU32,
    }

    impl TestAndSet for Slow {
        fn claim(&self, generation: u64, _: u128, _: u128) -> Claimed {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.gate.lock().recv().expect("the test opens the gate");
            Ok(ClaimOutcome::Won {
                generation: generation + 1,
            })
        }
    }

    #[test]
    fn a_late_win_is_a_win_and_only_one_call_hangs() {
        let (open, gate) = sync_channel(1);
        let slow = Arc::new(Slow {
            gate: Mutex::new(gate),
            calls: AtomicU32::new(0),
        });
        let mut claimant = Claimant::new(slow.clone(), 4, 1, 2);
        for _ in 0..3 {
            let error = claimant.claim_with_timeout(Duration::from_millis(5)).unwrap_err();
            assert!(error.is_retryable(), "{error}");
        }
        open.send(()).unwrap();
        assert_eq!(
            claimant.claim_with_timeout(Duration::from_secs(60)),
            Ok(ClaimOutcome::Won { generation: 5 })
        );
        assert_eq!(slow.calls.load(Ordering::SeqCst), 1);
        open.send(()).unwrap();
        assert_eq!(
            claimant.claim_with_timeout(Duration::from_secs(60)),
            Ok(ClaimOutcome::Won { generation: 5 })
        );
        assert_eq!(slow.calls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_panicking_helper_is_an_error() {
        struct Faulty;
        impl TestAndSet for Faulty {
            fn claim(&self, _: u64, _: u128, _: u128) -> Claimed {
                panic!("planted")
            }
        }
        let answer = Claimant::new(Arc::new(Faulty), 0, 0, 1).claim_with_timeout(Duration::from_secs(60));
        assert!(matches!(answer, Err(ArbiterError::Broken { .. })), "{answer:?}");
    }
}
