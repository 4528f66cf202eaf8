//! What protection costs a Linux guest under one load after another, and how fast each load is with it and without.
//!
//! A pair of two emulated hosts, each a QEMU of its own, as in `failover`. First the primary is alone, and every load is
//! measured (*solo*: nothing is logged, but the machine makes the same exits); then once more while a second guest, solo
//! too, does the same on another host of this machine (*beside*); then the backup joins, and every load is measured
//! again (*FT*). A load repeats a fixed piece of work for a given time; ratios are those of the rates. Times of work inside
//! are the guest's own; those of network loads are the client's, which is in this process.
//!
//! FT/solo is the paper's ratio. The paper's hosts had processors of their own; here both hosts and the client share
//! one machine's, so that a backup computes at the primary's expense. A neighbour does so too: FT/beside is what
//! protection costs without that.

mod console;
mod report;
mod tcp;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ftvm_demo::client::{Client, ClientConfig};
use ftvm_demo::hub::{Hub, HubPort};
use ftvm_roles::event::{Event, Stamped};

use super::stats::number;
use console::{Keyboard, TYPIST, wait_line};
use ftvm_lab::ft_host::{Common, FtHost, Terms, protected};
use ftvm_lab::linux::{self, Built, lock::Set};
use ftvm_lab::nested::{Host, Turn, cache, take_turn};
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
/// A host lives no longer than its start, those of its neighbours, and this many times a load.
const LOADS: u32 = 24;

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
    pub terms: Terms,
}

/// Measures; `each` hears of every figure as it comes: load, whether protected, rate.
///
/// # Errors
/// A sentence: the guest cannot be built, a host does not start, a load fails, or protection is lost.
pub fn measure(settings: &Settings, mut each: impl FnMut(&str)) -> Result<Vec<Measured>, String> {
    let built = linux::build(&linux::Settings {
        out: cache().join("guest").join("loads"),
        run: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loads/guest.sh")),
        disk_mib: Some(DISK_MIB),
        sets: vec![Set::Redis],
        locked: false,
    })
    .map_err(|e| e.to_string())?;
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let _turn = take_turn(Turn::Alone).map_err(|e| e.to_string())?;
    let machine = Host::locate().map_err(|e| e.to_string())?;
    let mut bench = Bench::start(settings, &machine, &built, &folder.path().join("pair"))?;
    each("the guest is up, alone");
    let mut solo = Vec::new();
    for load in &settings.loads {
        let outcome = bench.perform(*load)?;
        each(&format!("{} solo: {:?}", load.name(), outcome.rate));
        solo.push(outcome.rate);
    }
    let beside = beside(
        &mut bench,
        &machine,
        &built,
        &folder.path().join("neighbour"),
        &mut each,
    )?;
    let backup = bench.protect(&machine)?;
    each("the guest is protected");
    let mut measured = Vec::new();
    for ((load, solo), beside) in settings.loads.iter().zip(solo).zip(beside) {
        let outcome = bench.perform(*load).map_err(|wrong| wrong + &backup.last_words())?;
        if protected(&bench.primary.events()).is_none() {
            let (primary, backup) = (bench.primary.last_words(), backup.last_words());
            return Err(format!("protection was lost under {}{primary}{backup}", load.name()));
        }
        let done = Measured {
            load: *load,
            solo,
            beside,
            protected: outcome.rate,
            cost: Cost::between(&outcome.reports),
        };
        each(&format!("{} FT: {done:?}", load.name()));
        measured.push(done);
    }
    bench.keyboard.type_line("0 off 0")?;
    Ok(measured)
}

/// Every load with a second guest under the same load on a host of its own, which has nothing to do with the first but that
/// it computes on the same machine, as a backup would.
fn beside(
    bench: &mut Bench,
    machine: &Host,
    built: &Built,
    folder: &Path,
    each: &mut impl FnMut(&str),
) -> Result<Vec<Option<f64>>, String> {
    let mut neighbour = Bench::start(bench.settings, machine, built, folder)?;
    each("a neighbour is up");
    let mut rates = Vec::new();
    for load in &bench.settings.loads {
        let (outcome, other) = thread::scope(|scope| {
            let other = scope.spawn(|| neighbour.perform(*load));
            (bench.perform(*load), other.join())
        });
        other.map_err(|_| "the neighbour's thread panicked".to_owned())??;
        let rate = outcome?.rate;
        each(&format!("{} beside a neighbour: {rate:?}", load.name()));
        rates.push(rate);
    }
    Ok(rates)
}

