//! One kill from beginning to end: a pair and a client come up, the primary dies in mid-write, the client goes on,
//! everything is read back, the survivor ends.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use logging_channel::clock::boottime_ns;

use super::args::DemoArgs;
use super::cast::{Cast, LOOK};
use super::figures::{Facts, RunFigures};
use super::folder::Folder;
use super::picture::{ClientView, timeline};
use super::screen::Screen;
use crate::client::{Client, ClientError, ClientReport};
use crate::hub::HubError;

/// Events younger than this are not drawn yet: another source may still bring an earlier one.
const SETTLE_NS: u64 = 100_000_000;

/// For the failover, beyond detection and lease.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);

/// For the survivor's end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The client writes on for this long after the failover.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error("interrupted")]
    Interrupted,
    /// This machine does not give what is needed.
    #[error("{what}: {source}")]
    Host {
        /// What was wanted of it, or of which file.
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no network for the pair.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// There is no client, or it came to no end.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What is said to be events is too much for a demo.
    #[error("{}: more events, or longer ones, than a demo has", .0.display())]
    TooManyEvents(PathBuf),
    /// The thread that waits for the client has ended without a word.
    #[error("the thread that reads back is gone")]
    ReaderGone,
    /// The pair came apart before the kill: there was nothing to show. A machine too busy for the detection time does that.
    #[error("the pair came apart before the kill: {what}{said}")]
    Parted { what: String, said: String },
    /// Something did not happen, or the wrong thing did.
    #[error("{what}{said}")]
    Failed { what: String, said: String },
}

impl ActError {
    /// With what cannot be had from this machine, and why.
    pub(super) fn host(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        ActError::Host {
            what: what.into(),
            source: source.into(),
        }
    }

    /// What a user may try, on a line of its own; empty where there is nothing.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            ActError::Parted { .. } => "\nThis machine may be too busy: try --detection 2000 --lease 1000.",
            _ => "",
        }
    }
}

/// When and at what the primary was killed.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at: Instant,
    at_ns: u64,
    steady_ns: u64,
    acked: u64,
}

impl Kill {
    /// CLOCK_BOOTTIME of an instant.
    fn boottime(&self, instant: Instant) -> u64 {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.at) {
            Some(after) => self.at_ns.saturating_add(ns(after)),
            None => self.at_ns.saturating_sub(ns(self.at.duration_since(instant))),
        }
    }
}

/// Performs run `number`; the kill comes `wait_ms` after everything is in its steady state.
///
/// # Errors
/// See [`ActError`]; every wait is bounded.
pub fn perform(
    folder: &Folder,
    args: &DemoArgs,
    number: u32,
    wait_ms: u64,
    screen: &mut Screen,
    interrupted: &AtomicBool,
) -> Result<RunFigures, ActError> {
    let title = match args.kills {
        1 => "kv on two hosts: the primary is killed, the backup takes over".to_owned(),
        kills => format!("kv on two hosts, kill {number} of {kills}"),
    };
    screen.stage(&format!("{title}; starting primary and backup"));
    let mut cast = Cast::start(folder, args, interrupted)?;
    cast.wait_for_protection(screen)?;
    screen.stage("protected; the client connects and writes");
    let client = cast.start_client(folder, args)?;
    let steady_ns = cast.wait_for_steady_writes(&client, screen)?;
    cast.pass(Duration::from_millis(wait_ms), &client)?;

    let acked = client.progress().acked_writes;
    cast.expect_work(&client)?;
    let kill = Kill {
        at: Instant::now(),
        at_ns: boottime_ns(),
        steady_ns,
        acked,
    };
    cast.primary.kill()?;
    cast.watch_failover(&title, &kill, &client, args, screen)?;
    screen.progress("every acknowledged write is read back");
    let report = cast.read_back(client)?;

    let status = cast.backup.terminate(END_LIMIT)?;
    if !status.success() {
        let what = format!("the survivor was asked to end with SIGTERM and ended with {status}, expected code 0");
        return Err(ActError::Failed {
            what,
            said: cast.backup.last_words(),
        });
    }
    cast.conclude(&title, &kill, &report, screen)
}

