//! Writing a log file.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    Counts, Existing, FRAME_TARGET, FileHeader, HeaderRecord, LogError, MAX_STATE_BYTES, RecordingEnd, Trailer,
};
use crate::chunk::{self, ChunkError};
use crate::codec::{EncodeError, FrameEncoder, FrameKind, LogBatch};
use crate::flow::Horizon;
use crate::message::Message;
use ftvm_schema::entry::{Generation, LogEntry, Position};

/// Where a log can be written to.
pub trait LogTarget: Write {
    /// Makes what was written survive a crash of the host.
    ///
    /// # Errors
    /// As `fsync`.
    fn sync(&mut self) -> io::Result<()>;
}

impl LogTarget for File {
    fn sync(&mut self) -> io::Result<()> {
        match self.sync_all() {
            // A pipe or a device has nothing to make durable (fsync(2), EINVAL).
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }
}

/// A file carries no generation: it belongs to no pair.
const NO_GENERATION: Generation = Generation(0);

/// Writes a log file, entry by entry.
///
/// Entries are gathered into frames of about [`FRAME_TARGET`] bytes; [`LogWriter::flush`] writes what is gathered. A
/// writer that is dropped without [`LogWriter::finish`] leaves a file that reads as cut off.
#[derive(Debug)]
pub struct LogWriter<S: LogTarget = File> {
    sink: S,
    path: PathBuf,
    batch: LogBatch,
    /// Bytes of the file that are whole frames.
    offset: u64,
    /// Reached by `append`; by what is written, `written`.
    horizon: Horizon,
    written: Option<Position>,
    counts: Counts,
    failed: Option<LogError>,
    finished: bool,
}

impl LogWriter<File> {
    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// [`LogError::Exists`], or the file cannot be created or written.
    pub fn create(path: &Path, header: &FileHeader, existing: Existing) -> Result<LogWriter, LogError> {
        let mut options = OpenOptions::new();
        options.write(true);
        match existing {
            Existing::Refuse => options.create_new(true),
            Existing::Replace => options.create(true).truncate(true),
        };
        match options.open(path) {
            Ok(file) => LogWriter::new(file, path, header),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(LogError::Exists { path: path.into() }),
            Err(error) => Err(LogError::Io {
                doing: "create",
                path: path.into(),
                source: Arc::new(error),
            }),
        }
    }
}

impl<S: LogTarget> LogWriter<S> {
    /// Writes a log to `sink`; `path` is its name in errors.
    ///
    /// # Errors
    /// The header cannot be written.
    pub fn new(sink: S, path: &Path, header: &FileHeader) -> Result<LogWriter<S>, LogError> {
        let mut writer = LogWriter {
            sink,
            path: path.into(),
            batch: LogBatch::new(1),
            offset: 0,
            horizon: Horizon::default(),
            written: None,
            counts: Counts::default(),
            failed: None,
            finished: false,
        };
        writer.write_header(header)?;
        Ok(writer)
    }

    fn write_header(&mut self, header: &FileHeader) -> Result<(), LogError> {
        let state_bytes = header.state.as_ref().map(|state| state.len() as u64);
        if let Some(total) = state_bytes.filter(|total| *total > MAX_STATE_BYTES) {
            return Err(LogError::State {
                path: self.path.clone(),
                source: ChunkError::TooLong {
                    total,
                    cap: MAX_STATE_BYTES,
                },
            });
        }
        let record = HeaderRecord {
            version: header.version,
            created_unix_ns: header.created_unix_ns,
            verify: header.verify,
            program: header.program.clone(),
            args: header.args.clone(),
            config: header.config.clone(),
            state_bytes,
        };
        let mut encoder = FrameEncoder::new();
        let frame = encoder.record(FrameKind::FileHeader, NO_GENERATION, &record);
        self.write(frame)?;
        for chunk in header.state.iter().flat_map(|state| chunk::split(state)) {
            let frame = encoder.message(NO_GENERATION, &Message::State(chunk));
            self.write(frame)?;
        }
        Ok(())
    }

