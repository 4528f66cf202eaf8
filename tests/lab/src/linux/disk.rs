//! The disk: an ext4 file system with the unpacked packages, busybox, and the services' configuration.
//!
//! `debugfs` writes it file by file, in the order of their names. `mke2fs -d` would not do: it takes owners, change
//! times and the order of files from the folder it copies, which depend on who builds where. Everything that mke2fs
//! would invent (UUID, hash seed, times) or read from this machine's configuration is given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lock::Set;
use super::packages::Unpacked;
use super::{Error, initrd, sources, walk};
use crate::nested::programs;

/// Any fixed value does: no other file system of a guest has a UUID that somebody looks for.
const UUID: &str = "6674766d-0000-4000-8000-6c696e757821";
/// Debian 12's choice, spelt out, so that this machine's mke2fs.conf does not matter.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// mke2fs wants its two types for a disk of up to 512 MiB, and the one for larger ones, to be there.
const CONFIGURATION: &str = "[fs_types]\next4 = {\nblocksize = 4096\n}\nsmall = {\nblocksize = 4096\n}\n";
/// Initialised here, so that the guest's kernel does not do it in the background.
const EXTENDED: &str = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed=";
/// What nobody in the guest reads.
const LEFT_OUT: [&str; 16] = [
    "etc/cron.d",
    "etc/cron.daily",
    "etc/init.d",
    "lib/systemd",
    "usr/lib/systemd",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/vim",
];
/// Folders that packages make when they are installed, and mount points of the guest's init.
const FOLDERS: [&str; 17] = [
    "dev",
    "disk",
    "etc/ftvm",
    "ftvm",
    "mnt",
    "proc",
    "root",
    "run",
    "srv/www",
    "sys",
    "tmp",
    "var/lib/nginx",
    "var/lib/redis",
    "var/log/nginx",
    "var/tmp",
    "usr/bin",
    "usr/sbin",
];
/// A page whose contents are known, in bytes: large enough for many TCP segments.
const PAGE_SIZE: usize = 65_536;

/// Something at a path of the disk.
#[derive(Debug)]
enum Entry {
    Folder,
    Link(String),
    File { from: PathBuf, mode: u32, time: i64 },
}

/// Writes the file system to `out`.
pub(super) fn write(base: &Unpacked, packages: &Unpacked, sets: &[Set], mib: u32, out: &Path) -> Result<(), Error> {
    let generated = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let mut tree = Tree::default();
    for folder in packages.folders.values() {
        tree.package(folder)?;
    }
    tree.busybox(&base.busybox()?)?;
    tree.own(sets, generated.path())?;
    let script = generated.path().join("debugfs");
    fs::write(&script, tree.script()?).map_err(Error::io(&script))?;
    let configuration = generated.path().join("mke2fs.conf");
    fs::write(&configuration, CONFIGURATION).map_err(Error::io(&configuration))?;
    let tool = |name, arguments: &[&str]| tool(name, &configuration, tree.newest, arguments);
    tool(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-I",
            "256",
            "-m",
            "0",
            "-L",
            "ftvm",
            "-U",
            UUID,
            "-O",
            FEATURES,
            "-E",
            &format!("{EXTENDED}{UUID}"),
            &out.to_string_lossy(),
            &format!("{mib}M"),
        ],
    )?;
    tool(
        "debugfs",
        &["-w", "-f", &script.to_string_lossy(), &out.to_string_lossy()],
    )?;
    tool("e2fsck", &["-fn", &out.to_string_lossy()])
}

/// What the disk will have, by path, and the newest time among the packages' files: that of all other files.
#[derive(Debug, Default)]
struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
    newest: i64,
}

