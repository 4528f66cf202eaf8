//! Disks that the device itself keeps other hosts from writing (PROTOCOL 14): the reservations of a host's disks with
//! `reserve=on`.

use std::path::Path;
use std::time::Duration;

use logging_channel::clock::boottime_ns;
use shared_disk::scsi::{Reservation, ReservationKey, ScsiError};

/// How long a device that does not answer is asked again. Without its reservation a side does not go live.
const PATIENCE: Patience = Patience {
    // As long as an array may take to move a LUN to its other controller, twice. A command under way then has its own limit.
    limit: Duration::from_secs(60),
    pause: Duration::from_secs(1),
};

#[derive(Clone, Copy, Debug)]
struct Patience {
    /// After this no further attempt begins.
    limit: Duration,
    /// Between two attempts.
    pause: Duration,
}

/// The reservations of this host's disks.
#[derive(Debug, Default)]
pub struct Reservations {
    disks: Vec<Reservation>,
    key: Option<ReservationKey>,
}

impl Reservations {
    /// A further disk.
    ///
    /// # Errors
    /// If it is no SCSI disk, knows no reservations, belongs to another program, or stays silent.
    pub fn add(&mut self, path: &Path) -> Result<(), ScsiError> {
        self.disks.push(patiently(PATIENCE, || Reservation::open(path))?);
        Ok(())
    }

    /// Takes all of them for incarnation `me`.
    ///
    /// # Errors
    /// If a device refuses, or stays silent.
    pub fn take(&mut self, me: u128) -> Result<(), ScsiError> {
        let key = ReservationKey::of(me);
        for disk in &self.disks {
            patiently(PATIENCE, || disk.take(key))?;
        }
        self.key = Some(key);
        Ok(())
    }

    /// Gives back those that were taken.
    pub fn release(&mut self) {
        let Some(key) = self.key.take() else { return };
        for disk in &self.disks {
            if let Err(error) = disk.release(key) {
                tracing::warn!("a disk stays reserved until its next owner takes it: {error}");
            }
        }
    }
}

fn patiently<T>(patience: Patience, attempt: impl Fn() -> Result<T, ScsiError>) -> Result<T, ScsiError> {
    let limit = u64::try_from(patience.limit.as_nanos()).unwrap_or(u64::MAX);
    let began = boottime_ns();
    loop {
        match attempt() {
            Err(error) if error.is_retryable() && boottime_ns().saturating_sub(began) < limit => {
                tracing::warn!("waiting for the reservation of the disk: {error}");
                std::thread::sleep(patience.pause);
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use shared_disk::scsi::CommandFault;

    use super::*;

    const BRIEF: Patience = Patience {
        limit: Duration::from_millis(40),
        pause: Duration::from_millis(1),
    };

    fn failed(fault: CommandFault) -> ScsiError {
        ScsiError::Command {
            path: "/dev/fake".into(),
            command: "PERSISTENT RESERVE IN",
            fault,
        }
    }

    #[test]
    fn a_silent_device_is_asked_again_for_a_time() {
        let asked = Cell::new(0_u32);
        let answers_third = || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 {
                Err(failed(CommandFault::Busy { status: 8 }))
            } else {
                Ok(7)
            }
        };
        let enough = Patience {
            limit: Duration::from_secs(60),
            ..BRIEF
        };
        assert_eq!(patiently(enough, answers_third).unwrap(), 7);
        let began = boottime_ns();
        let never = || Err::<(), _>(failed(CommandFault::Busy { status: 8 }));
        let error = patiently(BRIEF, never).unwrap_err();
        assert!(error.is_retryable(), "the device's own answer: {error}");
        let waited = Duration::from_nanos(boottime_ns() - began);
        assert!(waited >= BRIEF.limit, "{waited:?}");
    }

    #[test]
    fn a_device_that_refuses_is_asked_once() {
        let asked = Cell::new(0_u32);
        let refuses = || {
            asked.set(asked.get() + 1);
            Err::<(), _>(failed(CommandFault::Unsupported { asc: 0x20, ascq: 0 }))
        };
        let error = patiently(BRIEF, refuses).unwrap_err();
        assert!(
            !error.is_retryable() && asked.get() == 1,
            "{error}, asked {} times",
            asked.get()
        );
    }
}
