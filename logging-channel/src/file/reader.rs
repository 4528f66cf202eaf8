//! Reading a log file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Counts, FileHeader, HeaderRecord, LogError, MAX_STATE_BYTES, Trailer};
use crate::chunk::{Assembler, ChunkError};
use crate::codec::{FrameDecoder, FrameError, FrameFault, FrameKind, HEADER_BYTES, READ_CHUNK, RawFrame};
use crate::flow::Horizon;
use crate::message::{Message, PROTOCOL_VERSION};
use ftvm_schema::entry::{LogEntry, Position};

/// Reads a log file from its beginning, holding a frame or two of it.
///
/// An iterator over its entries, too: after an error it ends.
#[derive(Debug)]
pub struct LogReader<R: Read = File> {
    source: Source<R>,
    header: FileHeader,
    /// The rest of the frame that is being yielded.
    entries: std::vec::IntoIter<LogEntry>,
    /// Number of the next log frame.
    number: u64,
    horizon: Horizon,
    last_good: Option<Position>,
    counts: Counts,
    trailer: Option<Trailer>,
    failed: Option<LogError>,
}

/// The file's bytes on their way into the decoder.
#[derive(Debug)]
struct Source<R> {
    file: R,
    path: PathBuf,
    decoder: FrameDecoder,
    buffer: Box<[u8]>,
}

/// What a frame of the file holds.
enum Content {
    Header(HeaderRecord),
    State(ftvm_schema::entry::Chunk),
    Log {
        number: u64,
        entries: Vec<LogEntry>,
        bytes: u64,
    },
    Trailer(Trailer),
}

impl Content {
    fn decode(raw: &RawFrame<'_>) -> Result<Content, FrameError> {
        match raw.kind {
            FrameKind::FileHeader => raw.record(FrameKind::FileHeader).map(Content::Header),
            FrameKind::FileTrailer => raw.record(FrameKind::FileTrailer).map(Content::Trailer),
            kind => match raw.message()? {
                Message::State(chunk) => Ok(Content::State(chunk)),
                Message::Log { number, entries } => Ok(Content::Log {
                    number,
                    entries,
                    bytes: (HEADER_BYTES + raw.payload.len()) as u64,
                }),
                _ => Err(out_of_place(raw.frame, raw.offset, kind)),
            },
        }
    }
}

fn out_of_place(frame: u64, offset: u64, kind: FrameKind) -> FrameError {
    FrameError {
        frame,
        offset,
        fault: FrameFault::OutOfPlace { kind },
    }
}

/// A frame of the file, and where it is.
struct Place {
    frame: u64,
    offset: u64,
    kind: FrameKind,
}

impl Place {
    fn out_of_place(&self) -> FrameError {
        out_of_place(self.frame, self.offset, self.kind)
    }
}

/// Why there is no next frame.
enum Stop {
    /// The file ends here, between frames.
    End,
    Io(LogError),
    Frame(FrameError),
}

impl<R: Read> Source<R> {
    fn next(&mut self) -> Result<(Place, Content), Stop> {
        loop {
            if let Some(raw) = self.decoder.next_raw().map_err(Stop::Frame)? {
                let place = Place {
                    frame: raw.frame,
                    offset: raw.offset,
                    kind: raw.kind,
                };
                return Content::decode(&raw)
                    .map(|content| (place, content))
                    .map_err(Stop::Frame);
            }
            let read = match self.file.read(&mut self.buffer) {
                Ok(0) => return Err(self.decoder.finish().map_or_else(Stop::Frame, |()| Stop::End)),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Stop::Io(LogError::Io {
                        doing: "read",
                        path: self.path.clone(),
                        source: Arc::new(error),
                    }));
                }
            };
            self.decoder.push(&self.buffer[..read]).map_err(Stop::Frame)?;
        }
    }

    fn error(&self, stop: Stop, last_good: Option<Position>) -> LogError {
        let path = self.path.clone();
        match stop {
            Stop::End
            | Stop::Frame(FrameError {
                fault: FrameFault::Truncated { .. },
                ..
            }) => LogError::Truncated {
                path,
                offset: self.decoder.offset(),
                last_good,
            },
            Stop::Io(error) => error,
            Stop::Frame(source) => LogError::Damaged {
                path,
                source,
                last_good,
            },
        }
    }
}

impl LogReader<File> {
    /// Opens a log file and reads its header, and the state it starts from if it has one.
    ///
    /// # Errors
    /// The file cannot be read, is no log, is of another version, or ends or is damaged before its first entry.
    pub fn open(path: &Path) -> Result<LogReader, LogError> {
        let file = File::open(path).map_err(|error| LogError::Io {
            doing: "open",
            path: path.into(),
            source: Arc::new(error),
        })?;
        LogReader::new(file, path)
    }
}

impl<R: Read> LogReader<R> {
    /// Reads a log from `source`; `path` is its name in errors.
    ///
    /// # Errors
    /// As [`LogReader::open`].
    pub fn new(source: R, path: &Path) -> Result<LogReader<R>, LogError> {
        let mut source = Source {
            file: source,
            path: path.into(),
            decoder: FrameDecoder::new(),
            buffer: vec![0; READ_CHUNK].into_boxed_slice(),
        };
        let header = read_header(&mut source)?;
        Ok(LogReader {
            source,
            header,
            entries: Vec::new().into_iter(),
            number: 1,
            horizon: Horizon::default(),
            last_good: None,
            counts: Counts::default(),
            trailer: None,
            failed: None,
        })
    }

    #[must_use]
    pub fn header(&self) -> &FileHeader {
        &self.header
    }

