//! Reading the log back.

use alloc::vec::Vec;
use core::fmt;

use super::format::{BadFrame, FRAME_HEADER, Frame, Geometry, GeometryError, SECTOR, Superblock};
use super::{FlushPolicy, Log, State, Step};
use crate::engine::{CommandError, Engine};
use crate::resp::{MAX_REQUEST, Parsed, Parser};

/// Sectors that are read at a time.
const READ_AHEAD: usize = 128;
/// Longest command in the log: a client's request may be journalled in a form that is a little longer.
const MAX_COMMAND: usize = 2 * MAX_REQUEST;

/// Why a disk cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryError<E> {
    /// It is too small.
    Geometry(GeometryError),
    /// It could not be read.
    Read { sector: u64, error: E },
    /// It holds something, but no superblock of this program.
    NotOurs,
}

impl<E: fmt::Display> fmt::Display for RecoveryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryError::Geometry(error) => write!(f, "{error}"),
            RecoveryError::Read { sector, error } => write!(f, "read of sector {sector}: {error}"),
            RecoveryError::NotOurs => f.write_str(
                "the disk is neither blank nor holds a log of this program; add format=yes to the command line to \
                 overwrite what is on it",
            ),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for RecoveryError<E> {}

impl<E> From<GeometryError> for RecoveryError<E> {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}

/// Why the log ends where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The region is full.
    Region,
    /// No frame follows. Only [`BadFrame::Blank`] and [`BadFrame::Stale`] are what a quiet end looks like.
    Frame(BadFrame),
    /// The next frame is whole, but this command in it is none: it comes from another version of this program.
    Command(CommandError),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Region => f.write_str("the region is full"),
            End::Frame(bad) => write!(f, "{bad}"),
            End::Command(error) => write!(f, "a frame beyond holds a command that fails ({error})"),
        }
    }
}

/// A log that is ready for more.
#[derive(Debug)]
pub struct Recovered {
    pub log: Log,
    /// Write this and flush before the first use of the log.
    pub first_write: Step,
    /// Frames and commands that were read.
    pub frames: u64,
    pub commands: u64,
    /// The sector where the log ends, and why.
    pub end_sector: u64,
    pub end: End,
}

/// Reads whole sectors, from the first one named.
pub type ReadSectors<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// Makes a new log on a disk of that many sectors. `disk` is a random number.
///
/// # Errors
/// The disk is too small.
pub fn format(sectors: u64, policy: FlushPolicy, disk: u64) -> Result<(Log, Step), GeometryError> {
    let geometry = Geometry::of(sectors)?;
    // An old log may be on the disk, with other numbers: frames of it are foreign.
    let superblock = Superblock {
        disk,
        generation: 0,
        first_sequence: 0,
        epoch: 0,
        region: 0,
    };
    let log = new_log(geometry, policy, superblock, geometry.region_start(0), 0);
    // The other superblock of an old log must not survive.
    let data = [superblock.encode(), [0; SECTOR]].concat();
    Ok((
        log,
        Step::Write {
            sector: superblock.sector(),
            data,
        },
    ))
}

fn new_log(geometry: Geometry, policy: FlushPolicy, superblock: Superblock, next_sector: u64, sequence: u64) -> Log {
    Log {
        geometry,
        policy,
        superblock,
        next_sector,
        sequence,
        state: State::Idle,
        written: 0,
        durable: 0,
        wanted: 0,
        rewrite_wanted: false,
        last_flush: 0,
    }
}

/// Reads sectors ahead.
struct Reader<'a, E> {
    read: &'a mut ReadSectors<'a, E>,
    buffer: Vec<u8>,
    /// Sector of the buffer's first byte.
    start: u64,
    /// Nothing is read from here on.
    end: u64,
}

