//! Tells the world what happens: on standard error, and as JSON lines for whoever reads `--events`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use ftvm_schema::entry::Intervention;

use ftvm_host::failure::Failure;
use ftvm_host::fence::boottime_ns;
use ftvm_roles::event::{Event, Stamped};

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
    /// If it cannot be opened.
    pub fn open(role: &'static str, path: Option<&Path>) -> Result<Self, Failure> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|e| Failure::new(format!("--events {}: {e}", path.display())))
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

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn in_words(event: &Event) -> String {
    match event {
        Event::Leading { generation } => format!("live as generation {generation}"),
        Event::Following { generation } => format!("following generation {generation}"),
        Event::StandingBy { why } => format!("standing by: {why}"),
        Event::State { protection, why } => format!("{protection:?}: {why}"),
        Event::StateRecord { bytes } => format!("state record of {:.1} MiB", ms(*bytes) * 1e6 / f64::from(1 << 20)),
        Event::Cloning {
            round,
            pages,
            of,
            left_ms,
        } => {
            format!(
                "round {round} of the clone: {pages} of {of} pages sent, {:.1} s left",
                ms(*left_ms * 1000)
            )
        }
        Event::Mirroring { bytes, of, left_ms } => format!(
            "private disks: {} of {} MiB sent, {:.1} s left",
            bytes >> 20,
            of >> 20,
            ms(*left_ms * 1000)
        ),
        Event::Cloned {
            rounds,
            pages,
            bytes,
            disk_bytes,
            total_ns,
            slowed_permille,
            stopped_ns,
        } => format!(
            "cloned in {:.1} s: {pages} pages in {rounds} rounds, {:.1} MiB, and {} MiB of private disks; the guest was slowed by \
             {} % for it, and stopped for {:.1} ms",
            ms(*total_ns) / 1e3,
            ms(*bytes) * 1e6 / f64::from(1 << 20),
            disk_bytes >> 20,
            slowed_permille / 10,
            ms(*stopped_ns)
        ),
        Event::Traffic {
            log_bytes,
            exits,
            checkpoints,
            lag_ns,
            idle_permille,
            ..
        } => format!(
            "{log_bytes} bytes of log so far, up to exit {exits}, {checkpoints} micro-checkpoints; lag {:.1} ms, slowed by \
             {}.{} %",
            ms(*lag_ns),
            idle_permille / 10,
            idle_permille % 10
        ),
        Event::Operated { operation, done, text } => {
            let how = if *done { "done" } else { "refused" };
            format!("{} {how}: {text}", operation.name())
        }
        Event::Intervened { what } => match what {
            Intervention::Pause => "the guest is paused".to_owned(),
            Intervention::Resume => "the guest goes on".to_owned(),
            Intervention::Reset => "the guest starts again".to_owned(),
        },
        Event::HandingOver { why } => format!("handing the guest over: {why}"),
        Event::HandedOver => "handed over: the backup may go live, nothing more leaves the old primary".to_owned(),
        Event::PathLost { path, what, hands_over } => {
            let then = if *hands_over {
                "the backup takes over"
            } else {
                "the guest is told"
            };
            format!("{path} is lost here ({what}); {then}")
        }
        Event::DiskSilent {
            disk,
            silent_ms,
            write,
            hands_over,
        } => {
            let then = match (hands_over, write) {
                (true, _) => "the backup takes over",
                (false, true) => {
                    "a write may land at any time, so the guest stays and waits; to give this host up, end it by its power \
                     or cut it off the disk, and the backup goes live"
                }
                (false, false) => "the guest waits",
            };
            format!(
                "disk {disk} has not answered for {:.1} s; {then}",
                ms(*silent_ms * 1000)
            )
        }
        Event::DiskAnswers { disk } => format!("disk {disk} answers again"),
        Event::Diverged { exit, what } => format!("the backup diverged at exit {exit}: {what}"),
        Event::Suspected { reason } => format!("the other side is taken for dead: {reason}"),
        Event::ClaimAsked { generation } => format!("asking for generation {generation}"),
        Event::ClaimWon { generation, took_ns } => format!("won generation {generation} in {:.1} ms", ms(*took_ns)),
        Event::StorageUnreachable { why } => format!("waiting, outputs held: {why}"),
        Event::LeaseOver { waited_ns } => format!("lease outwaited after {:.1} ms", ms(*waited_ns)),
        Event::Drained { took_ns } => format!("log drained after {:.1} ms", ms(*took_ns)),
        Event::WentLive {
            generation,
            reissued,
            reemitted,
        } => format!(
            "LIVE as generation {generation}: {reissued} disk requests issued again, {reemitted} outputs emitted again"
        ),
        Event::FirstOutput => "first output of the new life".to_owned(),
        Event::Ending { code, why } => format!("ending with code {code}: {why}"),
    }
}
