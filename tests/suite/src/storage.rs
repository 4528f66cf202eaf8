//! Pairs on each kind of storage, with real processes: the test-and-set on a SCSI disk and in etcd, and disks that the device
//! itself keeps the dead side from writing. The SCSI disks are of the kernel's own target, with a way of its own for each side.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ftvm_lab::arbiter::check;
use ftvm_lab::dm;
use ftvm_lab::etcd::EtcdServer;
use ftvm_lab::kv::{GUEST_MAC, Network, cmdline};
use ftvm_lab::kvm_test;
use ftvm_lab::lio::{ISCSI_MODULES, ISCSI_PROGRAMS, Lun, MODULES};
use ftvm_lab::pair::{Site, is_live, limit, wait};
use ftvm_lab::stage::Stages;
use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::arbiter::{Arbiter, SharedLun};
use shared_disk::image::{Caching, DiskImage, ImageAccess};
use shared_disk::scsi::{Reservation, ReservationKey, ScsiDevice};

/// To the child that writes: its disk.
const WRITER: &str = "FTVM_TEST_WRITER";
/// Threads of it, each with a block of its own.
const WRITERS: u64 = 4;
const BLOCK: usize = 4096;
/// Its exit codes: the disk has refused each thread as fenced, or something else has happened to one.
const FENCED: i32 = 10;
const BROKEN: i32 = 11;

kvm_test! {
    modules = MODULES;
    /// The contract on disks of both block sizes, each side by its own way; a foreign disk is refused.
    fn kvm_scsi_arbiter_keeps_the_contract() {
        for (number, block_bytes, generations) in [(0, 512, 10), (1, 4096, 2)] {
            let lun = Lun::new(number, 4, block_bytes);
            let next = AtomicU64::new(0);
            check(generations, |guest| {
                let path = &lun.paths[usize::from(next.fetch_add(1, Ordering::Relaxed) % 2 == 1)];
                let arbiter: Arc<dyn Arbiter> = Arc::new(SharedLun::new(path, guest).expect("a name"));
                arbiter
            });
        }
        let foreign = Lun::new(2, 4, 512);
        let image = DiskImage::open(&foreign.paths[0], ImageAccess::ReadWrite, Caching::Direct).expect("a disk");
        image.write_at(512, &[b'x'; 512]).expect("a write");
        let error = SharedLun::new(&foreign.paths[1], "guest").expect("a name").start(1).expect_err("foreign");
        assert!(error.to_string().contains("not zeroed"), "{error}");
        let device = ScsiDevice::open(&foreign.paths[1]).expect("a disk");
        let beginning = device.read(0, 3).expect("a read");
        assert_eq!(beginning, [[0; 512], [b'x'; 512], [0; 512]].concat());
    }
}

/// Writes its blocks as fast as it can until the disk refuses, as a child process does it; its exit code says how that was.
#[test]
#[ignore = "no test: the process that the tests of reservations start"]
fn writer() {
    let path = std::env::var(WRITER).expect("its disk");
    let image = Arc::new(DiskImage::open(&path, ImageAccess::ReadWrite, Caching::Direct).expect("a disk"));
    let writers = (0..WRITERS).map(|writer| {
        let image = Arc::clone(&image);
        thread::spawn(move || write_until_refused(&image, writer * BLOCK as u64))
    });
    let writers: Vec<_> = writers.collect();
    let all_fenced = writers.into_iter().all(|writer| writer.join().expect("no panic"));
    std::process::exit(if all_fenced { FENCED } else { BROKEN });
}

/// Counts up in the block at `offset`; whether the refusal was a fence.
fn write_until_refused(image: &DiskImage, offset: u64) -> bool {
    let mut data = vec![0; BLOCK];
    image.read_at(offset, &mut data).expect("a read");
    let mut count = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
    loop {
        count += 1;
        data[..8].copy_from_slice(&count.to_le_bytes());
        let op = DiskOp::Write {
            offset,
            data: Arc::new(data.clone()),
        };
        if let Err(error) = image.perform(&DiskRequest { disk: 0, id: count, op }) {
            eprintln!("the writer at {offset}: {error}");
            return error.is_reservation_conflict();
        }
    }
}

/// A process that runs [`writer`]; it dies with this.
struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command
            .args(["storage::writer", "--exact", "--nocapture", "--ignored"])
            .env(WRITER, path)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Writer(command.spawn().expect("a child"))
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.0.id().to_string()])
            .status();
        assert!(status.expect("kill").success(), "kill -{name}");
    }

    /// Waits for its end; its exit code.
    fn code(&mut self) -> Option<i32> {
        let ended = wait("end of the writer", limit(10), || self.0.try_wait().expect("a child"));
        ended.code()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How far each thread of the writer has come, as the device has it.
fn written(device: &ScsiDevice) -> Vec<u64> {
    let blocks = WRITERS * BLOCK as u64 / u64::from(device.capacity().block_bytes);
    let content = device.read(0, blocks).expect("reading is not fenced");
    content
        .chunks(BLOCK)
        .map(|block| u64::from_le_bytes(block[..8].try_into().expect("8 bytes")))
        .collect()
}

fn wait_progress(device: &ScsiDevice) {
    let before = written(device);
    wait("writes", limit(3), || {
        let more = |(now, then): (&u64, &u64)| *now > then + 5;
        written(device).iter().zip(&before).all(more).then_some(())
    });
}

/// What happens to a process that writes to a disk.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is stopped, and goes on: as without a fence.
    Stopped,
    /// It is stopped, its disk is taken, and it goes on.
    StoppedAndFenced,
    /// Its disk is taken while it writes.
    Fenced,
}

