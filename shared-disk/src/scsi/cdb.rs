//! Commands and answers as bytes: SBC-3 (5.3 COMPARE AND WRITE, 5.13 READ (16), 5.16 READ CAPACITY (16), 5.23
//! SYNCHRONIZE CACHE (16)) and SPC-4 (6.15 PERSISTENT RESERVE IN, 6.16 PERSISTENT RESERVE OUT). All numbers are
//! big-endian. A command is called CDB there: command descriptor block.

use crate::SECTOR_LEN;

/// Bytes of data of PERSISTENT RESERVE OUT.
pub(super) const PARAMETERS: usize = 24;

/// Bytes of READ CAPACITY (16)'s answer.
pub(super) const CAPACITY: usize = 32;

/// Bytes that are read of PERSISTENT RESERVE IN's answers: their header and 64 keys. A pair has two.
pub(super) const KEYS: usize = 8 + 64 * 8;

/// Bytes of a logical block that are supported: from a sector on.
const BLOCK_BYTES: std::ops::RangeInclusive<usize> = SECTOR_LEN..=65_536;

/// Why bytes are no answer to a command; ends a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScsiAnswerError {
    /// Less than any answer has.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// Less or more than was asked for.
    #[error("{read} bytes of {wanted}")]
    Length {
        /// How many bytes came.
        read: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// No size of a block, or one that is not supported.
    #[error("blocks of {0} bytes")]
    BlockBytes(u32),
    /// A last block that would lie beyond 2^64 bytes.
    #[error("a last block {0}")]
    LastBlock(u64),
    /// Keys have 8 bytes each.
    #[error("{0} bytes of keys")]
    Keys(usize),
    /// Less than a reservation's description has.
    #[error("{0} bytes of reservation")]
    Reservation(usize),
    /// The header promises more than came.
    #[error("it says {promised} bytes follow, {read} were read")]
    CutShort {
        /// By the header.
        promised: usize,
        /// How many there were.
        read: usize,
    },
}

/// The size of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Number of logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
}

/// What the holder of a persistent reservation keeps others from (SPC-4, table 55): the type used here, and all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReservationType {
    /// Only registered initiators write; all read.
    WriteExclusiveRegistrantsOnly,
    /// Another type, by its number.
    Other(u8),
}

const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;

/// Who holds a persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// The holder's key.
    pub key: u64,
    /// What it keeps others from.
    pub kind: ReservationType,
}

/// What PERSISTENT RESERVE OUT is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// This initiator's key becomes `key`, whatever it was.
    Register { key: u64 },
    /// This initiator, registered with `key`, is registered no more. A reservation that it holds is released.
    Unregister { key: u64 },
    /// This initiator, registered with `key`, takes a reservation that nobody holds.
    Reserve { key: u64 },
    /// Whoever is registered with `victim` is registered no more, and its commands are aborted. If it held the
    /// reservation, this initiator, registered with `key`, takes that.
    PreemptAndAbort { key: u64, victim: u64 },
}

pub(super) fn read_capacity() -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x9e, 0x10);
    let length = u32::try_from(CAPACITY).unwrap_or(u32::MAX);
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    cdb
}

