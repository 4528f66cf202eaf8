//! A protected Linux guest with real Redis and real nginx, whose primary host loses its power.
//!
//! Two nested hosts, each a QEMU of its own, have one disk and one folder in common. Their network, and the clients', is
//! a hub in this process. Kill after kill on fresh hosts: the emulator of the primary is killed at a random moment, so
//! everything that host had not written is gone. Then both TCP connections must live on, every acknowledged write must
//! be there, the guest's clock must be right, and its file system must be clean after it has switched itself off.

pub mod host;
pub mod http;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmm::demo::client::{Client, ClientConfig};
use vmm::demo::hub::{Hub, HubPort};
use vmm::roles::event::Event;

use crate::nested::Host;
use host::{Common, FtHost, Side};
use http::{Http, HttpConfig};

/// The guest's card.
pub const GUEST_MAC: &str = "52:54:00:07:00:02";
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const PREFIX: u8 = 24;
const REDIS_PORT: u16 = 6379;
const HTTP_PORT: u16 = 80;
const CLIENT_MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 7, 0, 0x21], [0x52, 0x54, 0, 7, 0, 0x22]];
const CLIENT_IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 7, 21), Ipv4Addr::new(192, 168, 7, 22)];

/// Two emulated hosts boot, one of them boots Linux and the other takes its state.
const START_LIMIT: Duration = Duration::from_secs(400);
/// For the failover, beyond the detection time.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);
/// For reading everything back.
const VERIFY_LIMIT: Duration = Duration::from_secs(300);
/// A host lives no longer, whatever happens.
const HOST_LIMIT: Duration = Duration::from_secs(1500);
/// Acknowledged writes and pages before the kill, at least, and after the failover.
const MIN_ACKS: u64 = 100;
const MIN_PAGES: u64 = 5;
/// Up to so much later the kill comes.
const KILL_WITHIN_MS: u64 = 5000;
/// The guest's clock may be off by this after a failover: whole seconds on both sides, and an emulated console.
const CLOCK_TOLERANCE_S: u64 = 3;
/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// A disk with Redis and nginx; each kill has a copy of its own.
    pub disk: PathBuf,
    pub kills: u32,
    pub seed: u64,
    pub detection: Duration,
    pub lease: Duration,
    pub memory_mib: u32,
    /// For disks and sockets.
    pub folder: PathBuf,
}

/// Performs the kills; `each` hears of every one when it is over: its figures, or what went wrong.
///
/// # Errors
/// If this machine cannot have nested hosts.
pub fn run(settings: &Settings, mut each: impl FnMut(u32, &Result<Value, String>)) -> Result<Vec<Value>, String> {
    let host = Host::locate().map_err(|e| e.to_string())?;
    let mut figures = Vec::new();
    for number in 1..=settings.kills {
        let folder = settings.folder.join(format!("kill-{number}"));
        fs::create_dir_all(folder.join("shared")).map_err(|e| format!("{}: {e}", folder.display()))?;
        let result = Act::start(&host, settings, number, &folder).and_then(Act::perform);
        each(number, &result);
        figures.push(result.unwrap_or_else(|wrong| json!({ "kill": number, "wrong": wrong })));
        let _ = fs::remove_dir_all(&folder);
    }
    Ok(figures)
}

/// One kill: everything that runs.
struct Act<'a> {
    settings: &'a Settings,
    number: u32,
    common: Common,
    primary: FtHost,
    backup: FtHost,
    hub: Hub,
    redis: ClientConfig,
    http: HttpConfig,
}

impl<'a> Act<'a> {
    fn start(host: &Host, settings: &'a Settings, number: u32, folder: &Path) -> Result<Self, String> {
        let disk = folder.join("disk");
        fs::copy(&settings.disk, &disk).map_err(|e| format!("{}: {e}", disk.display()))?;
        let common = Common {
            kernel: settings.kernel.clone(),
            initrd: settings.initrd.clone(),
            disk,
            shared: folder.join("shared"),
            cmdline: format!(
                "ftvm.root=/dev/vda ftvm.services=redis,nginx ftvm.appendfsync=everysec ftvm.ip={GUEST_IP}/{PREFIX}"
            ),
            memory_mib: settings.memory_mib,
            detection: settings.detection,
            lease: settings.lease,
            limit: HOST_LIMIT,
        };
        let hub = Hub::start().map_err(|e| e.to_string())?;
        let plug = |name: &str| {
            let port = HubPort {
                hub: folder.join(format!("hub-{name}")),
                peer: folder.join(name),
            };
            hub.add(&port).map(|_| port).map_err(|e| e.to_string())
        };
        let ports = [plug("redis")?, plug("http")?, plug("primary")?, plug("backup")?];
        let primary = FtHost::start(host, Side::Primary, &common, &ports[2].hub, &ports[2].peer)?;
        let backup = FtHost::start(host, Side::Backup, &common, &ports[3].hub, &ports[3].peer)?;
        let redis = ClientConfig {
            local: ports[0].peer.clone(),
            hub: ports[0].hub.clone(),
            mac: CLIENT_MACS[0],
            ip: CLIENT_IPS[0],
            prefix: PREFIX,
            server: (GUEST_IP, REDIS_PORT),
            keys: 1 << 20,
            depth: 4,
            write_every: Duration::from_millis(5),
            connect_wait: START_LIMIT,
            silence: FAILOVER_LIMIT,
            verify_wait: VERIFY_LIMIT,
        };
        let http = HttpConfig {
            local: ports[1].peer.clone(),
            hub: ports[1].hub.clone(),
            mac: CLIENT_MACS[1],
            ip: CLIENT_IPS[1],
            prefix: PREFIX,
            server: (GUEST_IP, HTTP_PORT),
        };
        Ok(Act {
            settings,
            number,
            common,
            primary,
            backup,
            hub,
            redis,
            http,
        })
    }