impl<E> Reader<'_, E> {
    /// The bytes of `count` sectors from `sector` on, which end before `end`.
    fn sectors(&mut self, sector: u64, count: u64) -> Result<&[u8], RecoveryError<E>> {
        let have = self.start..self.start + (self.buffer.len() / SECTOR) as u64;
        if sector < have.start || sector + count > have.end {
            let wanted = count.max(READ_AHEAD as u64).min(self.end - sector);
            self.buffer.clear();
            self.buffer.resize(usize::try_from(wanted).unwrap_or(0) * SECTOR, 0);
            self.start = sector;
            (self.read)(sector, &mut self.buffer).map_err(|error| RecoveryError::Read { sector, error })?;
        }
        let from = usize::try_from(sector - self.start).unwrap_or(0) * SECTOR;
        Ok(&self.buffer[from..from + usize::try_from(count).unwrap_or(0) * SECTOR])
    }
}

/// Reads a disk's log into an engine that has not been started, up to the first frame that is not whole. `None`
/// if the disk is blank.
///
/// # Errors
/// The disk cannot be used. A damaged log is none: it ends there.
pub fn recover<E>(
    sectors: u64,
    policy: FlushPolicy,
    read: &mut ReadSectors<'_, E>,
    engine: &mut Engine,
) -> Result<Option<Recovered>, RecoveryError<E>> {
    let geometry = Geometry::of(sectors)?;
    let mut found = [[0; SECTOR]; 2];
    for (sector, bytes) in Superblock::SECTORS.into_iter().zip(&mut found) {
        read(sector, bytes).map_err(|error| RecoveryError::Read { sector, error })?;
    }
    let Some(superblock) = found
        .iter()
        .filter_map(Superblock::decode)
        .max_by_key(|block| block.generation)
    else {
        let blank = found.iter().flatten().all(|&byte| byte == 0);
        return if blank { Ok(None) } else { Err(RecoveryError::NotOurs) };
    };
    let (start, end_of_region) = (
        geometry.region_start(superblock.region),
        geometry.region_end(superblock.region),
    );
    let mut reader = Reader {
        read,
        buffer: Vec::new(),
        start,
        end: end_of_region,
    };
    let mut frame = Frame {
        disk: superblock.disk,
        epoch: 0,
        sequence: superblock.first_sequence,
    };
    let (mut sector, mut frames, mut commands) = (start, 0, 0);
    let end = loop {
        if sector == end_of_region {
            break End::Region;
        }
        let (epoch, len) = match frame.decode_header(&reader.sectors(sector, 1)?[..FRAME_HEADER]) {
            Ok(header) => header,
            Err(bad) => break End::Frame(bad),
        };
        let count = Frame::sectors(len);
        if sector + count > end_of_region {
            break End::Frame(BadFrame::Length);
        }
        let payload = match Frame::decode_payload(reader.sectors(sector, count)?, len) {
            Ok(payload) => payload,
            Err(bad) => break End::Frame(bad),
        };
        match replay(payload, engine) {
            Ok(count) => commands += count,
            Err(error) => break End::Command(error),
        }
        frame = Frame {
            epoch,
            sequence: frame.sequence + 1,
            ..frame
        };
        sector += count;
        frames += 1;
    };
    let superblock = Superblock {
        generation: superblock.generation + 1,
        epoch: superblock.epoch.wrapping_add(1),
        ..superblock
    };
    let first_write = Step::Write {
        sector: superblock.sector(),
        data: superblock.encode().to_vec(),
    };
    let log = new_log(geometry, policy, superblock, sector, frame.sequence);
    Ok(Some(Recovered {
        log,
        first_write,
        frames,
        commands,
        end_sector: sector,
        end,
    }))
}

/// Executes the commands of a frame, and says how many there are.
fn replay(payload: &[u8], engine: &mut Engine) -> Result<u64, CommandError> {
    const NO_COMMAND: CommandError = CommandError::Text("ERR no command");
    let mut payload = payload.to_vec();
    let mut rest = &mut payload[..];
    let mut parser = Parser::with_limit(MAX_COMMAND);
    let mut count = 0;
    while !rest.is_empty() {
        let Ok(Parsed::Request { len }) = parser.parse(rest) else {
            return Err(NO_COMMAND);
        };
        let arguments = parser.arguments(rest);
        if arguments.is_empty() {
            return Err(NO_COMMAND);
        }
        engine.replay(arguments)?;
        parser.reset();
        rest = &mut rest[len..];
        count += 1;
    }
    Ok(count)
}