pub(super) fn read(block: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x88;
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

/// Of one block; the data are the expected content and the new one.
pub(super) fn compare_and_write(block: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    cdb[13] = 1;
    cdb
}

/// From `block` on.
pub(super) fn synchronize_cache(block: u64, count: u32) -> [u8; 16] {
    let mut cdb = read(block, count);
    cdb[0] = 0x91;
    cdb
}

pub(super) fn read_keys() -> [u8; 10] {
    persistent_reserve_in(0)
}

pub(super) fn read_reservation() -> [u8; 10] {
    persistent_reserve_in(1)
}

fn persistent_reserve_in(action: u8) -> [u8; 10] {
    let mut cdb = [0; 10];
    (cdb[0], cdb[1]) = (0x5e, action);
    let length = u16::try_from(KEYS).unwrap_or(u16::MAX);
    cdb[7..9].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// The command and its data. The bit APTPL stays 0: it asks the device to keep reservations through a loss of power,
/// which not every one can.
pub(super) fn persistent_reserve_out(change: Change) -> ([u8; 10], [u8; PARAMETERS]) {
    let (action, kind, key, argument) = match change {
        Change::Unregister { key } => (0, 0, key, 0),
        Change::Reserve { key } => (1, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, key, 0),
        Change::PreemptAndAbort { key, victim } => (5, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, key, victim),
        Change::Register { key } => (6, 0, 0, key),
    };
    let mut cdb = [0; 10];
    (cdb[0], cdb[1], cdb[2]) = (0x5f, action, kind);
    let length = u32::try_from(PARAMETERS).unwrap_or(u32::MAX);
    cdb[5..9].copy_from_slice(&length.to_be_bytes());
    let mut parameters = [0; PARAMETERS];
    parameters[..8].copy_from_slice(&u64::to_be_bytes(key));
    parameters[8..16].copy_from_slice(&u64::to_be_bytes(argument));
    (cdb, parameters)
}

/// Reads READ CAPACITY (16)'s answer.
pub(super) fn parse_capacity(answer: &[u8]) -> Result<Capacity, ScsiAnswerError> {
    let (last, block_bytes) = number(answer, 0)
        .zip(answer.get(8..12))
        .ok_or(ScsiAnswerError::Short(answer.len()))?;
    let block_bytes = block_bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    let is_supported = usize::try_from(block_bytes).is_ok_and(|bytes| BLOCK_BYTES.contains(&bytes));
    if !is_supported || !block_bytes.is_power_of_two() {
        return Err(ScsiAnswerError::BlockBytes(block_bytes));
    }
    let blocks = last
        .checked_add(1)
        .filter(|blocks| blocks.checked_mul(u64::from(block_bytes)).is_some());
    let blocks = blocks.ok_or(ScsiAnswerError::LastBlock(last))?;
    Ok(Capacity { blocks, block_bytes })
}

/// Reads READ KEYS' answer.
pub(super) fn parse_keys(answer: &[u8]) -> Result<Vec<u64>, ScsiAnswerError> {
    let keys = additional(answer)?;
    if !keys.len().is_multiple_of(8) {
        return Err(ScsiAnswerError::Keys(keys.len()));
    }
    Ok(keys.chunks_exact(8).filter_map(|key| number(key, 0)).collect())
}

/// Reads READ RESERVATION's answer.
pub(super) fn parse_reservation(answer: &[u8]) -> Result<Option<Holder>, ScsiAnswerError> {
    let reservation = additional(answer)?;
    if reservation.is_empty() {
        return Ok(None);
    }
    let (key, kind) = number(reservation, 0)
        .zip(reservation.get(13))
        .ok_or(ScsiAnswerError::Reservation(reservation.len()))?;
    let kind = match kind & 0x0f {
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY => ReservationType::WriteExclusiveRegistrantsOnly,
        other => ReservationType::Other(other),
    };
    Ok(Some(Holder { key, kind }))
}

/// What follows the header of an answer to PERSISTENT RESERVE IN: as many bytes as the header says.
fn additional(answer: &[u8]) -> Result<&[u8], ScsiAnswerError> {
    let length = answer.get(4..8).ok_or(ScsiAnswerError::Short(answer.len()))?;
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let end = length.checked_add(8).filter(|end| *end <= answer.len());
    end.map(|end| &answer[8..end]).ok_or(ScsiAnswerError::CutShort {
        promised: length,
        read: answer.len().saturating_sub(8),
    })
}

/// The eight bytes at `at` as a number.
fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// For `tests/fuzz`: an answer to any command is understood or an error.
#[cfg(feature = "fuzzing")]
pub fn fuzz(answer: &[u8]) {
    let _ = (parse_capacity(answer), parse_keys(answer), parse_reservation(answer));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_have_the_standards_bytes() {
        assert_eq!(read_capacity(), [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
        assert_eq!(
            read(0x0102_0304_0506_0708, 0x0a0b_0c0d),
            [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0]
        );
        assert_eq!(
            compare_and_write(0x0102_0304_0506_0708),
            [0x89, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0]
        );
        assert_eq!(
            synchronize_cache(3, 2),
            [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0]
        );
        assert_eq!(read_keys(), [0x5e, 0, 0, 0, 0, 0, 0, 0x02, 0x08, 0]);
        assert_eq!(read_reservation(), [0x5e, 1, 0, 0, 0, 0, 0, 0x02, 0x08, 0]);
    }

    #[test]
    fn reservation_changes_have_the_standards_bytes() {
        let (key, victim) = (0x1112_1314_1516_1718, 0x2122_2324_2526_2728);
        let (own, none, other) = (u64::to_be_bytes(key), [0; 8], u64::to_be_bytes(victim));
        for (change, action, kind, first, second) in [
            (Change::Unregister { key }, 0, 0, own, none),
            (Change::Reserve { key }, 1, 5, own, none),
            (Change::PreemptAndAbort { key, victim }, 5, 5, own, other),
            (Change::Register { key }, 6, 0, none, own),
        ] {
            let (cdb, parameters) = persistent_reserve_out(change);
            assert_eq!(cdb, [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], "{change:?}");
            assert_eq!(parameters[..8], first, "{change:?}");
            assert_eq!(parameters[8..16], second, "{change:?}");
            assert_eq!(parameters[16..], [0; 8], "{change:?}");
        }
    }

    fn capacity(last: u64, block_bytes: u32) -> Vec<u8> {
        let mut answer = last.to_be_bytes().to_vec();
        answer.extend(block_bytes.to_be_bytes());
        answer.resize(32, 0);
        answer
    }

    #[test]
    fn capacities() {
        let parsed = |last, block_bytes| parse_capacity(&capacity(last, block_bytes));
        assert_eq!(
            parsed(7, 512),
            Ok(Capacity {
                blocks: 8,
                block_bytes: 512
            })
        );
        assert!(parsed(0, 65_536).is_ok());
        for block_bytes in [0, 256, 511, 513, 131_072] {
            assert!(parsed(7, block_bytes).is_err(), "{block_bytes}");
        }
        assert!(parsed(u64::MAX, 512).is_err());
        assert!(parsed(u64::MAX / 512 - 1, 512).is_ok());
        assert!(parsed(u64::MAX / 512, 512).is_err());
        assert!(parse_capacity(&capacity(7, 512)[..12]).is_ok());
        assert!(parse_capacity(&capacity(7, 512)[..11]).is_err());
    }

    #[test]
    fn keys_and_holders() {
        let keys = [[0; 7].as_slice(), &[16], &[0; 7], &[1], &[0; 7], &[2], &[9; 9]].concat();
        assert_eq!(parse_keys(&keys), Ok(vec![1, 2]));
        assert_eq!(parse_keys(&keys[..24]), Ok(vec![1, 2]));
        assert!(parse_keys(&keys[..23]).is_err(), "cut short");
        assert_eq!(parse_keys(&[0; 8]), Ok(vec![]));
        assert!(parse_keys(&[0; 7]).is_err());
        assert!(parse_keys(&[0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]).is_err());
        assert!(parse_keys(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]).is_err());
        let mut held = [0; 24];
        held[7] = 16;
        held[15] = 7;
        held[21] = 5;
        let kind = ReservationType::WriteExclusiveRegistrantsOnly;
        assert_eq!(parse_reservation(&held), Ok(Some(Holder { key: 7, kind })));
        held[21] = 3;
        let kind = ReservationType::Other(3);
        assert_eq!(parse_reservation(&held), Ok(Some(Holder { key: 7, kind })));
        assert_eq!(parse_reservation(&[0; 8]), Ok(None));
        held[7] = 13;
        assert!(parse_reservation(&held).is_err(), "no room for the type");
        held[7] = 14;
        assert!(parse_reservation(&held).is_ok());
    }

    proptest! {
        #[test]
        fn hostile_answers_never_panic(answer in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_capacity(&answer);
            let _ = parse_keys(&answer);
            let _ = parse_reservation(&answer);
        }
    }
}