    fn perform(mut self) -> Result<Value, String> {
        self.backup
            .wait_protected(START_LIMIT)
            .map_err(|wrong| wrong + &self.primary.last_words())?;
        let redis = Client::start(self.redis.clone()).map_err(|e| e.to_string())?;
        self.writes(&redis, MIN_ACKS, START_LIMIT)?;
        let http = Http::start(self.http.clone())?;
        self.pages(&http, MIN_PAGES, START_LIMIT)?;
        std::thread::sleep(Duration::from_millis(
            random(self.settings.seed, self.number) % KILL_WITHIN_MS,
        ));

        let (acked, pages) = (redis.progress().acked_writes, http.pages());
        let killed = Instant::now();
        self.primary.kill();
        self.backup
            .wait_event("go-live", self.settings.detection + FAILOVER_LIMIT, |event| {
                matches!(event, Event::WentLive { .. })
            })?;
        let live = killed.elapsed();
        self.writes(&redis, acked + MIN_ACKS, FAILOVER_LIMIT)?;
        self.pages(&http, pages + MIN_PAGES, FAILOVER_LIMIT)?;

        let redis = redis.finish().map_err(|e| e.to_string())?;
        let http = http.finish()?;
        let clock_off = self.end()?;
        let tally = &redis.tally;
        let mut wrong = Vec::new();
        if !redis.connection_survived() {
            wrong.push(format!("the Redis connection: {:?}", redis.ending));
        }
        if tally.lost_writes + tally.unverified_keys > 0 {
            let first = tally.first_lost.clone().unwrap_or_default();
            wrong.push(format!(
                "{} writes lost, {} unverified; {first}",
                tally.lost_writes, tally.unverified_keys
            ));
        }
        wrong.extend(http.broken.map(|broken| format!("the HTTP connection: {broken}")));
        if clock_off > CLOCK_TOLERANCE_S {
            wrong.push(format!("the guest's clock is off by {clock_off} s"));
        }
        wrong.extend(check_disk(&self.common.disk).err());
        if !wrong.is_empty() {
            return Err(format!("{}{}", wrong.join("; "), self.backup.last_words()));
        }
        Ok(json!({
            "kill": self.number,
            "acked_writes": tally.acked_writes,
            "lost_writes": tally.lost_writes,
            "pages": http.pages,
            "connections_survived": true,
            "live_after_ms": millis(live),
            "client_gap_ms": redis.client_gap_ms(),
            "http_gap_ms": millis(http.longest),
            "clock_off_s": clock_off,
            "file_system": "clean",
        }))
    }

    fn writes(&self, client: &Client, wanted: u64, limit: Duration) -> Result<(), String> {
        self.wait("acknowledged writes", limit, || {
            let progress = client.progress();
            if progress.ended {
                return Err("the Redis client has ended".to_owned());
            }
            Ok(progress.acked_writes >= wanted)
        })
    }

    fn pages(&self, client: &Http, wanted: u64, limit: Duration) -> Result<(), String> {
        self.wait("pages", limit, || Ok(client.pages() >= wanted))
    }

    fn wait(&self, what: &str, limit: Duration, done: impl Fn() -> Result<bool, String>) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let wrong = match done() {
                Ok(true) => return Ok(()),
                Ok(false) if begun.elapsed() > limit => format!("not enough {what} within {limit:?}"),
                Ok(false) => {
                    std::thread::sleep(LOOK);
                    continue;
                }
                Err(wrong) => wrong,
            };
            return Err(wrong + &self.primary.last_words() + &self.backup.last_words());
        }
    }

    /// Has the guest say its time and switch itself off; by how many seconds its clock was off.
    fn end(&mut self) -> Result<u64, String> {
        fs::write(self.common.shared.join("stop"), "").map_err(|e| format!("the file `stop`: {e}"))?;
        let said = |text: &str| {
            text.lines()
                .rev()
                .find_map(|line| line.trim().strip_prefix("time ")?.parse().ok())
        };
        let begun = Instant::now();
        let time: u64 = loop {
            if let Some(time) = said(&self.backup.said()) {
                break time;
            }
            if begun.elapsed() > FAILOVER_LIMIT {
                return Err(format!("the guest did not say its time{}", self.backup.last_words()));
            }
            std::thread::sleep(LOOK);
        };
        let clock_off = time.abs_diff(now());
        match self.backup.wait()? {
            0 => Ok(clock_off),
            code => Err(format!(
                "the survivor ended with exit code {code}{}",
                self.backup.last_words()
            )),
        }
    }
}

impl std::fmt::Debug for Act<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Act")
            .field("number", &self.number)
            .field("hub", &self.hub)
            .finish_non_exhaustive()
    }
}

/// Whether the file system on the disk is clean, as its own checker sees it.
fn check_disk(disk: &Path) -> Result<(), String> {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(disk).output();
    let output = output.map_err(|e| format!("cannot run e2fsck: {e}; tests/install-deps installs it"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "the file system is not clean: {}",
        String::from_utf8_lossy(&output.stdout).trim()
    ))
}

/// Pseudo-random, the same for the same seed and kill (splitmix64).
fn random(seed: u64, number: u32) -> u64 {
    let mut x = seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
