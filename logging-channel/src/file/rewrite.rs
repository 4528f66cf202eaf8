//! Copying a log file with changes.

use std::path::Path;

use super::{Existing, LogError, LogReader, LogWriter, Trailer};
use ftvm_schema::entry::LogEntry;

/// Copies the log `from` to `to`, each entry as `change` makes it, or without it where `change` gives `None`.
///
/// The copy's checksums and counts are right, so that only replay itself can notice what was changed: tests plant
/// faults this way. The ending is copied as it is.
///
/// # Errors
/// `from` is not whole, `to` exists (or is `from` itself, whatever is asked for) or cannot be written, or the changed
/// entries are out of order.
pub fn rewrite(
    from: &Path,
    to: &Path,
    existing: Existing,
    mut change: impl FnMut(LogEntry) -> Option<LogEntry>,
) -> Result<Trailer, LogError> {
    let mut reader = LogReader::open(from)?;
    if let (Ok(from), Ok(canonical)) = (from.canonicalize(), to.canonicalize())
        && from == canonical
    {
        return Err(LogError::Exists { path: to.into() });
    }
    let mut writer = LogWriter::create(to, reader.header(), existing)?;
    while let Some(entry) = reader.next_entry()? {
        if let Some(entry) = change(entry) {
            writer.append(&[entry])?;
        }
    }
    let trailer = reader
        .trailer()
        .expect("a log that ends without an error has its trailer");
    writer.finish(trailer.ending.clone())
}
