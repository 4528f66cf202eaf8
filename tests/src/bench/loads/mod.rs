//! What protection costs a Linux guest under one load after another, and how fast each load is with it and without.
//!
//! A pair of two emulated hosts, each a QEMU of its own, as in `failover`. First the primary is alone, and every load is
//! measured (*solo*: nothing is logged, but the machine makes the same exits); then the backup joins, and every load is
//! measured again (*FT*). A load repeats a fixed piece of work for a given time; the ratio is that of the rates. Times
//! of work inside are the guest's own; those of network loads are the client's, which is in this process.
//! The two hosts and the client share this machine's processors: with fewer than three free ones the ratio also has in
//! it that the backup computes at the primary's expense, as it would not on a machine of its own.

mod host;
mod report;
mod tcp;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use vmm::demo::client::{Client, ClientConfig};
use vmm::demo::hub::{Hub, HubPort};
use vmm::roles::event::{Event, Stamped};

use super::stats::number;
use crate::linux::{self, lock::Set};
use crate::nested::{Host, cache, take_turn};
use host::{Common, LoadHost, Side};
pub use report::{Aim, Cost, Measured, json, table};
use tcp::{Place, Tcp, Way};

const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const PREFIX: u8 = 24;
const CLIENT_MAC: [u8; 6] = [0x52, 0x54, 0, 7, 0, 0x21];
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 21);
/// Where the guest's `nc` listens, as `guest.sh` has it.
const RECEIVE_PORT: u16 = 7001;
const TRANSMIT_PORT: u16 = 7002;
const REDIS_PORT: u16 = 6379;
/// Redis requests without an answer at one time: as many as the paper's DVD Store has clients.
const REDIS_DEPTH: usize = 16;
const REDIS_KEYS: usize = 1000;
/// The first local port of the TCP client; each load has its own hundred.
const LOCAL_PORT: u16 = 50_000;
/// Redis, and what the loads write.
const DISK_MIB: u32 = 256;
/// An emulated host boots, and Linux in it.
const START_LIMIT: Duration = Duration::from_secs(400);
/// The backup has executed what came while it took the state once its lag is below this.
const SETTLED: Duration = Duration::from_millis(500);
/// For what a load does before and after its time.
const SLACK: Duration = Duration::from_secs(120);
/// A host lives no longer than its start and this many times its loads.
const LOADS: u32 = 16;

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// Nothing but the guest's own timers.
    Idle,
    /// A shell loop without system calls.
    Cpu,
    /// fork and exec, one after the other.
    Fork,
    /// 2 MiB written and synced, again and again.
    DiskWrite,
    /// 2 MiB read with an empty cache, again and again.
    DiskRead,
    /// TCP to the guest.
    NetReceive,
    /// TCP from the guest.
    NetTransmit,
    /// SET commands, 16 at a time.
    Redis,
}

impl Load {
    /// As the command line, the guest and JSON call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Cpu => "cpu",
            Load::Fork => "fork",
            Load::DiskWrite => "disk-write",
            Load::DiskRead => "disk-read",
            Load::NetReceive => "net-receive",
            Load::NetTransmit => "net-transmit",
            Load::Redis => "redis",
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub loads: Vec<Load>,
    /// How long each load runs, solo and FT each.
    pub time: Duration,
    /// Detection and lease of the pair. An emulated host stands still for seconds now and then.
    pub detection: Duration,
    pub lease: Duration,
    /// RAM of the guest in MiB.
    pub memory_mib: u32,
}

/// Measures; `each` hears of every figure as it comes: load, whether protected, rate.
///
/// # Errors
/// A sentence: the guest cannot be built, a host does not start, a load fails, or protection is lost.
pub fn measure(settings: &Settings, mut each: impl FnMut(&str)) -> Result<Vec<Measured>, String> {
    let built = linux::build(&linux::Settings {
        out: cache().join("guest").join("loads"),
        run: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/loads/guest.sh")),
        disk_mib: Some(DISK_MIB),
        sets: vec![Set::Redis],
    })
    .map_err(|e| e.to_string())?;
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let (disk, shared) = (folder.path().join("disk"), folder.path().join("shared"));
    let image = built.disk.ok_or("the guest was built without a disk")?;
    fs::create_dir_all(&shared)
        .and_then(|()| fs::copy(&image, &disk))
        .map_err(|e| format!("{}: {e}", disk.display()))?;
    let common = Common {
        kernel: built.kernel,
        initrd: built.initrd,
        disk,
        shared,
        cmdline: format!("ftvm.root=/dev/vda ftvm.ip={GUEST_IP}/{PREFIX}"),
        memory_mib: settings.memory_mib,
        detection: settings.detection,
        lease: settings.lease,
        limit: START_LIMIT * 2 + (settings.time + SLACK) * LOADS,
    };
    let _turn = take_turn().map_err(|e| e.to_string())?;
    let machine = Host::locate().map_err(|e| e.to_string())?;
    let hub = Hub::start().map_err(|e| e.to_string())?;
    let plug = |name: &str| {
        let port = HubPort {
            hub: folder.path().join(format!("hub-{name}")),
            peer: folder.path().join(name),
        };
        hub.add(&port).map(|_| port).map_err(|e| e.to_string())
    };
    let (client, first, second) = (plug("client")?, plug("primary")?, plug("backup")?);
    let mut bench = Bench {
        settings,
        primary: LoadHost::start(&machine, Side::Primary, &common, &first.hub, &first.peer)?,
        place: Place {
            port: client,
            mac: CLIENT_MAC,
            ip: CLIENT_IP,
            prefix: PREFIX,
        },
        asked: 0,
    };
    bench.primary.wait_line("load 0 ready", START_LIMIT)?;
    each("the guest is up, alone");
    let mut solo = Vec::new();
    for load in &settings.loads {
        let outcome = bench.perform(*load)?;
        each(&format!("{} solo: {:?}", load.name(), outcome.rate));
        solo.push(outcome.rate);
    }
    let backup = LoadHost::start(&machine, Side::Backup, &common, &second.hub, &second.peer)?;
    let protected = bench.primary.wait_protected(START_LIMIT);
    protected.map_err(|wrong| wrong + &backup.last_words())?;
    let settled = bench.primary.wait_settled(SETTLED, START_LIMIT);
    settled.map_err(|wrong| wrong + &backup.last_words())?;
    each("the guest is protected");
    let mut measured = Vec::new();
    for (load, solo) in settings.loads.iter().zip(solo) {
        let outcome = bench.perform(*load).map_err(|wrong| wrong + &backup.last_words())?;
        if !bench.primary.is_protected() {
            let (primary, backup) = (bench.primary.last_words(), backup.last_words());
            return Err(format!("protection was lost under {}{primary}{backup}", load.name()));
        }
        let done = Measured {
            load: *load,
            solo,
            protected: outcome.rate,
            cost: Cost::between(&outcome.reports),
        };
        each(&format!("{} FT: {done:?}", load.name()));
        measured.push(done);
    }
    bench.primary.type_line("0 off 0")?;
    Ok(measured)
}