    /// Adds entries, in order. Chunks of checkpoints are cut to [`chunk::CHUNK_BYTES`].
    ///
    /// # Errors
    /// No room left, an entry that is too long or out of order. The file then stays as it is, replayable up to what was
    /// written, and every later call gives the same error.
    pub fn append(&mut self, entries: &[LogEntry]) -> Result<(), LogError> {
        self.check_usable()?;
        for entry in entries {
            let added = match entry {
                LogEntry::Checkpoint { at, chunk } if chunk.bytes.len() > chunk::CHUNK_BYTES => {
                    chunk::subdivide(chunk).try_for_each(|chunk| self.add(&LogEntry::Checkpoint { at: *at, chunk }))
                }
                entry => self.add(entry),
            };
            added.inspect_err(|error| self.failed = Some(error.clone()))?;
        }
        Ok(())
    }

    fn add(&mut self, entry: &LogEntry) -> Result<(), LogError> {
        self.horizon.advance(entry).map_err(|source| LogError::OutOfOrder {
            path: self.path.clone(),
            source,
            last_good: self.written,
        })?;
        match self.batch.push(entry) {
            Err(EncodeError::BatchFull { .. }) => {
                self.write_batch()?;
                self.batch.push(entry)
            }
            pushed => pushed,
        }
        .map_err(|source| LogError::Encode {
            path: self.path.clone(),
            source,
        })?;
        self.counts.entry(entry);
        if self.batch.bytes() >= FRAME_TARGET {
            self.write_batch()
        } else {
            Ok(())
        }
    }

    /// Writes what has been gathered to the file (not necessarily to the disk).
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.check_usable()?;
        self.write_batch()
    }

    /// Bytes of log frames so far, those still gathered included.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let gathered = if self.batch.entries() > 0 {
            self.batch.bytes() as u64
        } else {
            0
        };
        self.counts.log_bytes + gathered
    }

    /// Writes the rest and the trailer, and makes the file durable.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn finish(mut self, ending: RecordingEnd) -> Result<Trailer, LogError> {
        self.flush()?;
        let trailer = self.counts.trailer(ending);
        let mut encoder = FrameEncoder::new();
        let frame = encoder.record(FrameKind::FileTrailer, NO_GENERATION, &trailer);
        self.write(frame)?;
        let synced = self.sink.sync();
        synced.map_err(|error| self.io("make durable", error))?;
        self.finished = true;
        Ok(trailer)
    }

    /// Bytes of the file that are whole frames.
    #[cfg(test)]
    pub(super) fn offset_for_test(&self) -> u64 {
        self.offset
    }

    fn check_usable(&self) -> Result<(), LogError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn write_batch(&mut self) -> Result<(), LogError> {
        if self.batch.entries() == 0 {
            return Ok(());
        }
        let frame = self.batch.seal(NO_GENERATION);
        let (len, result) = (frame.len() as u64, self.sink.write_all(frame));
        result.map_err(|error| self.io("write", error))?;
        self.offset += len;
        self.counts.log_bytes += len;
        self.written = Some(self.horizon.position());
        self.batch.begin(self.batch.number() + 1);
        Ok(())
    }

    /// Writes a frame that is no log frame.
    fn write(&mut self, frame: Result<&[u8], EncodeError>) -> Result<(), LogError> {
        let frame = frame.map_err(|source| LogError::Encode {
            path: self.path.clone(),
            source,
        })?;
        self.sink.write_all(frame).map_err(|error| self.io("write", error))?;
        self.offset += frame.len() as u64;
        Ok(())
    }

    fn io(&mut self, doing: &'static str, error: io::Error) -> LogError {
        let path = self.path.clone();
        let error = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => LogError::Full {
                path,
                offset: self.offset,
                last_good: self.written,
                source: Arc::new(error),
            },
            _ => LogError::Io {
                doing,
                path,
                source: Arc::new(error),
            },
        };
        self.failed = Some(error.clone());
        error
    }
}

impl<S: LogTarget> Drop for LogWriter<S> {
    /// A recorder that gives up half way still leaves what it gathered.
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.flush()
        {
            tracing::warn!(%error, "the end of an unfinished recording is lost");
        }
    }
}
