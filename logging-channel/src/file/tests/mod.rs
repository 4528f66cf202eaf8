use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::*;
use crate::chunk::{Assembler, CHUNK_BYTES};
use crate::codec::samples::{entries, position};
use crate::codec::{FrameFault, HEADER_BYTES, MAX_DATA_BYTES};
use crate::message::PROTOCOL_VERSION;
use ftvm_schema::entry::{Chunk, ExitSeq, Input, LogEntry};

mod damage;

impl LogTarget for Vec<u8> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with this much room.
#[derive(Debug)]
struct Small<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
}

impl Write for Small<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.room - self.bytes.len());
        if len == 0 {
            return Err(ErrorKind::StorageFull.into());
        }
        self.bytes.write(&buffer[..len])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogTarget for Small<'_> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As a disk shares its bytes with whoever reads them afterwards.
impl LogTarget for &mut Vec<u8> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn header() -> FileHeader {
    FileHeader {
        version: PROTOCOL_VERSION,
        created_unix_ns: 1_700_000_000_000_000_000,
        verify: Verify::Exit,
        program: "ftvm 0.1.0".into(),
        args: "record demo".into(),
        config: vec![1, 2, 3],
        state: None,
    }
}

fn ending() -> RecordingEnd {
    RecordingEnd {
        exits: 1700,
        outputs: OutputSeq(40),
        digest: Digest(5),
        memory_hash: Some(6),
        reason: EndReason::PowerOff { status: 0 },
        text: "powered off".into(),
    }
}

fn name() -> &'static Path {
    Path::new("demo.ftlog")
}

fn tick(exit: u64) -> LogEntry {
    LogEntry::Input {
        at: ExitSeq(exit),
        input: Input::Clock(exit * 1000),
    }
}

/// Enough ticks for several frames.
fn long_log() -> Vec<LogEntry> {
    (1..=60_000).map(tick).collect()
}

fn sample_log() -> Vec<LogEntry> {
    // The chunk among the samples is a piece of nothing; ends but the last would end the log.
    let all = entries()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("end-"))
        .map(|(_, entry)| entry);
    all.chain([LogEntry::End {
        at: position(1700, 2),
        reason: EndReason::Limit,
    }])
    .collect()
}

fn written(header: &FileHeader, entries: &[LogEntry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, name(), header).unwrap();
    writer.append(entries).unwrap();
    writer.finish(ending()).unwrap();
    bytes
}

/// All entries, and how it ended.
fn read(bytes: &[u8]) -> (Vec<LogEntry>, Result<Trailer, LogError>) {
    let mut reader = match LogReader::new(bytes, name()) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(reader.trailer().unwrap().clone())),
            Err(error) => {
                assert_eq!(
                    reader.next_entry().unwrap_err().to_string(),
                    error.to_string(),
                    "errors stay"
                );
                assert!(reader.trailer().is_none());
                return (entries, Err(error));
            }
        }
    }
}

#[test]
fn what_is_recorded_is_read() {
    for log in [sample_log(), long_log(), vec![]] {
        let bytes = written(&header(), &log);
        assert_eq!(LogReader::new(bytes.as_slice(), name()).unwrap().header(), &header());
        let (found, end) = read(&bytes);
        assert!(found == log);
        let trailer = end.unwrap();
        assert_eq!(trailer.ending, ending());
        assert_eq!(trailer.entries, log.len() as u64);
        let inputs = log
            .iter()
            .filter(|entry| matches!(entry, LogEntry::Input { .. }))
            .count();
        assert_eq!(trailer.inputs, inputs as u64);
    }
}

#[test]
fn a_file_on_disk_is_refused_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ftlog");
    let writer = LogWriter::create(&path, &header(), Existing::Refuse).unwrap();
    writer.finish(ending()).unwrap();
    let error = LogWriter::create(&path, &header(), Existing::Refuse).unwrap_err();
    assert!(matches!(error, LogError::Exists { .. }), "{error}");
    assert!(
        LogReader::open(&path).unwrap().next_entry().unwrap().is_none(),
        "it is unharmed"
    );

    let mut writer = LogWriter::create(&path, &header(), Existing::Replace).unwrap();
    writer.append(&sample_log()).unwrap();
    writer.finish(ending()).unwrap();
    let entries: Result<Vec<_>, _> = LogReader::open(&path).unwrap().collect();
    assert_eq!(entries.unwrap(), sample_log());
    let error = LogReader::open(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("cannot open"), "{error}");
}

#[test]
fn the_state_travels_in_chunks_and_is_whole_or_an_error() {
    for len in [0, 5, CHUNK_BYTES + 1] {
        let header = FileHeader {
            state: Some(vec![3; len]),
            ..header()
        };
        let bytes = written(&header, &sample_log());
        let mut reader = LogReader::new(bytes.as_slice(), name()).unwrap();
        assert_eq!(reader.header(), &header);
        assert_eq!(reader.take_state(), header.state);
        assert_eq!(read(&bytes).0, sample_log());
        let start = bytes.len() - written(&self::header(), &sample_log()).len() + HEADER_BYTES;
        assert!(matches!(
            read(&bytes[..start]).1,
            Err(LogError::Truncated { last_good: None, .. })
        ));
    }
}

