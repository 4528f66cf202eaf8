//! Chaos: one guest on a pool of three, real processes, clients with a record of everything, and fault after fault.
//!
//! The processes are `ftvm run`; [`cable`] carries their logging channels and heartbeats, [`ether`] their guest's frames,
//! [`storage`] is their shared directory. [`faults`] says what comes. After each fault everything is mended, what died is
//! started again as a standby, and within a bound the guest must be protected, and answer. What must hold is judged by
//! others than those who do it: [`lives`] hears on the wire whether two sides were live, and [`history`] whether what the
//! clients were told is what one key-value server says that has lost nothing.

#![forbid(unsafe_code)]

pub mod cable;
pub mod client;
pub mod ether;
pub mod faults;
pub mod history;
pub mod lives;
pub mod pool;
pub mod process;
pub mod report;
mod stage;
pub mod storage;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use client::{Clients, Place, Record};
use ether::{Ether, Port};
use faults::{Kind, Plan};
use ftvm_lab::{kv, scaled};
use history::Verdict;
use pool::{Common, HOSTS, Pool};
pub use report::{Report, Row};
use stage::Stage;
use storage::Storage;

/// Clients at one time.
const CLIENTS: u8 = 3;
/// Room for kv's log; a sparse file.
const DISK_MIB: u64 = 256;
/// From one request of a client to its next: thousands of writes in a run, and a host that has time for its guests.
const PACE: Duration = Duration::from_millis(3);
/// A server may be silent for so long: storage that is away, and a failover on a busy machine.
const SILENCE: Duration = Duration::from_secs(180);
/// Reading everything back.
const READ_BACK: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub faults: u32,
    pub seed: u64,
    /// Kinds of faults, at least one.
    pub kinds: Vec<Kind>,
    pub detection: Duration,
    /// At most the detection time.
    pub lease: Duration,
    /// Empty; events, messages, disk and sockets of the run. Its path is short: sockets are in it.
    pub folder: PathBuf,
}

/// Performs the faults; `say` hears what happens.
///
/// # Errors
/// If this machine does not give what is needed; what a run finds wrong is in its report.
pub fn run(settings: &Settings, say: &mut dyn FnMut(&str)) -> Result<Report, String> {
    let storage = Storage::new(&settings.folder)?;
    let mut kinds = settings.kinds.clone();
    let mut left_out = Vec::new();
    if !storage.can_be_full() && kinds.contains(&Kind::FullDisk) {
        kinds.retain(|kind| *kind != Kind::FullDisk);
        left_out.push(format!(
            "{}: mounting a small file system needs root",
            Kind::FullDisk.name()
        ));
    }
    if kinds.is_empty() {
        return Err(left_out.concat());
    }
    let path = |name: String| settings.folder.join(name);
    let port = |name: String, mac| Port {
        wire: path(format!("wire-{name}")),
        peer: path(name),
        mac,
    };
    let hosts = (0..HOSTS).map(|host| port(format!("host-{host}"), None));
    let clients = (0..CLIENTS).map(|client| port(format!("client-{client}"), Some(client_mac(client))));
    let ports: Vec<Port> = hosts.chain(clients).collect();
    let nets = ports[..HOSTS]
        .iter()
        .map(|port| format!("dgram={},remote={}", port.peer.display(), port.wire.display()));
    let common = Common {
        ftvm: ftvm_lab::ftvm()?,
        folder: settings.folder.clone(),
        shared: storage.shared(),
        disk: kv::blank_disk(&path("disk".to_owned()), DISK_MIB),
        nets: nets.collect(),
        detection: settings.detection,
        lease: settings.lease,
    };
    let ether = Ether::start(ports.clone(), GUEST_MAC)?;
    let pool = Pool::start(common)?;
    let places = (0..CLIENTS).zip(&ports[HOSTS..]).map(|(number, port)| Place {
        local: port.peer.clone(),
        remote: port.wire.clone(),
        mac: client_mac(number),
        ip: Ipv4Addr::new(192, 168, 7, 100 + number),
        prefix: 24,
        server: (kv::GUEST_IP, kv::PORT),
        pace: scaled(PACE),
        silence: SILENCE,
    });
    let clients = Clients::start(places.collect(), settings.seed)?;
    let mut stage = Stage {
        pool,
        storage,
        ether,
        clients,
        detection: settings.detection,
        begun: Instant::now(),
        notes: Vec::new(),
    };
    let mut report = Report {
        seed: settings.seed,
        left_out,
        ..Report::default()
    };
    let mut plan = Plan::new(settings.seed, &kinds, settings.detection);
    let performed = perform(&mut stage, &mut plan, settings.faults, &mut report, say);
    report.wrong.extend(performed.err());
    conclude(stage, &mut report, say);
    Ok(report)
}

fn perform(
    stage: &mut Stage,
    plan: &mut Plan,
    faults: u32,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<(), String> {
    stage.wait_for_peace(None)?;
    say(&stage.stamped("protected, and the clients are served"));
    for number in 1..=faults {
        let step = plan.step();
        say(&stage.stamped(&format!("fault {number} of {faults}: {}", step.words())));
        let row = stage.perform(number, &step)?;
        say(&stage.stamped(&format!("    {}", row.words())));
        report.rows.push(row);
        if stage.is_wrong() {
            break;
        }
    }
    Ok(())
}

/// Everything is read back and judged.
fn conclude(stage: Stage, report: &mut Report, say: &mut dyn FnMut(&str)) {
    report.seconds = stage.begun.elapsed().as_secs();
    let went_well = report.wrong.is_empty() && !stage.is_wrong();
    if went_well {
        say(&stage.stamped("every key is read back"));
    }
    let Stage {
        mut pool,
        clients,
        ether,
        storage,
        ..
    } = stage;
    let Record {
        ops,
        refused,
        reconnects,
        unread,
    } = match went_well {
        true => clients.finish(READ_BACK + scaled(READ_BACK)),
        false => clients.abandon(),
    };
    // Reports that say of a life before its frames are judged.
    report.wrong.extend(pool.look().err());
    pool.judge.hear(&ether.take_frames());
    pool.end();
    drop(storage);
    let verdict: Verdict = history::check(&ops);
    report.two_live = pool.judge.wrong.len();
    report.duplicates = pool.judge.duplicates;
    report.moves = pool.judge.moves();
    report.fenced = pool.fenced;
    report.gave_up = pool.gave_up;
    report.reconnects = reconnects;
    report.unread = if went_well { unread } else { 0 };
    report.wrong.extend(std::mem::take(&mut pool.judge.wrong));
    report.wrong.extend(std::mem::take(&mut pool.wrong));
    report.wrong.extend(refused.into_iter().take(MOST_SHOWN));
    report.wrong.extend(verdict.wrong.iter().take(MOST_SHOWN).cloned());
    if report.unread > 0 {
        report
            .wrong
            .push(format!("{} keys could not be read back", report.unread));
    }
    report.verdict = verdict;
}

/// Of one kind of wrong things.
const MOST_SHOWN: usize = 10;
/// [`kv::GUEST_MAC`].
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x07, 0x00, 0x02];

fn client_mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0x00, 0x07, 0x01, number]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_address_is_one() {
        let text = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(text, kv::GUEST_MAC);
    }
}
