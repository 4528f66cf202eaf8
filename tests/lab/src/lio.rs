//! SCSI disks of the kernel's own target (LIO), each with two ways to it, in a nested host.
//!
//! Two initiators, each with a target of its own and the same backing store behind both, are to the kernel what two hosts with one
//! LUN are to an array: its reservations tell them apart. Everything is set up by making folders in configfs (Linux,
//! `Documentation/target/`), and nothing is taken down again: the machine ends with its test.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pair::{limit, wait};

/// The modules that [`Lun::new`] needs.
pub const MODULES: [&str; 4] = ["target_core_mod", "target_core_file", "tcm_loop", "sd_mod"];

/// The modules that [`Lun::over_iscsi`] needs.
pub const ISCSI_MODULES: [&str; 6] = [
    "target_core_mod",
    "target_core_file",
    "target_core_iblock",
    "iscsi_target_mod",
    "iscsi_tcp",
    "sd_mod",
];

/// The programs that [`Lun::over_iscsi`] needs: it logs an initiator in and leaves the session to the kernel.
pub const ISCSI_PROGRAMS: [&str; 1] = ["iscsistart"];

const CONFIGFS: &str = "/sys/kernel/config";

/// Where LIO notes registrations (`core_scsi3_update_and_write_aptpl`): without the folder it refuses each of them.
const REGISTRATIONS: &str = "/var/target/pr";

/// A disk with two initiators.
#[derive(Clone, Debug)]
pub struct Lun {
    /// Its device, by the way of each.
    pub paths: [PathBuf; 2],
}

impl Lun {
    /// A zeroed disk of `mib` MiB with such blocks, by way of tcm_loop: SCSI adapters whose target is LIO itself. `number` tells it
    /// from others.
    ///
    /// That does for everything but reservations: a preemption hangs there ([`Lun::over_iscsi`]).
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn new(number: u8, mib: u64, block_bytes: u32) -> Lun {
        let store = file_store(number, mib, block_bytes);
        let paths = [1, 2].map(|side| {
            appearing(|| {
                let name = |role: u8| format!("naa.60014050000{number:03}{side}{role}");
                let group = target().join(format!("loopback/{}/tpgt_1", name(1)));
                make(&group);
                write(&group.join("nexus"), &name(2));
                make_lun(&group, &store);
            })
        });
        Lun { paths }
    }

    /// As [`Lun::new`], over iSCSI on the loopback interface.
    ///
    /// There LIO executes a command on its connection's own thread, so that PREEMPT AND ABORT can wait for the commands that it
    /// aborts. Behind tcm_loop it waits for its own work item (Linux 6.1, `core_tmr_lun_reset` below `target_queued_submit_work`).
    ///
    /// # Panics
    /// If the kernel refuses, or an initiator cannot log in.
    #[must_use]
    pub fn over_iscsi(number: u8, mib: u64, block_bytes: u32) -> Lun {
        Self::serve_over_iscsi(number, &file_store(number, mib, block_bytes))
    }

    /// As [`Lun::over_iscsi`], of a block device.
    ///
    /// # Panics
    /// As [`Lun::over_iscsi`].
    #[must_use]
    pub fn of_device_over_iscsi(number: u8, device: &Path) -> Lun {
        let control = format!("udev_path={}", device.display());
        Self::serve_over_iscsi(number, &backing_store("iblock", number, &control))
    }

    fn serve_over_iscsi(number: u8, store: &Path) -> Lun {
        let paths = [1, 2].map(|side| {
            appearing(|| {
                let name = |role: &str| format!("iqn.2026-01.ftvm:{role}-{number}-{side}");
                let group = target().join(format!("iscsi/{}/tpgt_1", name("lun")));
                make(&group);
                // Every initiator may come and write, without a password.
                for (attribute, value) in [
                    ("authentication", "0"),
                    ("generate_node_acls", "1"),
                    ("cache_dynamic_acls", "1"),
                    ("demo_mode_write_protect", "0"),
                ] {
                    write(&group.join("attrib").join(attribute), value);
                }
                make_lun(&group, store);
                make(&group.join("np/127.0.0.1:3260"));
                write(&group.join("enable"), "1");
                log_in(&name("host"), &name("lun"));
            })
        });
        Lun { paths }
    }
}

/// A session that stays when the program has ended.
fn log_in(initiator: &str, target: &str) {
    let seconds = limit(5).as_secs().to_string();
    let output = Command::new("timeout")
        .args([&seconds, "iscsistart", "-i", initiator, "-t", target])
        .args(["-g", "1", "-a", "127.0.0.1", "-p", "3260"])
        .output();
    let output = output.expect("iscsistart");
    assert!(output.status.success(), "iscsistart: {output:?}");
}

fn target() -> PathBuf {
    Path::new(CONFIGFS).join("target")
}

fn file_store(number: u8, mib: u64, block_bytes: u32) -> PathBuf {
    let control = format!("fd_dev_name=/run/lun-{number},fd_dev_size={}", mib << 20);
    let store = backing_store("fileio", number, &control);
    write(&store.join("attrib/block_size"), &block_bytes.to_string());
    store
}

fn backing_store(kind: &str, number: u8, control: &str) -> PathBuf {
    if !target().exists() {
        let mounted = Command::new("mount")
            .args(["-t", "configfs", "configfs", CONFIGFS])
            .status();
        assert!(mounted.expect("mount").success(), "configfs");
        make(&target());
    }
    fs::create_dir_all(REGISTRATIONS).expect("a folder");
    let store = target().join(format!("core/{kind}_{number}/lun"));
    make(&store);
    write(&store.join("control"), control);
    write(&store.join("enable"), "1");
    write(&store.join("wwn/vpd_unit_serial"), &format!("ftvm-{number}"));
    store
}

/// LUN 0 of a target port group.
fn make_lun(group: &Path, store: &Path) {
    let lun = group.join("lun/lun_0");
    make(&lun);
    symlink(store, lun.join("store")).expect("a LUN");
}

/// The device of the disk that appears when that is done.
fn appearing(make_it: impl FnOnce()) -> PathBuf {
    let before = disks();
    make_it();
    wait("the disk", limit(5), || {
        let new = disks().difference(&before).next().cloned()?;
        let device = Path::new("/dev").join(new);
        fs::File::open(&device).ok().map(|_| device)
    })
}

fn disks() -> BTreeSet<String> {
    let names = fs::read_dir("/sys/block")
        .expect("sysfs")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("sd")).collect()
}

fn make(folder: &Path) {
    fs::create_dir_all(folder).unwrap_or_else(|e| panic!("mkdir {}: {e}", folder.display()));
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("{text} > {}: {e}", file.display()));
}
