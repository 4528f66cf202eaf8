#![allow(clippy::cast_possible_truncation, reason = "a disk in memory is small")]
use std::sync::Arc;

use parking_lot::Mutex;

use super::layout::SLOTS;
use super::*;
use crate::arbiter::LifeState;
use crate::arbiter::register::record;
use crate::scsi::CommandFault;

const A: u128 = 0xa;
const B: u128 = 0xb;
const C: u128 = 0xc;

/// What happens to the next COMPARE AND WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Executed, and the answer lost.
    AnswerLost,
    /// Not executed, and no answer.
    Lost,
    /// Someone else is faster by a whole claim.
    Overtaken,
}

/// A disk in memory that hosts share.
#[derive(Debug)]
struct Disk {
    block_bytes: usize,
    content: Mutex<Vec<u8>>,
    fates: Mutex<Vec<Fate>>,
    written: Mutex<u32>,
}

impl Disk {
    fn new(block_bytes: usize, mib: usize) -> Arc<Disk> {
        Arc::new(Disk {
            block_bytes,
            content: Mutex::new(vec![0; mib << 20]),
            fates: Mutex::default(),
            written: Mutex::default(),
        })
    }

    fn host(self: &Arc<Self>, guest: &str) -> SharedLun {
        let disk = Arc::clone(self);
        SharedLun {
            path: "/dev/fake".into(),
            guest: guest.to_owned(),
            open: Box::new(move || Ok(Box::new(Port(Arc::clone(&disk))))),
        }
    }

    fn set(&self, at: usize, bytes: &[u8]) {
        self.content.lock()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn written(&self) -> u32 {
        *self.written.lock()
    }
}

struct Port(Arc<Disk>);

impl Port {
    fn unclear() -> ScsiError {
        ScsiError::Command {
            path: "/dev/fake".into(),
            command: "COMPARE AND WRITE",
            fault: CommandFault::Unclear {
                status: 0,
                host: 1,
                key: 0,
                asc: 0,
                ascq: 0,
            },
        }
    }
}

impl BlockDevice for Port {
    fn block_bytes(&self) -> u64 {
        self.0.block_bytes as u64
    }

    fn blocks(&self) -> u64 {
        (self.0.content.lock().len() / self.0.block_bytes) as u64
    }

    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError> {
        let (at, length) = (block as usize * self.0.block_bytes, count as usize * self.0.block_bytes);
        Ok(self.0.content.lock()[at..at + length].to_vec())
    }

    fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError> {
        let fate = self.0.fates.lock().pop();
        match fate {
            Some(Fate::Lost) => return Err(Port::unclear()),
            Some(Fate::Overtaken) => drop(self.0.host("guest").claim(1, A, C).unwrap()),
            Some(Fate::AnswerLost) | None => {}
        }
        let at = block as usize * self.0.block_bytes;
        let mut content = self.0.content.lock();
        let place = &mut content[at..at + self.0.block_bytes];
        if place != expected {
            return Ok(Compared::Differs);
        }
        place.copy_from_slice(new);
        *self.0.written.lock() += 1;
        if fate == Some(Fate::AnswerLost) {
            return Err(Port::unclear());
        }
        Ok(Compared::Written)
    }

