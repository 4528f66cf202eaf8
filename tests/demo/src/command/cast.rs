//! Who plays: primary, backup, hub and client, with the command lines and the waits until they are all at work.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use logging_channel::clock::boottime_ns;

use super::act::{ActError, failover_limit};
use super::args::DemoArgs;
use super::children::Side;
use super::eventfile::EventFile;
use super::folder::Folder;
use super::screen::Screen;
use crate::client::{Client, ClientConfig};
use crate::hub::{Hub, HubPort, PortId};
use ftvm_roles::event::{Event, Protection, Stamped};

/// How often everything is looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// For boot and join, and for the first writes: emulated processors are 10 to 30 times slower than real ones.
const START_LIMIT: Duration = Duration::from_secs(180);

/// For reading everything back.
const VERIFY_LIMIT: Duration = Duration::from_secs(180);

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

/// Everything that runs.
#[derive(Debug)]
pub struct Cast<'a> {
    pub primary: Side,
    pub backup: Side,
    pub primary_events: EventFile,
    pub backup_events: EventFile,
    pub hub: Hub,
    pub backup_port: PortId,
    pub interrupted: &'a AtomicBool,
}

impl Cast<'_> {
    pub fn start<'a>(folder: &Folder, args: &DemoArgs, interrupted: &'a AtomicBool) -> Result<Cast<'a>, ActError> {
        let host = |error| ActError::host(folder.path().display().to_string(), error);
        std::fs::create_dir(folder.file("shared")).map_err(host)?;
        let disk = std::fs::File::create_new(folder.file("disk.img")).map_err(host)?;
        disk.set_len(DISK_BYTES).map_err(host)?;
        let hub = Hub::start()?;
        let plug = |name: &str| {
            let port = HubPort {
                hub: folder.file(&format!("hub-{name}.sock")),
                peer: folder.file(&format!("{name}.sock")),
            };
            hub.add(&port)
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
    pub fn look(&self) -> Result<(), ActError> {
        std::thread::sleep(LOOK);
        match self.interrupted.load(Ordering::Acquire) {
            true => Err(ActError::Interrupted),
            false => Ok(()),
        }
    }

    pub fn late(&self, what: &str, limit: Duration) -> ActError {
        let what = format!("{what} within {} s", limit.as_secs());
        ActError::Failed {
            what,
            said: self.primary.last_words() + &self.backup.last_words(),
        }
    }

    pub fn wait_for_protection(&mut self, screen: &Screen) -> Result<(), ActError> {
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

    pub fn start_client(&self, folder: &Folder, args: &DemoArgs) -> Result<Client, ActError> {
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
        Ok(Client::start(config)?)
    }

    /// Both sides and the client are expected to be at work, and the guest protected.
    ///
    /// # Errors
    /// [`ActError::Parted`] if the pair is none any more.
    pub fn expect_work(&mut self, client: &Client) -> Result<(), ActError> {
        let state = self
            .primary_events
            .read()?
            .iter()
            .rev()
            .find_map(|seen| match &seen.event {
                Event::State { protection, why } => Some((*protection, why.clone())),
                _ => None,
            });
        let what = match (state, self.primary.expect_alive(), self.backup.expect_alive()) {
            (Some((Protection::NotProtected | Protection::Deciding, why)), ..) => why,
            (_, Err(ActError::Failed { what, .. }), _) | (_, _, Err(ActError::Failed { what, .. })) => what,
            _ => return self.expect_client(client),
        };
        Err(ActError::Parted {
            what,
            said: self.primary.last_words() + &self.backup.last_words(),
        })
    }

    pub fn expect_client(&self, client: &Client) -> Result<(), ActError> {
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
    pub fn wait_for_steady_writes(&mut self, client: &Client, screen: &Screen) -> Result<u64, ActError> {
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

    pub fn pass(&mut self, time: Duration, client: &Client) -> Result<(), ActError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.expect_work(client)?;
            self.look()?;
        }
        Ok(())
    }
}

/// A port nobody has now; whoever takes it before the primary makes the run fail with a clear message.
fn free_address() -> Result<String, ActError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound
        .map(|address| address.to_string())
        .map_err(|e| ActError::host("no free port on 127.0.0.1", e))
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