/// What is up.
struct Bench<'a> {
    settings: &'a Settings,
    primary: LoadHost,
    place: Place,
    asked: u16,
}

/// What a load gave.
struct Outcome {
    /// Its unit per second; none of an idle guest.
    rate: Option<f64>,
    /// Traffic reported while it ran.
    reports: Vec<Stamped>,
}

impl Bench<'_> {
    fn perform(&mut self, load: Load) -> Result<Outcome, String> {
        self.asked += 1;
        let (id, time) = (self.asked, self.settings.time);
        self.primary
            .type_line(&format!("{id} {} {}", load.name(), time.as_secs()))?;
        self.primary.wait_line(&format!("load {id} ready"), SLACK)?;
        let before = self.traffic().len();
        let by_client = match load {
            Load::NetReceive => Some(self.stream(Way::ToGuest, RECEIVE_PORT)?),
            Load::NetTransmit => Some(self.stream(Way::FromGuest, TRANSMIT_PORT)?),
            Load::Redis => Some(self.redis()?),
            Load::Idle | Load::Cpu | Load::Fork | Load::DiskWrite | Load::DiskRead => None,
        };
        let during = by_client.map(|_| self.traffic());
        if load == Load::Redis {
            self.primary.type_line("stop")?;
        }
        let done = self.primary.wait_line(&format!("load {id} done"), time + SLACK)?;
        let mut reports = during.unwrap_or_else(|| self.traffic());
        reports.drain(..before.min(reports.len()));
        let rate = match (by_client, load) {
            (Some(rate), _) => Some(rate),
            (None, Load::Idle) => None,
            (None, _) => Some(rounds_per_second(&done)?),
        };
        Ok(Outcome { rate, reports })
    }

    fn stream(&mut self, way: Way, port: u16) -> Result<f64, String> {
        let tcp = Tcp::connect(&self.place, (GUEST_IP, port), LOCAL_PORT + 100 * self.asked);
        tcp.and_then(|tcp| tcp.run(way, self.settings.time))
            .map_err(|wrong| wrong + &self.primary.last_words())
    }

    /// Acknowledged writes per second.
    fn redis(&mut self) -> Result<f64, String> {
        let client = Client::start(ClientConfig {
            local: self.place.port.peer.clone(),
            hub: self.place.port.hub.clone(),
            mac: self.place.mac,
            ip: self.place.ip,
            prefix: self.place.prefix,
            server: (GUEST_IP, REDIS_PORT),
            keys: REDIS_KEYS,
            depth: REDIS_DEPTH,
            write_every: Duration::ZERO,
            connect_wait: SLACK,
            silence: SLACK,
            verify_wait: SLACK,
        });
        let client = client.map_err(|e| e.to_string())?;
        let begun = Instant::now();
        while client.progress().acked_writes == 0 {
            if begun.elapsed() > SLACK || client.progress().ended {
                return Err(format!("Redis does not answer{}", self.primary.last_words()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (begun, before) = (Instant::now(), client.progress().acked_writes);
        std::thread::sleep(self.settings.time);
        let progress = client.progress();
        if progress.ended {
            return Err(format!("Redis hung up{}", self.primary.last_words()));
        }
        Ok(number(progress.acked_writes - before) / begun.elapsed().as_secs_f64())
    }

    fn traffic(&self) -> Vec<Stamped> {
        let events = self.primary.events().into_iter();
        events
            .filter(|seen| matches!(seen.event, Event::Traffic { .. }))
            .collect()
    }
}

/// Of `ROUNDS HUNDREDTHS`, as the guest says them.
fn rounds_per_second(done: &str) -> Result<f64, String> {
    let words: Vec<u64> = done.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match words[..] {
        [rounds, hundredths] if hundredths > 0 => Ok(number(rounds) * 100.0 / number(hundredths)),
        _ => Err(format!(
            "expected rounds and hundredths of a second from the guest, found {done:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_clock_gives_the_rate() {
        assert_eq!(rounds_per_second("30 1500"), Ok(2.0));
        assert!(rounds_per_second("30 0").is_err());
        assert!(rounds_per_second("30").is_err());
    }
}