    fn synchronize(&self) -> Result<(), ScsiError> {
        Ok(())
    }
}

fn won(generation: u64) -> Result<ClaimOutcome, ArbiterError> {
    Ok(ClaimOutcome::Won { generation })
}

fn lost(generation: u64, owner: u128) -> Result<ClaimOutcome, ArbiterError> {
    Ok(ClaimOutcome::Lost { generation, owner })
}

#[test]
fn a_life_on_blocks_of_each_size() {
    for block_bytes in [512, 4096] {
        let disk = Disk::new(block_bytes, 2);
        let (primary, backup) = (disk.host("guest"), disk.host("guest"));
        assert_eq!(primary.start(A), Ok(1));
        assert_eq!(primary.start(A), Ok(1));
        primary.write_nonce("n", b"one").unwrap();
        assert_eq!(backup.read_nonce("n"), Ok(b"one".to_vec()));
        assert!(backup.read_nonce("m").is_err());
        assert_eq!(backup.check_access(), Ok(()));
        assert_eq!(backup.claim(1, A, B), won(2));
        assert_eq!(backup.claim(1, A, B), won(2));
        assert_eq!(primary.claim(1, A, A), lost(2, B));
        assert!(matches!(primary.start(C), Err(ArbiterError::Taken { .. })));
        assert_eq!(backup.end(B), Ok(()));
        assert_eq!(primary.claim(2, B, A), lost(3, B));
        assert_eq!(primary.start(C), Ok(4));
    }
}

#[test]
fn whatever_the_device_answers_the_block_decides() {
    for (fate, first, then) in [
        (Fate::AnswerLost, won(2), won(2)),
        (Fate::Overtaken, lost(2, C), lost(2, C)),
    ] {
        let disk = Disk::new(512, 2);
        let host = disk.host("guest");
        assert_eq!(host.start(A), Ok(1));
        disk.fates.lock().push(fate);
        assert_eq!(host.claim(1, A, B), first, "{fate:?}");
        assert_eq!(host.claim(1, A, B), then, "{fate:?}");
    }
    let disk = Disk::new(512, 2);
    let host = disk.host("guest");
    assert_eq!(host.start(A), Ok(1));
    disk.fates.lock().push(Fate::Lost);
    assert!(host.claim(1, A, B).unwrap_err().is_retryable());
    assert_eq!(
        host.claim(1, A, B),
        won(2),
        "not executed: the same claim may be made again"
    );
}

#[test]
fn guests_have_places_of_their_own_as_long_as_there_are_any() {
    let disk = Disk::new(512, 2);
    for guest in 0..SLOTS {
        assert_eq!(disk.host(&format!("g{guest}")).start(A), Ok(1));
    }
    let text = disk.host("one-more").start(A).unwrap_err().to_string();
    assert!(text.contains("64 guests"), "{text}");
    assert_eq!(disk.host("g0").claim(1, A, B), won(2));
    assert_eq!(disk.host("g1").claim(1, A, B), won(2));
    assert_eq!(disk.host("g63").end(A), Ok(()));
    assert!(disk.host("absent").claim(1, A, B).unwrap_err().is_retryable());
}

#[test]
fn a_foreign_device_is_refused_and_never_written() {
    let last = (2 << 20) - 1;
    // Boot sector, LVM label, ext4's and btrfs's superblocks, the last byte looked at in front, the first behind, the
    // end.
    for at in [0, 512, 1080, 65_600, (1 << 20) - 1, (2 << 20) - (128 << 10), last] {
        let disk = Disk::new(512, 2);
        disk.set(at, &[1]);
        let before = disk.content.lock().clone();
        let error = disk.host("guest").start(A).unwrap_err();
        assert!(
            !error.is_retryable() && error.to_string().contains("of its own"),
            "{at}: {error}"
        );
        assert_eq!(*disk.content.lock(), before);
    }
    for at in [1 << 20, (2 << 20) - (128 << 10) - 1] {
        let disk = Disk::new(512, 2);
        disk.set(at, &[1]);
        assert_eq!(disk.host("guest").start(A), Ok(1), "{at} is not looked at");
    }
    let small = Disk::new(512, 1);
    assert!(small.host("guest").start(A).unwrap_err().to_string().contains("2 MiB"));
}

#[test]
fn only_a_start_takes_a_device_into_use() {
    let disk = Disk::new(512, 2);
    let host = disk.host("guest");
    assert!(host.claim(1, A, B).unwrap_err().is_retryable());
    assert!(host.end(A).unwrap_err().is_retryable() && host.check_access().is_err());
    assert!(host.write_nonce("n", b"x").is_err() && host.disown().is_err());
    assert_eq!(disk.written(), 0);
}

#[test]
fn damage_is_an_error_and_never_a_loss() {
    let disk = Disk::new(512, 2);
    let host = disk.host("guest");
    assert_eq!(host.start(A), Ok(1));
    assert_eq!(disk.host("other").start(A), Ok(1));
    let slot = 512;
    for (at, byte) in [(0, 0), (slot, b'X'), (slot + 80, 0), (slot + 511, 7)] {
        let before = disk.content.lock()[at];
        disk.set(at, &[byte]);
        let error = host.claim(1, A, B).unwrap_err();
        assert!(!error.is_retryable(), "byte {at}: {error}");
        assert!(host.start(C).is_err() && host.end(A).is_err());
        disk.set(at, &[before]);
    }
    // A sound block whose record is none.
    disk.set(slot, &encode(CellKind::Register, "guest", b"ftvm-generation 2\n", 512));
    let text = host.claim(1, A, B).unwrap_err().to_string();
    assert!(
        text.contains("block 1 of /dev/fake") && text.contains("not written by this version"),
        "{text}"
    );
    // Emptied by someone: there is a place and nothing in it.
    disk.set(slot, &encode(CellKind::Register, "guest", b"", 512));
    assert_eq!(host.claim(1, A, B), lost(0, 0));
    // A device with other blocks than its header says.
    disk.set(0, &header(4096)[..512]);
    assert!(host.claim(1, A, B).unwrap_err().to_string().contains("cannot use"));
}

#[test]
fn a_claim_that_lands_late_does_nothing_unless_nothing_has_changed() {
    let disk = Disk::new(512, 2);
    let host = disk.host("guest");
    assert_eq!(host.start(A), Ok(1));
    let (_, place) = GenerationRegister::newest(&host).unwrap();
    let late = record(2, B, LifeState::Running);
    assert_eq!(host.claim(1, A, C), won(2));
    assert_eq!(host.end(C), Ok(()));
    assert_eq!(host.start(A), Ok(4));
    host.attempt(place, &late).unwrap();
    assert_eq!(host.claim(4, A, A), won(5), "it found another content");
    let (_, place) = GenerationRegister::newest(&host).unwrap();
    host.attempt(place, &record(6, B, LifeState::Running)).unwrap();
    assert_eq!(host.claim(5, A, B), won(6), "a late win is a win");
}

#[test]
fn the_remedy_works() {
    let disk = Disk::new(512, 2);
    let host = disk.host("guest");
    assert_eq!(host.start(A), Ok(1));
    let text = host.start(B).unwrap_err().to_string();
    assert!(
        text.contains("run `ftvm disown --shared scsi:/dev/fake --name guest` and start again"),
        "{text}"
    );
    assert_eq!(host.disown(), Ok(()));
    assert_eq!(host.disown(), Ok(()));
    assert_eq!(host.claim(1, A, C), lost(2, A));
    assert_eq!(host.start(B), Ok(3));
}
