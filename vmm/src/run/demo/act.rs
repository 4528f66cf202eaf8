//! One kill from beginning to end: a pair and a client come up, the primary dies in mid-write, the client goes on,
//! everything is read back, the survivor ends.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use logging_channel::clock::boottime_ns;

use super::children::Side;
use super::eventfile::EventFile;
use super::figures::{Facts, RunFigures};
use super::folder::Folder;
use super::picture::{ClientView, timeline};
use super::screen::Screen;
use crate::cli::DemoArgs;
use crate::demo::client::{Client, ClientConfig, ClientReport};
use crate::demo::hub::{Hub, HubPort, PortId};
use crate::roles::event::{Event, Protection, Stamped};

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Events younger than this are not drawn yet: another source may still bring an earlier one.
const SETTLE_NS: u64 = 100_000_000;

/// For boot and join, and for the first writes: emulated processors are 10 to 30 times slower than real ones.
const START_LIMIT: Duration = Duration::from_secs(180);

/// For the failover, beyond detection and lease.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);

/// For reading everything back.
const VERIFY_LIMIT: Duration = Duration::from_secs(180);

/// For the survivor's end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The client writes on for this long after the failover.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Acknowledged writes before the kill, at least.
const MIN_ACKS: u64 = 300;

/// Reports of the log's size in the steady time before the kill, at least: a rate needs two.
const MIN_REPORTS: usize = 2;

/// The client's pace and depth: a busy server, yet a demo's worth of keys to read back.
const WRITE_EVERY: Duration = Duration::from_millis(1);
const DEPTH: usize = 4;

/// More keys than a demo writes, so that every write is read back.
const KEYS: usize = 1 << 20;

/// Room for kv's append-only log; a sparse file.
const DISK_BYTES: u64 = 64 << 20;

const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const GUEST_PORT: u16 = 6379;
const GUEST_MAC: &str = "52:54:00:07:00:02";
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
const CLIENT_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x07, 0x00, 0x01];
const PREFIX: u8 = 24;

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error("interrupted")]
    Interrupted,
    /// This machine does not give what is needed.
    #[error("{0}")]
    Host(String),
    /// Something did not happen, or the wrong thing did.
    #[error("{what}{said}")]
    Failed { what: String, said: String },
}

