//! Disks with several ways to them, each of which can be lost or fall silent by itself, in a nested host.
//!
//! The disk is two RAM disks in a row, and each way to it a device of the kernel's device mapper (dmsetup(8)): a way that is
//! lost fails everything with EIO, one that is silent lets everything wait. Ways of one disk show the same blocks; what is
//! written by one with O_DIRECT is read by the others. Nothing is taken down again: the machine ends with its test.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The modules that this needs.
pub const MODULES: [&str; 2] = ["brd", "dm_mod"];

/// The program that it needs.
pub const PROGRAM: &str = "dmsetup";

/// Sectors of one RAM disk: 16 MiB, the module's default.
const RAM_SECTORS: u32 = 32_768;

/// A way to a disk.
#[derive(Debug)]
pub struct Way {
    name: String,
    /// Its block device.
    pub device: PathBuf,
}

/// A blank disk of 32 MiB, and a way to it by each of these names. `number`, below 8, tells it from others.
///
/// # Panics
/// If the kernel refuses.
#[must_use]
pub fn disk<const WAYS: usize>(number: u8, names: [&str; WAYS]) -> [Way; WAYS] {
    let parts = [2 * number, 2 * number + 1].map(|ram| {
        let start = RAM_SECTORS * u32::from(ram % 2);
        format!("{start} {RAM_SECTORS} linear /dev/ram{ram} 0\n")
    });
    names.map(|name| {
        dmsetup(&["create", "--noudevsync", name], &parts.concat());
        Way {
            name: name.to_owned(),
            device: Path::new("/dev").join(kernel_name(name)),
        }
    })
}

impl Way {
    /// From now on everything fails here.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn lose(&self) {
        dmsetup(&["wipe_table", "--noudevsync", &self.name], "");
    }

    /// Everything waits here until what this returns is dropped, and is done then in its turn. A process with a request here
    /// cannot be killed meanwhile: let the silence end before the process.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn silence(&self) -> Silence<'_> {
        dmsetup(&["suspend", "--noudevsync", "--nolockfs", "--noflush", &self.name], "");
        Silence(self)
    }
}

/// A way that does not answer.
#[derive(Debug)]
pub struct Silence<'a>(&'a Way);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        dmsetup(&["resume", "--noudevsync", &self.0.name], "");
    }
}

fn dmsetup(arguments: &[&str], table: &str) {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{PROGRAM}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    // One that reads no table may have ended.
    let _ = stdin.write_all(table.as_bytes());
    drop(stdin);
    let status = child.wait().expect("a child");
    assert!(status.success(), "{PROGRAM} {arguments:?}: {status}");
}

/// What the kernel calls it: /dev/mapper is filled by udev, which a nested host does without.
fn kernel_name(name: &str) -> String {
    let devices = fs::read_dir("/sys/block").expect("sysfs");
    let mut names = devices.filter_map(|device| device.ok()?.file_name().into_string().ok());
    let found = names.find(|device| {
        let path = Path::new("/sys/block").join(device).join("dm/name");
        fs::read_to_string(path).is_ok_and(|found| found.trim() == name)
    });
    found.unwrap_or_else(|| panic!("no device for {name}"))
}