impl Cast<'_> {
    /// Draws until the client has gone on for a while.
    fn watch_failover(
        &mut self,
        title: &str,
        kill: &Kill,
        client: &Client,
        args: &DemoArgs,
        screen: &mut Screen,
    ) -> Result<(), ActError> {
        let limit = failover_limit(args);
        // Acknowledgements that were on their way when the primary died do not count.
        let mut acked_at_first_frame = None;
        let mut goes_on = None;
        while goes_on.is_none_or(|since: Instant| since.elapsed() < AFTERWARDS) {
            self.look()?;
            self.backup.expect_alive()?;
            self.expect_client(client)?;
            let progress = client.progress();
            let now = boottime_ns();
            let facts = self.facts(kill)?;
            if facts.first_frame_ns.is_some() {
                let before = *acked_at_first_frame.get_or_insert(progress.acked_writes);
                if progress.acked_writes > before {
                    goes_on.get_or_insert_with(Instant::now);
                }
            }
            let history = client.history();
            let view = ClientView {
                acked_at_kill: kill.acked,
                history: &history,
                begun_ns: kill.boottime(client.begun()),
                gap_ns: (progress.longest_gap.from_ns, progress.longest_gap.to_ns),
            };
            screen.update(&timeline(
                title,
                &facts,
                &view,
                (now, now.saturating_sub(SETTLE_NS)),
                None,
            ));
            if goes_on.is_none() && kill.at.elapsed() > limit {
                return Err(self.late("the client was not served again", limit));
            }
        }
        Ok(())
    }

    fn facts(&mut self, kill: &Kill) -> Result<Facts<'_>, ActError> {
        let first = self.hub.times(self.backup_port).first_of_guest;
        Ok(Facts {
            killed_ns: kill.at_ns,
            first_frame_ns: first.map(|at| kill.boottime(at)),
            steady_ns: kill.steady_ns,
            primary: self.primary_events.read()?,
            backup: self.backup_events.read()?,
        })
    }

    /// Has the client read back; on a thread of its own, because that takes a while and the user may have had enough.
    fn read_back(&self, client: Client) -> Result<ClientReport, ActError> {
        let (done, result) = std::sync::mpsc::channel();
        let finish = move || {
            // Nobody waits any more if the user has had enough.
            let _ = done.send(client.finish());
        };
        let thread = std::thread::Builder::new().name("verify".to_owned()).spawn(finish);
        thread.map_err(|e| ActError::host("cannot start a thread", e))?;
        loop {
            match result.recv_timeout(LOOK) {
                Ok(report) => return Ok(report?),
                Err(RecvTimeoutError::Timeout) => self.look()?,
                Err(RecvTimeoutError::Disconnected) => return Err(ActError::ReaderGone),
            }
        }
    }

    fn conclude(
        &mut self,
        title: &str,
        kill: &Kill,
        report: &ClientReport,
        screen: &mut Screen,
    ) -> Result<RunFigures, ActError> {
        let facts = self.facts(kill)?;
        let figures = RunFigures::of(&facts, &report.tally, report.connection_survived());
        let gap = report.tally.longest_gap;
        let view = ClientView {
            acked_at_kill: kill.acked,
            history: &report.history,
            begun_ns: kill.boottime(report.begun),
            gap_ns: (gap.from_ns, gap.to_ns),
        };
        let now = boottime_ns();
        screen.finish(&timeline(title, &facts, &view, (now, now), Some(&figures)));
        if let Some(lost) = &report.tally.first_lost {
            screen.stage(&format!("the first lost write: {lost}"));
        }
        Ok(figures)
    }
}

/// How long the client is given to be served again.
#[must_use]
pub fn failover_limit(args: &DemoArgs) -> Duration {
    FAILOVER_LIMIT + Duration::from_millis(args.detection + args.lease)
}