kvm_test! {
    modules = ISCSI_MODULES, programs = ISCSI_PROGRAMS;
    /// Another host takes the disk of a process that writes, be it stopped or not: from then on not one write of it lands, and
    /// each is refused as fenced.
    fn kvm_scsi_fence_keeps_late_writes_out() {
        let stages = Stages::new();
        stages.begin("a disk", limit(2));
        let lun = Lun::over_iscsi(0, 4, 512);
        let [old, new] = &lun.paths;
        let device = ScsiDevice::open(new).expect("a disk");
        let (dead, alive) = (ReservationKey::of(1), ReservationKey::of(2));
        for fate in [Fate::Stopped, Fate::StoppedAndFenced, Fate::Fenced, Fate::Fenced, Fate::Fenced] {
            stages.begin(&format!("{fate:?}: the old owner writes"), limit(5));
            Reservation::open(old).expect("a disk").take(dead).expect("a reservation");
            let mut writer = Writer::start(old);
            wait_progress(&device);
            if !matches!(fate, Fate::Fenced) {
                writer.signal("STOP");
            }
            if !matches!(fate, Fate::Stopped) {
                stages.begin(&format!("{fate:?}: the new owner takes the disk"), limit(5));
                Reservation::open(new).expect("a disk").take(alive).expect("a preemption");
            }
            let fenced = written(&device);
            stages.begin(&format!("{fate:?}: {fenced:?} are written"), limit(15));
            writer.signal("CONT");
            if matches!(fate, Fate::Stopped) {
                wait_progress(&device);
            } else {
                assert_eq!(writer.code(), Some(FENCED), "each write is refused as fenced");
                assert_eq!(written(&device), fenced, "no late write lands");
                assert_eq!(device.registered().expect("keys"), [alive.number()]);
            }
        }
        stages.begin("the new owner writes and gives the disk back", limit(3));
        let image = DiskImage::open(new, ImageAccess::ReadWrite, Caching::Direct).expect("a disk");
        image.write_at(0, &[7; 512]).expect("a write");
        Reservation::open(new).expect("a disk").release(alive).expect("a release");
        assert_eq!(device.registered().expect("keys"), [0; 0]);
        let image = DiskImage::open(old, ImageAccess::ReadWrite, Caching::Direct).expect("a disk");
        image.write_at(0, &[8; 512]).expect("nobody is fenced any more");
    }
}

kvm_test! {
    modules = ISCSI_MODULES.into_iter().chain(dm::MODULES), programs = [ISCSI_PROGRAMS[0], dm::PROGRAM];
    /// Writes that the device has begun and not ended are over when another host has its disk: it does not have it before.
    fn kvm_scsi_fence_waits_for_writes_under_way() {
        let stages = Stages::new();
        stages.begin("a disk", limit(2));
        let [store] = dm::disk(0, ["store"]);
        let lun = Lun::of_device_over_iscsi(0, &store.device);
        let [old, new] = &lun.paths;
        let device = ScsiDevice::open(new).expect("a disk");
        let owner = Reservation::open(new).expect("a disk");
        Reservation::open(old).expect("a disk").take(ReservationKey::of(1)).expect("a reservation");
        let mut writer = Writer::start(old);
        wait_progress(&device);
        stages.begin("the writes hang in the device", limit(5));
        let silence = store.silence();
        thread::sleep(Duration::from_millis(500));
        let taking = thread::spawn(move || owner.take(ReservationKey::of(2)));
        thread::sleep(Duration::from_secs(2));
        let early = taking.is_finished();
        stages.begin("the device goes on", limit(5));
        drop(silence);
        assert!(!early, "they may still land");
        taking.join().expect("no panic").expect("a preemption");
        let fenced = written(&device);
        assert_eq!(writer.code(), Some(FENCED), "each write is refused as fenced");
        assert_eq!(written(&device), fenced, "no late write lands");
    }
}

