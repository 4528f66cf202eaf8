//! What a pair has agreed on.

use std::time::Duration;

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::{DiskReads, Welcome};

/// Nanoseconds of silence after which either side gives up a join: the backup takes the state, which may take it a while.
pub(crate) const JOIN_SILENCE_NS: u64 = 10_000_000_000;

/// What is fixed for one side's life in a pair. The primary chooses the times, and its backups get them with the welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// This side.
    pub me: Incarnation,
    /// The guest, by a random number that every life of it has anew.
    pub guest: u128,
    /// The generation under which this life begins.
    pub generation: Generation,
    /// Nanoseconds of silence after which the other side is taken for dead.
    pub detection_ns: u64,
    /// Nanoseconds for which an echo lets the primary release; not more than `detection_ns`.
    pub lease_ns: u64,
    /// Nanoseconds for which a tick waits for the guest to exit by itself.
    pub patience_ns: u64,
    /// Who brings what the guest reads from shared disks to the backup.
    pub disk_reads: DiskReads,
}

impl Terms {
    /// Those of a backup `me` that has been welcomed.
    #[must_use]
    pub fn welcomed(me: Incarnation, welcome: &Welcome) -> Self {
        Terms {
            me,
            guest: welcome.guest,
            generation: welcome.generation,
            detection_ns: welcome.detection_ns,
            lease_ns: welcome.lease_ns,
            patience_ns: welcome.patience_ns,
            disk_reads: welcome.disk_reads,
        }
    }

    /// The detection time.
    #[must_use]
    pub fn detection(&self) -> Duration {
        Duration::from_nanos(self.detection_ns)
    }

    /// How long a tick waits.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_nanos(self.patience_ns)
    }
}
