//! The Linux guest: that it is the same whenever it is built, and does its work on an ordinary emulated machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ftvm_lab::linux::lock::Set;
use ftvm_lab::linux::{self, Built, Settings};
use ftvm_lab::nested::{self, Turn, programs};

/// A boot with services and a power-off takes ten seconds when nothing else runs.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Interrupt controllers and clocks as ftvm has them; `vectors=0` and `disable-legacy` likewise.
const MACHINE: &str = "-M pc,acpi=off -cpu qemu64,-tsc,-apic -m 256 -nodefaults -no-user-config -no-reboot -display none \
     -serial file:console -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel vmlinuz -initrd initrd \
     -drive file=disk,format=raw,if=none,id=disk -device virtio-blk-pci,drive=disk,disable-legacy=on,vectors=0 \
     -netdev user,id=net -device virtio-net-pci,netdev=net,disable-legacy=on,vectors=0,romfile=";
const KERNEL: &str = "console=ttyS0 quiet nokaslr mitigations=off lpj=4000000 no_timer_check acpi=off noapic nolapic \
     nosmp pci=conf1 panic=-1 reboot=t ftvm.ip=10.0.2.15/24 ftvm.gw=10.0.2.2 ftvm.root=/dev/vda";

fn build(out: &Path, disk_mib: Option<u32>, sets: &[Set]) -> Built {
    let settings = Settings {
        out: out.to_owned(),
        run: None,
        disk_mib,
        sets: sets.to_vec(),
        locked: false,
    };
    linux::build(&settings).unwrap_or_else(|error| panic!("{error}"))
}

/// Boots what is in `dir`; gives back the status that the guest ended with, and its console.
fn boot(dir: &Path, parameters: &str) -> (i32, String) {
    let mut machine = Command::new(programs::find("setpriv").unwrap())
        .args(["--pdeathsig", "KILL", "--"])
        .arg(programs::find("qemu-system-x86_64").unwrap())
        .args(MACHINE.split_whitespace())
        .args(["-append", &format!("{KERNEL} {parameters}")])
        .current_dir(dir)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let console = || String::from_utf8_lossy(&fs::read(dir.join("console")).unwrap_or_default()).into_owned();
    let status = loop {
        if let Some(status) = machine.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > BOOT_LIMIT {
            machine.kill().unwrap();
            machine.wait().unwrap();
            panic!("the guest still runs after {BOOT_LIMIT:?}:\n{}", console());
        }
        sleep(Duration::from_millis(50));
    };
    // isa-debug-exit: QEMU ends with twice the byte written, and one.
    match status.code() {
        Some(code) if code % 2 == 1 => (code / 2, console()),
        _ => panic!("QEMU ended ({status}) without a status from the guest:\n{}", console()),
    }
}

fn is_clean(disk: &Path) -> bool {
    let superblock = Command::new(programs::find("debugfs").unwrap())
        .args(["-R", "show_super_stats -h"])
        .arg(disk)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&superblock.stdout).into_owned();
    let checked = Command::new(programs::find("e2fsck").unwrap())
        .arg("-fn")
        .arg(disk)
        .output()
        .unwrap();
    // A journal that is to be replayed shows among the features.
    text.contains("Filesystem state:         clean") && !text.contains("needs_recovery") && checked.status.success()
}

#[test]
fn the_same_packages_give_the_same_bytes() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let built = build(first.path(), Some(64), &[Set::Sqlite]);
    sleep(Duration::from_millis(1100));
    let again = build(second.path(), Some(64), &[Set::Sqlite]);
    let files = |built: &Built| [built.kernel.clone(), built.initrd.clone(), built.disk.clone().unwrap()];
    for (one, other) in files(&built).iter().zip(files(&again)) {
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{}", one.display());
    }
    let kernel = fs::read(&built.kernel).unwrap();
    assert_eq!(&kernel[0x202..0x206], b"HdrS", "Linux's boot protocol");
}

#[test]
fn nested_linux_guest_serves_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let disk = build(dir.path(), Some(64), &[Set::Redis, Set::Nginx, Set::Sqlite])
        .disk
        .unwrap();
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    let work = "redis-cli config get appendfsync; redis-cli set key value; wget -q -O - http://10.0.2.15/64k.txt | md5sum; \
                sqlite3 :memory: 'select 6*7'; ping -c 1 10.0.2.2; exit 7";
    let (status, console) = boot(
        dir.path(),
        &format!("ftvm.services=redis,nginx ftvm.appendfsync=always ftvm.run=\"{work}\""),
    );
    assert_eq!(status, 7, "{console}");
    let expected = [
        "always",
        "OK",
        "0f48c916e5de17116d3936445fc828af",
        "42",
        "1 packets received",
    ];
    for word in expected {
        assert!(console.contains(word), "expected {word:?} in:\n{console}");
    }
    assert!(is_clean(&disk), "{console}");
    let (status, console) = boot(
        dir.path(),
        "ftvm.services=redis ftvm.run=\"redis-cli config get appendfsync; redis-cli get key; poweroff; sleep 60; exit 9\"",
    );
    assert_eq!(status, 0, "{console}");
    assert!(console.contains("everysec") && console.contains("value"), "{console}");
    assert!(is_clean(&disk), "{console}");
}
