use std::path::Path;
use std::sync::Arc;

use shared_disk::mark::DiskMark;

use super::*;
use ftvm_devices::{DiskAccess, DiskConfig};

const OWNER: Incarnation = Incarnation(0xa);
/// One extent and a short one.
const SIZE: usize = (64 << 10) + 1024;

fn option(path: &Path, more: &str) -> DiskOption {
    format!("path={},direct=off{more}", path.display()).parse().unwrap()
}

fn platform(sharing: DiskSharing, bytes: usize) -> PlatformConfig {
    let disk = DiskConfig {
        sectors: bytes as u64 / SECTOR,
        access: DiskAccess::ReadWrite,
        sharing,
        serial: String::new(),
    };
    PlatformConfig {
        disks: vec![disk],
        ..PlatformConfig::default()
    }
}

/// A copy full of garbage, and where it is.
fn copy(reads: DiskReads) -> (tempfile::TempDir, std::path::PathBuf, PrivateDisks) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![0xee; SIZE]).unwrap();
    let options = [option(&path, ",private=on")];
    let platform = platform(DiskSharing::Private, SIZE);
    agree(&options, &platform).unwrap();
    let copies = PrivateDisks::open(&options, &platform, reads, Generation(3), OWNER).unwrap();
    (directory, path, copies)
}

fn held(path: &Path) -> Option<(CopyState, u64, u128)> {
    let mark = DiskMark::load(&path.with_extension("ftvm")).unwrap()?;
    Some((mark.held, mark.generation, mark.owner))
}

fn request(id: u64, op: DiskOp) -> DiskRequest {
    DiskRequest { disk: 0, id, op }
}

fn write(id: u64, offset: u64, byte: u8) -> DiskRequest {
    let data = Arc::new(vec![byte; 512]);
    request(id, DiskOp::Write { offset, data })
}

#[test]
fn blocks_replace_what_was_there_and_the_mark_says_how_far() {
    let (_directory, path, mut copies) = copy(DiskReads::Log);
    assert_eq!(held(&path), None);
    let content: Vec<u8> = (0..SIZE).map(|n| (n % 251).to_le_bytes()[0]).collect();
    copies.put(0, &[0, 1], &lz4_flex::block::compress(&content)).unwrap();
    assert_eq!(held(&path), Some((CopyState::Incomplete, 3, 0xa)));
    copies.flush().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    copies.level().unwrap();
    assert_eq!(held(&path), Some((CopyState::Following, 3, 0xa)));
    copies.request(&write(0, 1024, 7)).unwrap();
    copies.request(&request(1, DiskOp::Flush)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[1024..1536], [7; 512]);
    assert_eq!(held(&path), Some((CopyState::Following, 3, 0xa)));
    copies.ended().unwrap();
    assert_eq!(held(&path), Some((CopyState::Current, 3, 0xa)));
}

#[test]
fn blocks_that_are_none_are_refused() {
    let (_directory, path, mut copies) = copy(DiskReads::Log);
    let whole = lz4_flex::block::compress(&vec![1; SIZE]);
    for (disk, numbers, content) in [
        (1, &[0, 1][..], &whole[..]),
        (0, &[0, 2], &whole),
        (0, &[1, 0], &whole),
        (0, &[0, 0], &whole),
        (0, &[0], &whole),
        (0, &[0, 1], &whole[..whole.len() - 1]),
        (0, &[0, 1], &[0xff; 20]),
        (0, &[0; MAX_BLOCKS + 1], &whole),
    ] {
        copies.put(disk, numbers, content).unwrap_err();
    }
    assert_eq!(std::fs::read(&path).unwrap(), [0xee; SIZE]);
}

#[test]
fn a_read_brings_what_the_guest_had_written_before_it_asked() {
    let (_directory, _, mut copies) = copy(DiskReads::Backup);
    copies.request(&write(0, 0, 7)).unwrap();
    let read = |id| request(id, DiskOp::Read { offset: 0, len: 512 });
    copies.request(&read(1)).unwrap();
    copies.request(&write(2, 0, 8)).unwrap();
    copies.request(&read(3)).unwrap();
    assert_eq!(copies.brought(0, 3), Some(vec![8; 512]));
    assert_eq!(copies.brought(0, 1), Some(vec![7; 512]), "although 8 is there by now");
    assert_eq!(copies.brought(0, 1), None);
    let (_directory, _, mut copies) = copy(DiskReads::Log);
    copies.request(&read(1)).unwrap();
    assert_eq!(copies.brought(0, 1), None, "the log has it");
}

#[test]
fn hosts_that_do_not_agree_are_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let private = [option(&path, ",private=on")];
    let shared = [option(&path, "")];
    agree(&private, &platform(DiskSharing::Private, 4096)).unwrap();
    agree(&shared, &platform(DiskSharing::Shared, 512)).unwrap();
    for (options, sharing, bytes, word) in [
        (&private, DiskSharing::Private, 4096 + 512, "4608"),
        (&private, DiskSharing::Private, 4096 - 512, "3584"),
        (&private, DiskSharing::Shared, 4096, "shared on the primary"),
        (&shared, DiskSharing::Private, 4096, "private on the primary"),
    ] {
        let why = agree(options, &platform(sharing, bytes)).unwrap_err().to_string();
        assert!(why.contains(word), "{why}");
    }
}
