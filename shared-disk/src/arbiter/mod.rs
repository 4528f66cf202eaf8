//! The atomic test-and-set that decides who may live (PROTOCOL 10 and 11; paper section 2.3).
//!
//! Two sides that have lost sight of each other both want to go on, and at most one may. Shared storage decides: it
//! holds one register, the *generation*, and a side moves it from G to G+1 with a compare-and-swap, where G is the
//! generation under which its own state was received. "The next free number" would not do: a side that slept through a
//! whole succession would win a generation that its state knows nothing of.
//!
//! [`TestAndSet`] is what the roles see; [`SharedDirectory`] keeps the register as files on a shared file system;
//! [`Claimant`] asks on a helper thread, because a dead file server does not answer, it hangs.

mod claimant;
mod directory;
mod nonce;
mod record;

pub use claimant::Claimant;
pub use directory::SharedDirectory;
pub use nonce::NONCE_BYTES;
pub use record::{LifeState, Record};

use std::path::PathBuf;

use thiserror::Error;

/// What a claim came to. Either answer is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// I own `generation` and may go live once my lease is outwaited and my log drained (PROTOCOL 13).
    Won {
        /// The claimed generation plus one.
        generation: u64,
    },
    /// My state is superseded: I must exit with the loser's code.
    Lost {
        /// The newest generation found; 0 when there is none.
        generation: u64,
        /// Its owner; 0 when there is none.
        owner: u128,
    },
}

/// Why there is no outcome. No error is a loss: the claimant neither lives nor exits, it waits and says why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArbiterError {
    /// The storage does not answer, or not clearly. The claim may have been executed: repeat it, it is idempotent.
    #[error("shared storage unreachable: {what}")]
    Unreachable {
        /// The call, its path and the answer.
        what: String,
    },
    /// The storage answers, but waiting alone will not mend it.
    #[error("shared storage unusable: {what}. {advice}")]
    Broken {
        /// The call, its path and the answer.
        what: String,
        /// What a person can do.
        advice: &'static str,
    },
    /// The guest has an owner that did not end cleanly: it may be running elsewhere.
    #[error(
        "the guest is owned by {record}; it may still be running there. If you are sure that it is not, remove the \
         directory {} and start again",
        directory.display()
    )]
    Taken {
        /// The guest's directory.
        directory: PathBuf,
        /// The owner.
        record: Box<Record>,
    },
}

impl ArbiterError {
    /// Whether the same call may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, ArbiterError::Unreachable { .. })
    }
}

/// The register. Implementations must be safe against crashes at any point and against any delay of any call.
pub trait TestAndSet: Send + Sync {
    /// Moves the register from `generation`, owned by `owner`, to `generation + 1`, owned by `me`.
    ///
    /// `generation` is the one under which the caller's state was received and `owner` the incarnation that owned it;
    /// `me` is the caller's incarnation, not 0. At most one incarnation ever wins a generation. The call may block for
    /// as long as the storage is silent. After an error it may have been executed all the same, even later: repeating
    /// it with the same arguments reads the truth back, and a repeated claim by the winner is won again, until someone
    /// else has moved on.
    ///
    /// # Errors
    /// When the storage gives no clear answer; see [`ArbiterError`]. None of them is a loss.
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<Outcome, ArbiterError>;
}
