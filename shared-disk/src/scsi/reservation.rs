//! A persistent reservation that lets one host write (PROTOCOL 14), of the type Write Exclusive, Registrants Only.
//!
//! The primary registers a key made from its incarnation, and reserves the disk. A backup that has won registers a key
//! of its own, and *preempts and aborts* every other. From then on the device itself refuses the old primary's writes,
//! those included that its kernel, its adapter or the network still carries, and those that had reached the device are
//! over. All hosts may still read, as a backup may have to. Keys bear a mark, so that the reservation of another
//! program is recognized, and refused instead of preempted.

use std::path::Path;

use super::cdb::{Change, Holder, ReservationType};
use super::device::{ScsiDevice, Unfit};
use super::{CommandFault, ScsiError};

/// The upper 16 bits of each of ftvm's keys: "FT".
const KEY_MARK: u64 = 0x4654;

/// How often the reservation is looked at until it holds. At most two sides change it at a time.
const LOOKS: u32 = 5;

/// The key with which a host registers (SPC-4 says *initiator* for a host's way to a device).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationKey(u64);

impl ReservationKey {
    /// The key of an incarnation: the mark, and 48 bits of the incarnation, which are random.
    #[must_use]
    pub fn of(incarnation: u128) -> ReservationKey {
        let low = u64::try_from(incarnation & 0xffff_ffff_ffff).unwrap_or(0);
        ReservationKey(KEY_MARK << 48 | low)
    }

    /// The key as the device knows it.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    fn is_ours(key: u64) -> bool {
        key >> 48 == KEY_MARK
    }
}

/// A disk that only one host may write to.
#[derive(Debug)]
pub struct Reservation<T = ScsiDevice> {
    device: T,
}

/// What a reservation needs of a device; tests bring one in memory.
pub(super) trait ReservationTarget {
    fn path(&self) -> &Path;
    fn keys(&self) -> Result<Vec<u64>, ScsiError>;
    fn holder(&self) -> Result<Option<Holder>, ScsiError>;
    fn change(&self, name: &'static str, change: Change) -> Result<(), ScsiError>;
}

impl ReservationTarget for ScsiDevice {
    fn path(&self) -> &Path {
        ScsiDevice::path(self)
    }

    fn keys(&self) -> Result<Vec<u64>, ScsiError> {
        self.registered()
    }

    fn holder(&self) -> Result<Option<Holder>, ScsiError> {
        ScsiDevice::holder(self)
    }

    fn change(&self, name: &'static str, change: Change) -> Result<(), ScsiError> {
        self.change_reservation(name, change)
    }
}

impl Reservation {
    /// Opens the disk at `path`. It must know reservations, and no other program may use them there.
    ///
    /// # Errors
    /// Any [`ScsiError`]; [`ScsiError::Unfit`] for what is no whole SCSI disk, such as a device that joins several
    /// paths.
    pub fn open(path: &Path) -> Result<Self, ScsiError> {
        let device = ScsiDevice::open(path)?;
        if !device.is_whole() {
            let (path, cause) = (path.to_owned(), Unfit::Partition);
            return Err(ScsiError::Unfit { path, cause });
        }
        let reservation = Reservation { device };
        reservation.others(ReservationKey(0))?;
        Ok(reservation)
    }
}

#[allow(private_bounds, reason = "only ScsiDevice is a target outside of tests")]
impl<T: ReservationTarget> Reservation<T> {
    /// Makes this host the only one that can write to the disk, from when this returns until somebody preempts `key`.
    /// Only for a side that has won the right to live: whoever else is registered is thrown out.
    ///
    /// # Errors
    /// Any [`ScsiError`]. Then this host may be registered, and another too: repeat the call, it is idempotent.
    pub fn take(&self, key: ReservationKey) -> Result<(), ScsiError> {
        self.others(key)?;
        self.device
            .change("PERSISTENT RESERVE OUT: REGISTER", Change::Register { key: key.0 })?;
        for _ in 0..LOOKS {
            let others = self.others(key)?;
            let step = match (self.device.holder()?, others.first()) {
                (Some(held), None) if held.key == key.0 => return self.held(key, held),
                (None, _) => self
                    .device
                    .change("PERSISTENT RESERVE OUT: RESERVE", Change::Reserve { key: key.0 }),
                // The holder goes first. It is the one that may be writing, and Linux's target (LIO) aborts the
                // commands of a holder and waits for their end, while it takes from others the registration alone
                // (`core_scsi3_pro_preempt`).
                (Some(held), other) => {
                    let victim = other.copied().filter(|_| held.key == key.0).unwrap_or(held.key);
                    let change = Change::PreemptAndAbort { key: key.0, victim };
                    self.device.change("PERSISTENT RESERVE OUT: PREEMPT AND ABORT", change)
                }
            };
            // In a conflict somebody was faster, or has gone meanwhile: look again.
            unless_conflict(step)?;
        }
        Err(self.not_held(
            key,
            format!("holder {:?}, keys {:x?}", self.device.holder()?, self.device.keys()?),
        ))
    }

    /// Gives the reservation back, and this host's registration, at a clean end.
    ///
    /// # Errors
    /// Any [`ScsiError`]. It is none if somebody else has taken it meanwhile.
    pub fn release(&self, key: ReservationKey) -> Result<(), ScsiError> {
        let change = Change::Unregister { key: key.0 };
        unless_conflict(self.device.change("PERSISTENT RESERVE OUT: REGISTER 0", change))
    }

    /// The keys of other hosts, which are ftvm's by their mark; any other key is an error.
    fn others(&self, key: ReservationKey) -> Result<Vec<u64>, ScsiError> {
        let mut others = self.device.keys()?;
        others.retain(|other| *other != key.0);
        let holder = self.device.holder()?.map(|held| held.key);
        match others
            .iter()
            .copied()
            .chain(holder)
            .find(|other| !ReservationKey::is_ours(*other))
        {
            Some(key) => Err(ScsiError::Foreign {
                path: self.device.path().to_owned(),
                key,
            }),
            None => Ok(others),
        }
    }

    /// The reservation is held by `key`, and must be of the right type.
    fn held(&self, key: ReservationKey, held: Holder) -> Result<(), ScsiError> {
        if held.kind == ReservationType::WriteExclusiveRegistrantsOnly {
            return Ok(());
        }
        Err(self.not_held(key, format!("a reservation of type {:?}", held.kind)))
    }

    fn not_held(&self, key: ReservationKey, found: String) -> ScsiError {
        ScsiError::NotHeld {
            path: self.device.path().to_owned(),
            expected: key.0,
            found,
        }
    }
}

/// A command's result, if a reservation conflict is none: then nothing was done.
fn unless_conflict(result: Result<(), ScsiError>) -> Result<(), ScsiError> {
    match result {
        Err(ScsiError::Command {
            fault: CommandFault::ReservationConflict,
            ..
        }) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
#[path = "reservation_tests.rs"]
mod tests;
