//! The atomic test-and-set that decides who may live (PROTOCOL 10 and 11; paper section 2.3).
//!
//! Two sides that have lost sight of each other both want to go on, and at most one may. Shared storage decides. It
//! holds one register, the *generation*, and a side moves it from G to G+1 with a compare-and-swap, where G is the
//! generation under which its own state was received. Taking simply the next free number would not do: a side that
//! slept while others failed over and ended would win a generation that its state knows nothing of.
//!
//! [`TestAndSet`] is the claim alone, and [`Arbiter`] adds the beginning and the end of a guest's life.
//! [`SharedDirectory`] keeps the register as files on a shared file system, [`SharedLun`] as a block of a SCSI device
//! that both hosts see, and `etcd` as a key of an etcd cluster. What a value of the register means is decided by the
//! same code for all three (`register`). [`SharedStorage`] is how users name one. [`Claimant`] claims on a helper
//! thread, because a dead file server does not answer with an error: the call hangs.

mod claimant;
mod directory;
mod etcd;
mod lun;
mod record;
mod register;
mod storage;

pub use claimant::Claimant;
pub use directory::SharedDirectory;
pub use etcd::{Endpoint, EndpointError};
pub use lun::SharedLun;
pub use record::{GenerationRecord, LifeState};
pub use register::NONCE_BYTES;
pub use storage::{SharedStorage, StorageNameError};

#[cfg(feature = "fuzzing")]
pub use self::{etcd::fuzz as fuzz_etcd_answer, lun::fuzz as fuzz_lun_cell, record::fuzz as fuzz_generation_record};

use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

/// The answer to a claim. Either one is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The claimant owns `generation`. It may go live once the other's lease is over and its own log is drained
    /// (PROTOCOL 13).
    Won {
        /// The claimed generation plus one.
        generation: u64,
    },
    /// The claimant's state is superseded: it must exit with the loser's code.
    Lost {
        /// The newest generation found; 0 when there is none.
        generation: u64,
        /// Its owner; 0 when there is none.
        owner: u128,
    },
}

/// Why there is no outcome. No error is a loss: the claimant neither lives nor exits, it waits and says why.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The storage does not answer, or not clearly. The claim may have been executed: repeat it, it is idempotent.
    #[error("shared storage unreachable: {cause}")]
    Unreachable {
        /// What was asked of the storage, and its answer.
        #[source]
        cause: Arc<dyn Error + Send + Sync>,
    },
    /// The storage answers, but waiting alone will not mend it.
    #[error("shared storage unusable: {cause}. {advice}")]
    Broken {
        /// What was asked of the storage, and its answer.
        #[source]
        cause: Arc<dyn Error + Send + Sync>,
        /// What a person can do: a sentence without its full stop.
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
        record: Box<GenerationRecord>,
    },
}

impl ArbiterError {
    /// An [`ArbiterError::Unreachable`].
    #[must_use]
    pub fn unreachable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        ArbiterError::Unreachable {
            cause: cause.into().into(),
        }
    }

    /// An [`ArbiterError::Broken`].
    #[must_use]
    pub fn broken(cause: impl Into<Box<dyn Error + Send + Sync>>, advice: &'static str) -> Self {
        ArbiterError::Broken {
            cause: cause.into().into(),
            advice,
        }
    }

    /// Whether the same call may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, ArbiterError::Unreachable { .. })
    }
}

/// Errors are equal if they ask for the same and say the same. Their causes cannot be compared.
impl PartialEq for ArbiterError {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.to_string() == other.to_string()
    }
}

impl Eq for ArbiterError {}

/// The claim. Implementations must be safe against crashes at any point and against any delay of any call.
pub trait TestAndSet: Send + Sync {
    /// Moves the register from `generation`, owned by `owner`, to `generation + 1`, owned by `me`.
    ///
    /// `generation` is the one under which the caller's state was received, and `owner` the incarnation that owned it.
    /// `me` is the caller's incarnation and not 0. At most one incarnation ever wins a generation. The call may block
    /// for as long as the storage is silent. After an error it may have been executed all the same, or be executed
    /// later. Repeating it with the same arguments tells: the winner wins again, until someone else has moved the
    /// register on.
    ///
    /// # Errors
    /// When the storage gives no clear answer; see [`ArbiterError`]. None of them is a loss.
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<ClaimOutcome, ArbiterError>;
}

/// All that a host needs of the storage that decides: the claim, the beginning and the end of a guest's life, and what
/// a joining backup checks. Every call may block for as long as the storage is silent.
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

    /// Ends the life of an owner that died without a clean end, whoever that was. Only a person can know that it lives
    /// no more. Should a side of that pair wake up after all, its claim loses, for the end is a swap like any other.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`]; [`ArbiterError::Broken`] when the guest was never started.
    fn disown(&self) -> Result<(), ArbiterError>;

    /// The newest generation's record: who lives or, if it says so, who has ended; `None` for a guest that was never
    /// started here.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`].
    fn last(&self) -> Result<Option<GenerationRecord>, ArbiterError>;

    /// Tries what a claim needs and leaves nothing behind, so that a backup finds out before it matters that it may not
    /// write.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`]; the guest must have been started.
    fn check_access(&self) -> Result<(), ArbiterError>;

    /// Leaves a nonce of at most [`NONCE_BYTES`] under `name`, which the other host reads on its own way to the
    /// storage: when a backup joins, this shows whether the storage is really shared (PROTOCOL 10). It replaces an
    /// older nonce of that name. An arbiter may keep only the latest nonce of a guest.
    ///
    /// # Errors
    /// When the name is not 1 to 64 letters, digits, `.`, `-` or `_`, the nonce is too long, or the storage fails.
    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError>;

    /// Reads what the other host wrote under `name`.
    ///
    /// # Errors
    /// As [`Arbiter::write_nonce`]; [`ArbiterError::Broken`] when it is not there, for then the two hosts do not see
    /// the same storage.
    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError>;

    /// Removes the nonce `name`, if it is there.
    ///
    /// # Errors
    /// As [`Arbiter::write_nonce`].
    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError>;
}