impl Tree {
    fn add(&mut self, path: &Path, entry: Entry) {
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    fn package(&mut self, folder: &Path) -> Result<(), Error> {
        for path in walk(folder)? {
            if LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)) {
                continue;
            }
            let full = folder.join(&path);
            let data = full.symlink_metadata().map_err(Error::io(&full))?;
            let entry = if data.is_dir() {
                continue;
            } else if data.is_symlink() {
                let target = fs::read_link(&full).map_err(Error::io(&full))?;
                Entry::Link(target.to_string_lossy().into_owned())
            } else {
                self.newest = self.newest.max(data.mtime());
                Entry::File {
                    from: full,
                    mode: data.permissions().mode() & 0o7777,
                    time: data.mtime(),
                }
            };
            self.add(&path, entry);
        }
        Ok(())
    }

    /// busybox, under each of its names that no package has.
    fn busybox(&mut self, busybox: &Path) -> Result<(), Error> {
        self.newest = self.newest.max(busybox.metadata().map_err(Error::io(busybox))?.mtime());
        self.file("bin/busybox", busybox.to_owned(), 0o755);
        for applet in initrd::applets(busybox)? {
            let taken = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|dir| Path::new(dir).join(&applet));
            if !taken.iter().any(|path| self.entries.contains_key(path)) {
                self.add(&taken[0], Entry::Link("busybox".to_owned()));
            }
        }
        Ok(())
    }

    fn own(&mut self, sets: &[Set], generated: &Path) -> Result<(), Error> {
        for folder in FOLDERS {
            let path = Path::new(folder);
            if !self.entries.contains_key(path) {
                self.add(path, Entry::Folder);
            }
        }
        let root = sources().join("root");
        for name in ["passwd", "group", "hosts"] {
            self.file(&format!("etc/{name}"), root.join(name), 0o644);
        }
        for service in [Set::Redis, Set::Nginx].iter().filter(|set| sets.contains(set)) {
            for (ending, mode) in [("sh", 0o755), ("conf", 0o644)] {
                let name = format!("{}.{ending}", service.name());
                self.file(&format!("etc/ftvm/{name}"), root.join(&name), mode);
            }
        }
        self.file("srv/www/index.html", root.join("index.html"), 0o644);
        let page = generated.join("page");
        let text: String = (0..PAGE_SIZE / 8).map(|line| format!("{line:07}\n")).collect();
        fs::write(&page, text).map_err(Error::io(&page))?;
        self.file("srv/www/64k.txt", page, 0o644);
        Ok(())
    }

    fn file(&mut self, path: &str, from: PathBuf, mode: u32) {
        let time = self.newest;
        self.add(Path::new(path), Entry::File { from, mode, time });
    }

    /// The commands for debugfs(8).
    fn script(&self) -> Result<String, Error> {
        let mut script = String::new();
        for (path, entry) in &self.entries {
            let path = format!("/{}", plain(path)?);
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            // debugfs makes things in the current folder only: it takes the parent of `/a` for that too.
            line(&mut script, &format!("cd {folder}/"));
            let (mode, time) = match entry {
                Entry::Folder => {
                    line(&mut script, &format!("mkdir {name}"));
                    (
                        if path == "/tmp" || path == "/var/tmp" {
                            0o041_777
                        } else {
                            0o040_755
                        },
                        self.newest,
                    )
                }
                Entry::Link(target) => {
                    line(&mut script, &format!("symlink {name} {}", plain(Path::new(target))?));
                    (0o120_777, self.newest)
                }
                Entry::File { from, mode, time } => {
                    line(&mut script, &format!("write {} {name}", plain(from)?));
                    (0o100_000 | mode, *time)
                }
            };
            line(&mut script, &format!("set_inode_field {path} mode 0{mode:o}"));
            for field in ["mtime", "atime", "ctime", "crtime"] {
                line(&mut script, &format!("set_inode_field {path} {field} @{time}"));
            }
        }
        Ok(script)
    }
}

fn line(script: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(script, "{text}");
}

/// The path as text that debugfs takes for one word.
fn plain(path: &Path) -> Result<&str, Error> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\'));
    text.ok_or_else(|| {
        Error::Disk(format!(
            "expected a path without blanks, quotes and backslashes, found {path:?}"
        ))
    })
}

/// Runs a tool of e2fsprogs whose clock stands at `time`.
fn tool(name: &str, configuration: &Path, time: i64, arguments: &[&str]) -> Result<(), Error> {
    let ran = Command::new(programs::find(name)?)
        .args(arguments)
        .env("MKE2FS_CONFIG", configuration)
        .env("E2FSPROGS_FAKE_TIME", time.to_string())
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .env("LC_ALL", "C")
        .output()
        .map_err(Error::io(name))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    // debugfs tells of failures only there, after a line with its version.
    let complaints: Vec<&str> = said.lines().filter(|line| !is_version(line)).collect();
    if ran.status.success() && complaints.is_empty() {
        return Ok(());
    }
    // The first of many says what is wrong; e2fsck says it on stdout.
    let found = complaints.into_iter().take(3).collect::<Vec<_>>().join("; ");
    let listing = String::from_utf8_lossy(&ran.stdout);
    let end: Vec<&str> = listing.lines().rev().take(3).collect();
    Err(Error::Disk(format!("{name} failed ({}): {found} {end:?}", ran.status)))
}

/// `debugfs 1.47.0 (5-Feb-2023)`
fn is_version(line: &str) -> bool {
    let mut words = line.split(' ');
    words
        .next()
        .is_some_and(|name| ["debugfs", "e2fsck", "mke2fs"].contains(&name))
        && words
            .next()
            .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}