kvm_test! {
    modules = ISCSI_MODULES, programs = ISCSI_PROGRAMS;
    /// A pair with its test-and-set on one SCSI disk and its guest's data on another, which is reserved. The primary is stopped
    /// while its guest writes: the backup takes the disk, and the client loses nothing. When the disk is then taken from the new
    /// primary too, that ends as a loser, and its guest sees no error.
    fn kvm_scsi_pair_fails_over_and_fences() {
        let stages = Stages::new();
        stages.begin("a primary", limit(20));
        let site = Site::new();
        let (arbiter, disk) = (Lun::over_iscsi(0, 4, 512), Lun::over_iscsi(1, 32, 512));
        let network = Network::new(&site.path(""));
        let side = |side: usize, cable: &str| {
            let net = network.plug(cable);
            let net = if side == 0 { format!("{net},mac={GUEST_MAC}") } else { net };
            [
                "--shared".to_owned(),
                format!("scsi:{}", arbiter.paths[side].display()),
                "--disk".to_owned(),
                format!("path={},reserve=on", disk.paths[side].display()),
                "--net".to_owned(),
                net,
            ]
        };
        let (first, second) = (side(0, "primary"), side(1, "backup"));
        let (first, second) = (first.each_ref().map(String::as_str), second.each_ref().map(String::as_str));
        let _ = network.plug("client");
        let line = cmdline();
        let mut primary = site.primary("primary", &["--kernel", "builtin:kv", "--cmdline", &line], &first);
        site.wait_console("kv ready", limit(10));
        let device = ScsiDevice::open(&disk.paths[1]).expect("a disk");
        let keys = device.registered().expect("keys");
        assert_eq!(keys.len(), 1, "the primary's: {keys:x?}");
        stages.begin("a backup", limit(20));
        let mut backup = site.backup("backup", site.address, &second);
        primary.wait_protected();
        stages.begin("a client", limit(20));
        let client = network.client("client", 64, 4, Duration::ZERO);
        let acked = |more: u64| {
            let before = client.progress().acked_writes;
            wait("acknowledged writes", limit(10), || (client.progress().acked_writes >= before + more).then_some(()));
        };
        acked(50);
        stages.begin("the primary stops", limit(20));
        primary.signal("STOP");
        backup.wait_event("go-live", 1, limit(10), is_live);
        let taken = device.registered().expect("keys");
        assert!(taken.len() == 1 && taken != keys, "the backup's alone: {taken:x?}");
        stages.begin("the primary goes on", limit(20));
        primary.signal("CONT");
        // By its own insight, or by the timer of a write in flight.
        let ended = primary.wait(limit(10));
        let lost = i32::from(ExitCode::Lost.number());
        assert!(ended.code().is_none_or(|code| code == lost), "{ended}: {}", primary.stderr());
        acked(50);
        let report = client.finish().expect("a report");
        assert!(report.connection_survived(), "{:?}", report.ending);
        assert_eq!(report.tally.lost_writes, 0);
        assert_eq!(device.registered().expect("keys"), taken);
        stages.begin("the disk is taken from the new primary", limit(30));
        let _ = network.plug("client2");
        let client = network.client("client2", 64, 4, Duration::ZERO);
        wait("writes", limit(10), || (client.progress().acked_writes > 5).then_some(()));
        Reservation::open(&disk.paths[0]).expect("a disk").take(ReservationKey::of(99)).expect("a preemption");
        assert_eq!(backup.code(limit(10)), lost, "{}", backup.stderr());
        let is_fenced = |event: &Event| matches!(event, Event::Ending { why, .. } if why.contains("fenced"));
        backup.wait_event("fenced end", 1, limit(1), is_fenced);
        assert!(!site.console().contains("I/O"), "{}", site.console());
    }
}

/// A pair whose test-and-set is where `first` and `second` say: the primary dies, the backup wins there and carries on, and a
/// clean end frees the guest.
fn fails_over(first: &str, second: &str) {
    let site = Site::new();
    let (first, second) = (["--shared", first], ["--shared", second]);
    let guest = ["--kernel", "builtin:pulse", "--cmdline", "ticks=1500"];
    let mut primary = site.primary("primary", &guest, &first);
    let mut backup = site.backup("backup", site.address, &second);
    primary.wait_protected();
    site.wait_console("pulse 30\n", limit(20));
    primary.signal("KILL");
    primary.wait(limit(5));
    backup.wait_event("go-live", 1, limit(10), is_live);
    assert_eq!(backup.code(limit(60)), 0, "{}", backup.stderr());
    let expected: String = (1..=1500).map(|n| format!("pulse {n}\n")).collect();
    assert_eq!(site.console(), expected);
    let again = ["--kernel", "builtin:pulse", "--cmdline", "ticks=5"];
    let mut next = site.primary("next", &again, &[&first[..], &["--console", "off"]].concat());
    assert_eq!(next.code(limit(20)), 0, "{}", next.stderr());
}

kvm_test! {
    modules = MODULES;
    /// On a SCSI disk, to which each side has a way of its own.
    fn kvm_scsi_pair_fails_over() {
        let lun = Lun::new(0, 4, 512);
        let [first, second] = lun.paths.each_ref().map(|path| format!("scsi:{}", path.display()));
        fails_over(&first, &second);
    }
}

kvm_test! {
    programs = ["etcd"];
    /// With no shared storage but an etcd.
    fn kvm_etcd_pair_fails_over() {
        let etcd = EtcdServer::start();
        let shared = format!("etcd:{}", etcd.endpoint());
        fails_over(&shared, &shared);
    }
}