    /// Takes the state out of the header: it may be as large as the guest's memory.
    pub fn take_state(&mut self) -> Option<Vec<u8>> {
        self.header.state.take()
    }

    /// The trailer, once [`LogReader::next_entry`] has given `None`.
    #[must_use]
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.as_ref()
    }

    /// How far the entries yielded so far reach.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.last_good
    }

    /// The next entry, or `None` after the last: then the trailer has been read and agrees with what was.
    ///
    /// # Errors
    /// The file is cut off or damaged here; every entry before has been yielded. Later calls give the same error.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, LogError> {
        loop {
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if let Some(entry) = self.entries.next() {
                return self.admit(entry).map(Some);
            }
            if self.trailer.is_some() {
                return Ok(None);
            }
            self.next_frame().map_err(|error| self.fail(error))?;
        }
    }

    fn admit(&mut self, entry: LogEntry) -> Result<LogEntry, LogError> {
        if let Err(source) = self.horizon.advance(&entry) {
            return Err(self.fail(LogError::OutOfOrder {
                path: self.source.path.clone(),
                source,
                last_good: self.last_good,
            }));
        }
        self.last_good = Some(self.horizon.position());
        self.counts.entry(&entry);
        Ok(entry)
    }

    fn fail(&mut self, error: LogError) -> LogError {
        self.failed = Some(error.clone());
        error
    }

    fn next_frame(&mut self) -> Result<(), LogError> {
        match self.source.next() {
            Ok((_, Content::Log { number, entries, bytes })) => {
                if number != self.number {
                    return Err(LogError::Missing {
                        path: self.source.path.clone(),
                        expected: self.number,
                        found: number,
                        last_good: self.last_good,
                    });
                }
                self.number += 1;
                self.counts.log_bytes += bytes;
                self.entries = entries.into_iter();
                Ok(())
            }
            Ok((_, Content::Trailer(trailer))) => {
                self.check_trailer(&trailer)?;
                self.trailer = Some(trailer);
                Ok(())
            }
            Ok((place, Content::Header(_) | Content::State(_))) => {
                Err(self.source.error(Stop::Frame(place.out_of_place()), self.last_good))
            }
            Err(stop) => Err(self.source.error(stop, self.last_good)),
        }
    }

    fn check_trailer(&mut self, trailer: &Trailer) -> Result<(), LogError> {
        let counts = self.counts;
        for (what, expected, found) in [
            ("entries", trailer.entries, counts.entries),
            ("inputs", trailer.inputs, counts.inputs),
            ("checkpoints", trailer.checkpoints, counts.checkpoints),
            ("bytes of log", trailer.log_bytes, counts.log_bytes),
        ] {
            if expected != found {
                return Err(LogError::Miscounted {
                    path: self.source.path.clone(),
                    what,
                    expected,
                    found,
                });
            }
        }
        match self.source.next() {
            Err(Stop::End) => Ok(()),
            Ok((place, _)) => Err(self.source.error(Stop::Frame(place.out_of_place()), self.last_good)),
            // The log is complete at its trailer, so half a frame behind it is not a log that was cut off: it does not
            // belong there.
            Err(Stop::Frame(source)) => Err(LogError::Damaged {
                path: self.source.path.clone(),
                source,
                last_good: self.last_good,
            }),
            Err(stop @ Stop::Io(_)) => Err(self.source.error(stop, self.last_good)),
        }
    }
}

impl<R: Read> Iterator for LogReader<R> {
    type Item = Result<LogEntry, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed.is_some() {
            None
        } else {
            self.next_entry().transpose()
        }
    }
}

fn read_header<R: Read>(source: &mut Source<R>) -> Result<FileHeader, LogError> {
    let path = source.path.clone();
    let record = match source.next() {
        Ok((_, Content::Header(record))) => record,
        Ok((place, _)) => {
            return Err(LogError::NotALog {
                path,
                source: place.out_of_place(),
            });
        }
        Err(Stop::Frame(
            error @ FrameError {
                fault: FrameFault::NotAFrame { .. } | FrameFault::WrongVersion { .. },
                ..
            },
        )) => return Err(LogError::NotALog { path, source: error }),
        Err(stop) => return Err(source.error(stop, None)),
    };
    if record.version != PROTOCOL_VERSION {
        return Err(LogError::OtherVersion {
            path,
            expected: PROTOCOL_VERSION,
            found: record.version,
        });
    }
    let state = record.state_bytes.map(|total| read_state(source, total)).transpose()?;
    Ok(FileHeader {
        version: record.version,
        created_unix_ns: record.created_unix_ns,
        verify: record.verify,
        program: record.program,
        args: record.args,
        config: record.config,
        state,
    })
}

fn read_state<R: Read>(source: &mut Source<R>, total: u64) -> Result<Vec<u8>, LogError> {
    let unusable = |path: &Path, source: ChunkError| LogError::State {
        path: path.into(),
        source,
    };
    let mut assembler = Assembler::new(total.min(MAX_STATE_BYTES));
    loop {
        match source.next() {
            Ok((_, Content::State(chunk))) => {
                if chunk.total != total {
                    let error = ChunkError::DoesNotFit {
                        offset: chunk.offset,
                        len: chunk.total,
                        total,
                    };
                    return Err(unusable(&source.path, error));
                }
                if let Some(state) = assembler.add(chunk).map_err(|error| unusable(&source.path, error))? {
                    return Ok(state);
                }
            }
            Ok((place, _)) => return Err(source.error(Stop::Frame(place.out_of_place()), None)),
            Err(stop) => return Err(source.error(stop, None)),
        }
    }
}