#[test]
fn entries_out_of_order_are_refused_on_both_sides() {
    let mut writer = LogWriter::new(Vec::new(), name(), &header()).unwrap();
    writer.append(&[tick(5)]).unwrap();
    let error = writer.append(&[tick(4)]).unwrap_err();
    assert!(matches!(error, LogError::OutOfOrder { .. }), "{error}");
    assert_eq!(writer.append(&[tick(6)]).unwrap_err().to_string(), error.to_string());

    let mut bytes = written(&header(), &[]);
    let header_end = usize::try_from(LogWriter::new(Vec::new(), name(), &header()).unwrap().offset_for_test()).unwrap();
    let frame = crate::codec::FrameEncoder::new()
        .log(ftvm_schema::entry::Generation(0), 1, &[tick(5), tick(4)])
        .unwrap()
        .to_vec();
    bytes.splice(header_end..header_end, frame);
    let (found, end) = read(&bytes);
    assert_eq!(found, [tick(5)]);
    assert!(matches!(end, Err(LogError::OutOfOrder { .. })));
}

#[test]
fn a_full_disk_leaves_a_log_that_replays_up_to_there() {
    let log = long_log();
    let whole = written(&header(), &log).len();
    for room in [whole - 1, whole / 2, whole / 2 + 1, 200, 20] {
        let mut bytes = Vec::new();
        let disk = Small {
            bytes: &mut bytes,
            room,
        };
        let recorded = LogWriter::new(disk, name(), &header()).and_then(|mut writer| {
            writer.append(&log)?;
            writer.finish(ending())
        });
        let error = recorded.unwrap_err();
        let LogError::Full { last_good, offset, .. } = error else {
            panic!("{error}")
        };
        let (found, end) = read(&bytes);
        assert!(found == log[..found.len()]);
        assert_eq!(last_good.map_or(0, |position| position.exit.0), found.len() as u64);
        let LogError::Truncated {
            offset: read_offset, ..
        } = end.unwrap_err()
        else {
            panic!("not truncated")
        };
        assert_eq!(read_offset, offset);
    }
    let full = LogWriter::create(Path::new("/dev/full"), &header(), Existing::Replace).unwrap_err();
    assert!(
        full.to_string().starts_with("no room left to write /dev/full"),
        "{full}"
    );
}

#[test]
fn a_dropped_writer_leaves_what_it_gathered() {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, name(), &header()).unwrap();
    writer.append(&[tick(1), tick(2)]).unwrap();
    drop(writer);
    let (found, end) = read(&bytes);
    assert_eq!(found.len(), 2);
    assert!(matches!(end, Err(LogError::Truncated { .. })));
}

#[test]
fn long_checkpoints_are_cut_into_chunks() {
    let record: Vec<u8> = (0..3 * MAX_DATA_BYTES).map(|n| n.to_le_bytes()[0]).collect();
    let entry = LogEntry::Checkpoint {
        at: position(7, 1),
        chunk: Chunk {
            total: record.len() as u64,
            offset: 0,
            crc: crc32c::crc32c(&record),
            bytes: record.clone(),
        },
    };
    let bytes = written(&header(), &[tick(7), entry]);
    let (found, end) = read(&bytes);
    assert_eq!(end.unwrap().checkpoints, 1);
    let mut assembler = Assembler::new(u64::MAX);
    let mut whole = None;
    for entry in &found[1..] {
        let LogEntry::Checkpoint { chunk, .. } = entry else {
            panic!("{entry:?}")
        };
        assert!(chunk.bytes.len() <= CHUNK_BYTES && whole.is_none());
        whole = assembler.add(chunk.clone()).unwrap();
    }
    assert!(whole.unwrap() == record);
}

#[test]
fn an_entry_too_long_for_a_frame_is_an_error() {
    let entry = |len| LogEntry::Input {
        at: ExitSeq(1),
        input: Input::Entropy { bytes: vec![0; len] },
    };
    assert_eq!(read(&written(&header(), &[entry(MAX_DATA_BYTES)])).0.len(), 1);
    let mut writer = LogWriter::new(Vec::new(), name(), &header()).unwrap();
    assert!(matches!(
        writer.append(&[entry(MAX_DATA_BYTES + 1)]),
        Err(LogError::Encode { .. })
    ));
}

#[test]
fn a_rewritten_log_is_whole_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut writer = LogWriter::create(&from, &header(), Existing::Refuse).unwrap();
    writer.append(&[tick(1), tick(2), tick(3)]).unwrap();
    let before = writer.finish(ending()).unwrap();
    let planted = LogEntry::Input {
        at: ExitSeq(2),
        input: Input::Clock(9),
    };
    let trailer = rewrite(&from, &to, Existing::Refuse, |entry| match entry {
        entry if entry == tick(2) => Some(planted.clone()),
        entry if entry == tick(3) => None,
        entry => Some(entry),
    })
    .unwrap();
    assert_eq!((trailer.entries, trailer.ending), (2, before.ending));
    let onto_itself = rewrite(&from, &dir.path().join("./from"), Existing::Replace, Some);
    assert!(matches!(onto_itself, Err(LogError::Exists { .. })));
    assert_eq!(LogReader::open(&from).unwrap().count(), 3);
    let entries: Result<Vec<_>, _> = LogReader::open(&to).unwrap().collect();
    assert_eq!(entries.unwrap(), [tick(1), planted]);
}