/// Everything that runs.
#[derive(Debug)]
struct Cast<'a> {
    primary: Side,
    backup: Side,
    primary_events: EventFile,
    backup_events: EventFile,
    hub: Hub,
    backup_port: PortId,
    interrupted: &'a AtomicBool,
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
    cast.primary.expect_alive()?;
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
    fn start<'a>(folder: &Folder, args: &DemoArgs, interrupted: &'a AtomicBool) -> Result<Cast<'a>, ActError> {
        let host = |error: std::io::Error| ActError::Host(format!("{}: {error}", folder.path().display()));
        std::fs::create_dir(folder.file("shared")).map_err(host)?;
        let disk = std::fs::File::create_new(folder.file("disk.img")).map_err(host)?;
        disk.set_len(DISK_BYTES).map_err(host)?;
        let hub = Hub::start().map_err(|e| ActError::Host(e.to_string()))?;
        let plug = |name: &str| {
            let port = HubPort {
                hub: folder.file(&format!("hub-{name}.sock")),
                peer: folder.file(&format!("{name}.sock")),
            };
            hub.add(&port).map_err(|e| ActError::Host(e.to_string()))
        };
        plug("client")?;
        plug("primary")?;
        let backup_port = plug("backup")?;
        let primary_events = folder.file("primary.events");
        let backup_events = folder.file("backup.events");
        let listen = free_address()?;
        let primary = Side::start(
            "primary",
            &primary_line(folder, args, &listen),
            &folder.file("primary.log"),
        )?;
        let backup = Side::start(
            "backup",
            &backup_line(folder, args, &listen),
            &folder.file("backup.log"),
        )?;
        Ok(Cast {
            primary,
            backup,
            primary_events: EventFile::new(&primary_events),
            backup_events: EventFile::new(&backup_events),
            hub,
            backup_port,
            interrupted,
        })
    }

    /// Sleeps for a look, unless the user has had enough.
    fn look(&self) -> Result<(), ActError> {
        std::thread::sleep(LOOK);
        match self.interrupted.load(Ordering::Acquire) {
            true => Err(ActError::Interrupted),
            false => Ok(()),
        }
    }

    fn late(&self, what: &str, limit: Duration) -> ActError {
        let what = format!("{what} within {} s", limit.as_secs());
        ActError::Failed {
            what,
            said: self.primary.last_words() + &self.backup.last_words(),
        }
    }

    fn wait_for_protection(&mut self, screen: &Screen) -> Result<(), ActError> {
        let begun = Instant::now();
        let protected = |seen: &Stamped| {
            matches!(
                seen.event,
                Event::State {
                    protection: Protection::Protected,
                    ..
                }
            )
        };
        while !self.backup_events.read()?.iter().any(protected) {
            self.primary.expect_alive()?;
            self.backup.expect_alive()?;
            if begun.elapsed() > START_LIMIT {
                return Err(self.late("the backup was not complete", START_LIMIT));
            }
            screen.progress(&format!(
                "waiting for the backup to be complete ({} s)",
                begun.elapsed().as_secs()
            ));
            self.look()?;
        }
        Ok(())
    }

    fn start_client(&self, folder: &Folder, args: &DemoArgs) -> Result<Client, ActError> {
        let config = ClientConfig {
            local: folder.file("client.sock"),
            hub: folder.file("hub-client.sock"),
            mac: CLIENT_MAC,
            ip: CLIENT_IP,
            prefix: PREFIX,
            server: (GUEST_IP, GUEST_PORT),
            keys: KEYS,
            depth: DEPTH,
            write_every: WRITE_EVERY,
            connect_wait: START_LIMIT,
            silence: failover_limit(args),
            verify_wait: VERIFY_LIMIT,
        };
        Client::start(config).map_err(|e| ActError::Host(e.to_string()))
    }

    /// Both sides and the client are expected to be at work.
    fn expect_work(&mut self, client: &Client) -> Result<(), ActError> {
        self.primary.expect_alive()?;
        self.backup.expect_alive()?;
        self.expect_client(client)
    }

    fn expect_client(&self, client: &Client) -> Result<(), ActError> {
        let progress = client.progress();
        if !progress.ended {
            return Ok(());
        }
        let what = match progress.connected {
            false => "the client could not connect".to_owned(),
            true => format!(
                "the client lost its connection after {} acknowledged writes",
                progress.acked_writes
            ),
        };
        Err(ActError::Failed {
            what,
            said: self.primary.last_words() + &self.backup.last_words(),
        })
    }

    /// Waits until writes are acknowledged and the log's cost has been reported; since when that is so.
    fn wait_for_steady_writes(&mut self, client: &Client, screen: &Screen) -> Result<u64, ActError> {
        let begun = Instant::now();
        let mut steady = None;
        loop {
            self.expect_work(client)?;
            let acked = client.progress().acked_writes;
            if acked > 0 {
                let steady = *steady.get_or_insert_with(boottime_ns);
                let reports = |seen: &&Stamped| matches!(seen.event, Event::Traffic { .. }) && seen.at_ns >= steady;
                let reports = self.primary_events.read()?.iter().filter(reports).count();
                if acked >= MIN_ACKS && reports >= MIN_REPORTS {
                    return Ok(steady);
                }
            }
            if begun.elapsed() > START_LIMIT {
                return Err(self.late(
                    &format!("only {acked} of {MIN_ACKS} writes were acknowledged"),
                    START_LIMIT,
                ));
            }
            screen.progress(&format!(
                "{acked} writes acknowledged ({} s)",
                begun.elapsed().as_secs()
            ));
            self.look()?;
        }
    }

    fn pass(&mut self, time: Duration, client: &Client) -> Result<(), ActError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.expect_work(client)?;
            self.look()?;
        }
        Ok(())
    }

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
        thread.map_err(|e| ActError::Host(format!("cannot start a thread: {e}")))?;
        loop {
            match result.recv_timeout(LOOK) {
                Ok(report) => return report.map_err(|e| ActError::Host(e.to_string())),
                Err(RecvTimeoutError::Timeout) => self.look()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ActError::Host("the thread that reads back is gone".to_owned()));
                }
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

fn failover_limit(args: &DemoArgs) -> Duration {
    FAILOVER_LIMIT + Duration::from_millis(args.detection + args.lease)
}

/// A port nobody has now; whoever takes it before the primary makes the run fail with a clear message.
fn free_address() -> Result<String, ActError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound
        .map(|address| address.to_string())
        .map_err(|e| ActError::Host(format!("no free port on 127.0.0.1: {e}")))
}

fn primary_line(folder: &Folder, args: &DemoArgs, listen: &str) -> Vec<String> {
    let mut line = vec![
        "--primary".to_owned(),
        "--kernel=builtin:kv".to_owned(),
        "--memory=64M".to_owned(),
    ];
    line.push(format!("--cmdline=ip={GUEST_IP}/{PREFIX} port={GUEST_PORT}"));
    line.push(format!("--listen={listen}"));
    line.push(format!("--detection={}", args.detection));
    line.push(format!("--lease={}", args.lease));
    line.extend(common(folder, "primary", &format!(",mac={GUEST_MAC}")));
    line
}

fn backup_line(folder: &Folder, args: &DemoArgs, peer: &str) -> Vec<String> {
    let mut line = vec!["--backup".to_owned(), format!("--peer={peer}")];
    line.push(format!("--detection={}", args.detection));
    line.push(format!("--lease={}", args.lease));
    line.extend(common(folder, "backup", ""));
    line
}

/// What both sides have: the shared disk and directory, a cable to the hub, the same console file.
fn common(folder: &Folder, name: &str, mac: &str) -> Vec<String> {
    let path = |name: &str| folder.file(name).display().to_string();
    vec![
        // Both sides are on one machine and see one page cache; temporary directories often lack O_DIRECT.
        format!("--disk=path={},direct=off", path("disk.img")),
        format!(
            "--net=dgram={},remote={}{mac}",
            path(&format!("{name}.sock")),
            path(&format!("hub-{name}.sock"))
        ),
        format!("--console=file={}", path("console.txt")),
        format!("--shared={}", path("shared")),
        format!("--events={}", path(&format!("{name}.events"))),
    ]
}
