//! The atomic test-and-set that decides who may live (PROTOCOL 10 and 11; paper section 2.3).
//!
//! Two sides that have lost sight of each other both want to go on, and at most one may. Shared storage decides: it
//! holds one register, the *generation*, and a side moves it from G to G+1 with a compare-and-swap, where G is the
//! generation under which its own state was received. "The next free number" would not do: a side that slept through a
//! whole succession would win a generation that its state knows nothing of.
//!
//! [`TestAndSet`] is what the roles see, and [`Arbiter`] adds the beginning and the end of a life. [`SharedDirectory`]
//! keeps the register as files on a shared file system, [`SharedLun`] as a block of a SCSI device that both hosts see, and
//! [`Etcd`] as a key of an etcd cluster; what a value of the register means is the same code for all three (`register`).
//! [`Storage`] is how users name one. [`Claimant`] asks on a helper thread, because a dead file server does not answer, it
//! hangs.

mod claimant;
mod directory;
mod etcd;
mod lun;
mod nonce;
mod record;
mod register;
mod storage;

pub use claimant::Claimant;
pub use directory::SharedDirectory;
pub use etcd::{Endpoint, Etcd};
pub use lun::SharedLun;
pub use nonce::NONCE_BYTES;
pub use record::{LifeState, Record};
pub use storage::Storage;

pub(crate) use directory::read_bounded;
pub(crate) use record::{decimal, hex_id, host_name, is_host};

use std::fmt::Debug;

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
        "the guest is owned by {record}; it may still be running there. If you are sure that it is not, {remedy} and \
         start again"
    )]
    Taken {
        /// How a person frees the guest.
        remedy: String,
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

/// A register with what surrounds it in a guest's life: all that a host needs of the shared storage. Every call may block
/// for as long as the storage is silent.
pub trait Arbiter: TestAndSet + Debug {
    /// Starts a life of the guest as incarnation `me`: the swap from "never started" or "ended" to owned. Returns the
    /// generation won, 1 for a first start. A repeated start by the owner succeeds.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when the guest has an owner that has not ended; else as [`TestAndSet::claim`].
    fn start(&self, me: u128) -> Result<u64, ArbiterError>;

    /// Ends the guest's life cleanly (PROTOCOL 18), so that the next start works. Only the owner can; repeating it is
    /// harmless.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when someone else owns the newest generation; else as [`TestAndSet::claim`].
    fn end(&self, me: u128) -> Result<(), ArbiterError>;

    /// Ends the life of an owner that died without a clean end, whoever that was. Only a person can know that it does not
    /// live any more. The dead stay dead: the end is a swap as any other, and a late claim of theirs loses.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`]; [`ArbiterError::Broken`] when the guest was never started.
    fn disown(&self) -> Result<(), ArbiterError>;

    /// The newest generation's record: who lives or, if it says so, who has ended; `None` for a guest that was never started
    /// here.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`].
    fn last(&self) -> Result<Option<Record>, ArbiterError>;

    /// Tries what a claim needs and leaves nothing behind: a backup finds out before it matters that it may not write.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`]; the guest must have been started.
    fn check_access(&self) -> Result<(), ArbiterError>;

    /// Leaves `bytes` (at most [`NONCE_BYTES`]) under `name` for the other host to read on its own way to the storage, so
    /// that storage that is not shared is found when a backup joins (PROTOCOL 10). Replaces an older nonce of that name; a
    /// guest need keep no more than one.
    ///
    /// # Errors
    /// When the name is not 1 to 64 letters, digits, `.`, `-` or `_`, the nonce is too long, or the storage fails.
    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError>;

    /// Reads what the other host wrote under `name`.
    ///
    /// # Errors
    /// As [`Arbiter::write_nonce`]; [`ArbiterError::Broken`] when it is not there, for then the two hosts do not see the
    /// same storage.
    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError>;

    /// Removes the nonce `name`; one that is not there is removed already.
    ///
    /// # Errors
    /// As [`Arbiter::write_nonce`].
    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError>;
}
