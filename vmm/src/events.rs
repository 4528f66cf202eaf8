//! Tells the world what happens: on standard error, and as JSON lines for whoever reads `--events`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use logging_channel::clock::boottime_ns;

use ftvm_roles::event::{Event, Stamped};
use words::in_words;

mod words;

/// The file of `--events` cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("--events {}: {source}", .path.display())]
pub struct EventsFileError {
    path: PathBuf,
    source: std::io::Error,
}

/// Where events go.
#[derive(Debug)]
pub struct Reporter {
    role: &'static str,
    file: Option<File>,
}

impl Reporter {
    /// Appends to `path` if there is one.
    ///
    /// # Errors
    /// [`EventsFileError`].
    pub fn open(role: &'static str, path: Option<&Path>) -> Result<Self, EventsFileError> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|source| EventsFileError {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Reporter {
            role,
            file: path.map(open).transpose()?,
        })
    }

    /// The process changes its role.
    pub fn role(&mut self, role: &'static str) {
        self.role = role;
    }

    /// Reports one event, with the time.
    pub fn report(&mut self, event: Event) {
        let stamped = Stamped {
            at_ns: boottime_ns(),
            event,
        };
        match &stamped.event {
            Event::Suspected { .. }
            | Event::PathLost { .. }
            | Event::DiskSilent { .. }
            | Event::Diverged { .. }
            | Event::StorageUnreachable { .. }
            | Event::Ending { .. } => {
                tracing::warn!("{}: {}", self.role, in_words(&stamped.event));
            }
            Event::Traffic { .. } | Event::Cloning { .. } => {
                tracing::debug!("{}: {}", self.role, in_words(&stamped.event))
            }
            event => tracing::info!("{}: {}", self.role, in_words(event)),
        }
        if let Some(file) = &mut self.file
            && let Ok(line) = serde_json::to_string(&stamped)
            && let Err(error) = writeln!(file, "{line}")
        {
            tracing::warn!("--events: {error}; no further events are written there");
            self.file = None;
        }
    }
}