/// A guest that is up, on a host whose network and disk it has for itself.
struct Bench<'a> {
    settings: &'a Settings,
    common: Common,
    hub: Hub,
    folder: PathBuf,
    primary: FtHost,
    keyboard: Keyboard,
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

impl<'a> Bench<'a> {
    /// Boots a host, and the guest on it.
    fn start(settings: &'a Settings, machine: &Host, built: &Built, folder: &Path) -> Result<Self, String> {
        let (disk, shared) = (folder.join("disk"), folder.join("shared"));
        let image = built.disk.as_ref().ok_or("the guest was built without a disk")?;
        fs::create_dir_all(&shared)
            .and_then(|()| fs::copy(image, &disk))
            .map_err(|e| format!("{}: {e}", disk.display()))?;
        let common = Common {
            kernel: built.kernel.clone(),
            initrd: built.initrd.clone(),
            disk,
            shared,
            cmdline: format!("ftvm.root=/dev/vda ftvm.ip={GUEST_IP}/{PREFIX}"),
            arguments: "",
            typist: TYPIST.to_owned(),
            terms: settings.terms,
            limit: START_LIMIT * 3 + (settings.time + SLACK) * LOADS,
        };
        let hub = Hub::start().map_err(|e| e.to_string())?;
        let (client, port) = (plug(&hub, folder, "client")?, plug(&hub, folder, "primary")?);
        let bench = Bench {
            settings,
            keyboard: Keyboard::new(&common.shared),
            primary: FtHost::start(machine, &port, 1, None, &common)?,
            place: Place {
                port: client,
                mac: CLIENT_MAC,
                ip: CLIENT_IP,
                prefix: PREFIX,
            },
            asked: 0,
            common,
            hub,
            folder: folder.to_owned(),
        };
        wait_line(&bench.primary, "load 0 ready", START_LIMIT)?;
        Ok(bench)
    }

    /// Starts a backup, and waits until it follows closely.
    fn protect(&self, machine: &Host) -> Result<FtHost, String> {
        let port = plug(&self.hub, &self.folder, "backup")?;
        let unheard = Common {
            typist: ":".to_owned(),
            ..self.common.clone()
        };
        let backup = FtHost::start(machine, &port, 2, Some(1), &unheard)?;
        let joined = self.primary.wait_for("protection", START_LIMIT, protected);
        joined.map_err(|wrong| wrong + &backup.last_words())?;
        let settled = self.primary.wait_for("level backup", START_LIMIT, settled);
        settled.map_err(|wrong| wrong + &backup.last_words())?;
        Ok(backup)
    }

    fn perform(&mut self, load: Load) -> Result<Outcome, String> {
        self.asked += 1;
        let (id, time) = (self.asked, self.settings.time);
        self.keyboard
            .type_line(&format!("{id} {} {}", load.name(), time.as_secs()))?;
        wait_line(&self.primary, &format!("load {id} ready"), SLACK)?;
        let before = self.traffic().len();
        let by_client = match load {
            Load::NetReceive => Some(self.stream(Way::ToGuest, RECEIVE_PORT)?),
            Load::NetTransmit => Some(self.stream(Way::FromGuest, TRANSMIT_PORT)?),
            Load::Redis => Some(self.redis()?),
            Load::Idle | Load::Cpu | Load::Fork | Load::DiskWrite | Load::DiskRead => None,
        };
        let during = by_client.map(|_| self.traffic());
        if load == Load::Redis {
            self.keyboard.type_line("stop")?;
        }
        let done = wait_line(&self.primary, &format!("load {id} done"), time + SLACK)?;
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
            thread::sleep(Duration::from_millis(10));
        }
        let (begun, before) = (Instant::now(), client.progress().acked_writes);
        thread::sleep(self.settings.time);
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

fn plug(hub: &Hub, folder: &Path, name: &str) -> Result<HubPort, String> {
    let port = HubPort {
        hub: folder.join(format!("hub-{name}")),
        peer: folder.join(name),
    };
    hub.add(&port).map(|_| port).map_err(|e| e.to_string())
}

/// The backup's execution is hardly behind.
fn settled(events: &[Stamped]) -> Option<()> {
    let last = events.iter().rev().find_map(|seen| match seen.event {
        Event::Traffic { lag_ns, .. } => Some(Duration::from_nanos(lag_ns)),
        _ => None,
    });
    last.is_some_and(|behind| behind < SETTLED).then_some(())
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
