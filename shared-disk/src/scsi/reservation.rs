//! A persistent reservation that lets one host write (PROTOCOL 14): Write Exclusive, Registrants Only.
//!
//! The primary registers a key of its incarnation and reserves. A backup that has won registers its own, and preempts and
//! aborts every other: from then on the device itself refuses the old primary's writes, those included that its kernel, its
//! adapter or the network still carries, and those already at the device are over. Reading stays allowed to everyone, for a
//! backup may have to. Keys bear a mark, so that another program's reservation is refused and never preempted.

use std::path::Path;

use super::cdb::{Change, Holder, ReservationType};
use super::device::Device;
use super::{ScsiError, Trouble};

/// The upper 16 bits of each of our keys: "FT".
const MARK: u64 = 0x4654;

/// How often the reservation is looked at until it holds. Two sides at most change it at a time.
const LOOKS: u32 = 5;

/// An initiator's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of an incarnation: 48 bits of it, which are random, behind our mark.
    #[must_use]
    pub fn of(incarnation: u128) -> Key {
        let low = u64::try_from(incarnation & 0xffff_ffff_ffff).unwrap_or(0);
        Key(MARK << 48 | low)
    }

    /// As the device knows it.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    fn is_ours(key: u64) -> bool {
        key >> 48 == MARK
    }
}

/// A disk that only one host may write.
#[derive(Debug)]
pub struct Reservation<T = Device> {
    device: T,
}

/// What a reservation needs of a device.
pub(super) trait Target {
    fn path(&self) -> &Path;
    fn keys(&self) -> Result<Vec<u64>, ScsiError>;
    fn holder(&self) -> Result<Option<Holder>, ScsiError>;
    fn change(&self, name: &'static str, change: Change) -> Result<(), ScsiError>;
}

impl Target for Device {
    fn path(&self) -> &Path {
        Device::path(self)
    }

    fn keys(&self) -> Result<Vec<u64>, ScsiError> {
        self.registered()
    }

    fn holder(&self) -> Result<Option<Holder>, ScsiError> {
        Device::holder(self)
    }

    fn change(&self, name: &'static str, change: Change) -> Result<(), ScsiError> {
        self.change_reservation(name, change)
    }
}

impl Reservation {
    /// Opens the disk at `path` and sees whether it knows reservations and nobody else's program has one there.
    ///
    /// # Errors
    /// Any [`ScsiError`]; [`ScsiError::Unfit`] for what is no whole SCSI disk, or has several paths to it.
    pub fn open(path: &Path) -> Result<Self, ScsiError> {
        let device = Device::open(path)?;
        let unfit = |what: &str| {
            let (path, what) = (path.to_owned(), what.to_owned());
            Err(ScsiError::Unfit { path, what })
        };
        if !device.is_whole() {
            return unfit("is a partition: a reservation covers its whole disk, so reserve=on needs that");
        }
        let reservation = Reservation { device };
        reservation.others(Key(0))?;
        Ok(reservation)
    }
}

#[allow(private_bounds, reason = "only Device is a target outside of tests")]
impl<T: Target> Reservation<T> {
    /// From when this returns, only this host can write to the disk, as long as nobody preempts `key`. Only for a side that
    /// has won the right to live: whoever else is registered loses it.
    ///
    /// # Errors
    /// Any [`ScsiError`]. Then this host may be registered and another too: repeat it, it is idempotent.
    pub fn take(&self, key: Key) -> Result<(), ScsiError> {
        self.others(key)?;
        self.device
            .change("PERSISTENT RESERVE OUT: REGISTER", Change::Register { key: key.0 })?;
        for _ in 0..LOOKS {
            let others = self.others(key)?;
            let holder = self.device.holder()?;
            let change = match (holder, others.first()) {
                (Some(held), None) if held.key == key.0 => return self.held(key, held),
                (None, _) => self
                    .device
                    .change("PERSISTENT RESERVE OUT: RESERVE", Change::Reserve { key: key.0 }),
                // The holder first: it is the one that may be writing, and Linux's target (LIO) aborts commands only of a holder's key
                // and waits for their end (`core_scsi3_pro_preempt`); from other registrants it takes just the registration.
                (Some(held), other) => {
                    let victim = other.copied().filter(|_| held.key == key.0).unwrap_or(held.key);
                    let change = Change::PreemptAndAbort { key: key.0, victim };
                    self.device.change("PERSISTENT RESERVE OUT: PREEMPT AND ABORT", change)
                }
            };
            match change {
                // Somebody was faster, or has gone meanwhile: look again.
                Ok(())
                | Err(ScsiError::Command {
                    trouble: Trouble::ReservationConflict,
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.not_held(
            key,
            format!("holder {:?}, keys {:x?}", self.device.holder()?, self.device.keys()?),
        ))
    }

    /// Gives the reservation back, and this host's registration, at a clean end.
    ///
    /// # Errors
    /// Any [`ScsiError`]; that somebody else has taken it meanwhile is none.
    pub fn release(&self, key: Key) -> Result<(), ScsiError> {
        let change = Change::Unregister { key: key.0 };
        match self.device.change("PERSISTENT RESERVE OUT: REGISTER 0", change) {
            Ok(())
            | Err(ScsiError::Command {
                trouble: Trouble::ReservationConflict,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys of others, all ours by their mark.
    fn others(&self, key: Key) -> Result<Vec<u64>, ScsiError> {
        let mut others = self.device.keys()?;
        others.retain(|other| *other != key.0);
        let holder = self.device.holder()?.map(|held| held.key);
        match others.iter().copied().chain(holder).find(|other| !Key::is_ours(*other)) {
            Some(key) => Err(ScsiError::Foreign {
                path: self.device.path().to_owned(),
                key,
            }),
            None => Ok(others),
        }
    }

    fn held(&self, key: Key, held: Holder) -> Result<(), ScsiError> {
        if held.kind == ReservationType::WriteExclusiveRegistrantsOnly {
            return Ok(());
        }
        Err(self.not_held(key, format!("a reservation of type {:?}", held.kind)))
    }

    fn not_held(&self, key: Key, found: String) -> ScsiError {
        ScsiError::NotHeld {
            path: self.device.path().to_owned(),
            expected: key.0,
            found,
        }
    }
}

#[cfg(test)]
#[path = "reservation_tests.rs"]
mod tests;
