//! The initial RAM file system: busybox, kernel modules, the first process, workloads.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::process::Command;

use super::packages::Unpacked;
use super::rdtsc::{self, Read as TimeRead};
use super::{Error, open, power_off, sources};
use crate::nested::cpio::Writer;
use crate::nested::modules;

/// In the order in which they are loaded, as far as none needs another; what is built into the kernel, as ext4 is in
/// Debian 12's, is passed over. ext4 finds the checksum that it uses by name at run time.
const MODULES: [&str; 8] = [
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "virtio_console",
    "virtio_rng",
];
/// Reads the time stamp counter where nothing catches it: a workload tries to load it.
const REFUSED: &str = "jitterentropy_rng";
const DIRECTORIES: [&str; 18] = [
    "bin",
    "sbin",
    "usr/bin",
    "usr/sbin",
    "etc",
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "root",
    "disk",
    "root-disk",
    "mnt",
    "var/tmp",
    "ftvm/bin",
    "ftvm/modules",
    "ftvm/refused",
];
const TEXTS: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
];
/// Guest's folder of the workloads.
const WORKLOADS: &str = "ftvm/workloads";

/// Writes the archive to `out`.
pub(super) fn write(base: &Unpacked, run: Option<&Path>, out: &Path) -> Result<(), Error> {
    let file = File::create(out).map_err(Error::io(out))?;
    let mut archive = Writer::new(BufWriter::new(file));
    for directory in DIRECTORIES {
        archive.directory(Path::new(directory))?;
    }
    for (path, text) in TEXTS {
        add_text(&mut archive, path, 0o644, text)?;
    }
    add_file(&mut archive, &sources().join("init"), "init", 0o755)?;
    for (name, program) in [
        ("power-off", power_off::program()),
        ("rdtsc", rdtsc::program(TimeRead::Rdtsc)),
        ("rdtscp", rdtsc::program(TimeRead::Rdtscp)),
    ] {
        let (path, size) = (Path::new("ftvm/bin").join(name), program.len() as u64);
        archive.file(&path, 0o755, size, &mut &program[..])?;
    }
    add_modules(&mut archive, base)?;
    for name in workloads()? {
        let path = format!("{WORKLOADS}/{name}");
        add_file(&mut archive, &sources().join("workloads").join(&name), &path, 0o755)?;
    }
    if let Some(run) = run {
        add_file(&mut archive, run, "ftvm/run", 0o755)?;
    }
    add_busybox(&mut archive, base)?;
    archive.finish().map(drop)?;
    Ok(())
}

fn add_modules(archive: &mut Writer<impl Write>, base: &Unpacked) -> Result<(), Error> {
    let mut order = String::new();
    for module in modules::in_load_order(&base.modules()?, &MODULES)? {
        let path = format!("ftvm/modules/{}.ko", module.name);
        let size = module.object.len() as u64;
        archive.file(Path::new(&path), 0o644, size, &mut &module.object[..])?;
        order.push_str(&module.name);
        order.push('\n');
    }
    for module in modules::in_load_order(&base.modules()?, &[REFUSED])? {
        let path = format!("ftvm/refused/{}.ko", module.name);
        let size = module.object.len() as u64;
        archive.file(Path::new(&path), 0o644, size, &mut &module.object[..])?;
    }
    add_text(archive, "ftvm/modules/order", 0o644, &order)
}

fn add_busybox(archive: &mut Writer<impl Write>, base: &Unpacked) -> Result<(), Error> {
    let busybox = base.busybox()?;
    add_file(archive, &busybox, "bin/busybox", 0o755)?;
    for applet in applets(&busybox)? {
        let path = Path::new("bin").join(applet);
        if !archive.contains(&path) {
            archive.symlink(&path, "busybox")?;
        }
    }
    Ok(())
}

/// The programs that busybox is, itself aside.
pub(super) fn applets(busybox: &Path) -> Result<Vec<String>, Error> {
    let ran = Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(Error::io(busybox))?;
    let list = String::from_utf8_lossy(&ran.stdout);
    let names = list.lines().filter(|name| *name != "busybox" && !name.contains('/'));
    Ok(names.map(str::to_owned).collect())
}

/// Files with workloads.
pub(super) fn workloads() -> Result<Vec<String>, Error> {
    let files = super::walk(&sources().join("workloads"))?;
    Ok(files.iter().map(|path| path.display().to_string()).collect())
}

fn add_text(archive: &mut Writer<impl Write>, path: &str, mode: u32, text: &str) -> Result<(), Error> {
    Ok(archive.file(Path::new(path), mode, text.len() as u64, &mut text.as_bytes())?)
}

fn add_file(archive: &mut Writer<impl Write>, from: &Path, to: &str, mode: u32) -> Result<(), Error> {
    let mut bytes = Vec::new();
    open(from)?.read_to_end(&mut bytes).map_err(Error::io(from))?;
    Ok(archive.file(Path::new(to), mode, bytes.len() as u64, &mut &bytes[..])?)
}
