//! The nested host's file system: busybox, kernel modules, and programs of this machine with the libraries they need.
//!
//! Programs run in the nested host against the very libraries they were linked with here, so nothing needs to be built
//! statically. `/bin`, `/sbin` and `/lib` are links into `/usr`, as on Debian; that also lets one rule decide which
//! program a name means: what was asked for wins over a busybox applet of the same name.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::cpio::{self, Writer};
use super::modules::Module;
use super::programs::{self, Missing};

/// Where `init.sh` finds the modules.
const MODULE_DIR: &str = "usr/lib/modules";
const LINKS: [(&str, &str); 5] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/bin"),
    ("usr/sbin", "bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
];
const DIRECTORIES: [&str; 13] = [
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "proc",
    "sys",
    "dev",
    "tmp",
    "run",
    "root",
    "etc",
    "var/tmp",
    "out",
    "mnt",
];
const TEXTS: [(&str, &str); 4] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("init", include_str!("init.sh")),
];

/// What can go wrong while an image is built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of this machine cannot be read.
    #[error("cannot copy {path} into the nested host: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
    /// A program needs a library that this machine does not have, or `ldd` failed.
    #[error("cannot copy {path} into the nested host with its libraries: {reason}")]
    Libraries {
        /// The program.
        path: PathBuf,
        /// What `ldd` said.
        reason: String,
    },
    /// The file's place in the nested host makes no sense.
    #[error("{0} is no place for a file in the nested host: it must be an absolute path without ..")]
    Place(PathBuf),
    /// A program is not on this machine.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The archive cannot be written.
    #[error(transparent)]
    Archive(#[from] cpio::Error),
}

/// An image under construction.
#[derive(Debug)]
pub struct Image<W: Write> {
    archive: Writer<W>,
}

impl<W: Write> Image<W> {
    /// Starts an image with the folders, the links and the first process.
    ///
    /// # Errors
    /// Fails when `out` does.
    pub fn new(out: W) -> Result<Self, Error> {
        let mut archive = Writer::new(out);
        for dir in DIRECTORIES {
            archive.directory(Path::new(dir))?;
        }
        for (path, target) in LINKS {
            archive.symlink(Path::new(path), target)?;
        }
        let mut image = Self { archive };
        for (path, text) in TEXTS {
            image.text(path, text.as_bytes())?;
        }
        Ok(image)
    }

    /// Adds an executable text file.
    ///
    /// # Errors
    /// Fails when the writer underneath does.
    pub fn text(&mut self, path: &str, mut text: &[u8]) -> Result<(), Error> {
        Ok(self
            .archive
            .file(Path::new(path), 0o755, text.len() as u64, &mut text)?)
    }

    /// Adds kernel modules and the list by which the first process loads them.
    ///
    /// # Errors
    /// Fails when the writer underneath does.
    pub fn modules(&mut self, modules: &[Module]) -> Result<(), Error> {
        for Module { name, object } in modules {
            let path = Path::new(MODULE_DIR).join(format!("{name}.ko"));
            self.archive.file(&path, 0o644, object.len() as u64, &mut &object[..])?;
        }
        let list: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
        self.text("etc/modules", list.as_bytes())
    }

    /// Adds a program of this machine, found by its name, to the nested host's `$PATH`.
    ///
    /// # Errors
    /// Fails when the program is not on this machine or cannot be copied.
    pub fn program(&mut self, name: &str) -> Result<(), Error> {
        self.file(&programs::find(name)?, &Path::new("/usr/bin").join(name))
    }

    /// Makes sure that `name` can be called: as a busybox applet or as a program of this machine.
    ///
    /// # Errors
    /// Fails when it is neither, or cannot be copied.
    pub fn command(&mut self, name: &str) -> Result<(), Error> {
        if applets()?.iter().any(|applet| applet == name) {
            Ok(())
        } else {
            self.program(name)
        }
    }

    /// Copies the file `here` of this machine to the absolute path `there`; the shared libraries of a program and the
    /// interpreter of a script come along. A path that was added already is left as it is.
    ///
    /// # Errors
    /// Fails when the file or what it needs cannot be read.
    pub fn file(&mut self, here: &Path, there: &Path) -> Result<(), Error> {
        let path = place(there)?;
        if self.archive.contains(&path) {
            return Ok(());
        }
        let failed = |source| Error::Read {
            path: here.to_owned(),
            source,
        };
        let mut file = File::open(here).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        if !data.is_file() {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        let mut start = Vec::new();
        (&mut file).take(256).read_to_end(&mut start).map_err(failed)?;
        let mut whole = (&start[..]).chain(file);
        self.archive
            .file(&path, data.permissions().mode(), data.len(), &mut whole)?;
        for needed in needs(here, &start)? {
            self.file(&needed, &needed)?;
        }
        Ok(())
    }

    /// Adds busybox, with a link for each of its applets whose name is not taken, and ends the image.
    ///
    /// # Errors
    /// Fails when busybox is not on this machine, does not run, or when the writer underneath fails.
    pub fn finish(mut self) -> Result<W, Error> {
        self.program("busybox")?;
        for applet in applets()? {
            let path = Path::new("usr/bin").join(applet);
            if !self.archive.contains(&path) {
                self.archive.symlink(&path, "busybox")?;
            }
        }
        Ok(self.archive.finish()?)
    }
}

fn applets() -> Result<Vec<String>, Error> {
    let busybox = programs::find("busybox")?;
    let ran = Command::new(&busybox).arg("--list").output();
    let list = ran.map_err(|source| Error::Read { path: busybox, source })?.stdout;
    Ok(String::from_utf8_lossy(&list).lines().map(str::to_owned).collect())
}

/// The path inside the archive for an absolute path, with the links of [`LINKS`] resolved.
fn place(there: &Path) -> Result<PathBuf, Error> {
    let refused = || Error::Place(there.to_owned());
    let inside = there.strip_prefix("/").map_err(|_| refused())?;
    if inside.as_os_str().is_empty() || !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(refused());
    }
    const MERGED: [(&str, &str); 5] = [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ];
    let merged = MERGED
        .iter()
        .find_map(|(from, to)| Some(Path::new(to).join(inside.strip_prefix(from).ok()?)));
    Ok(merged.unwrap_or_else(|| inside.to_owned()))
}

/// What the program or script at `path` needs beside itself; `start` are its first bytes.
fn needs(path: &Path, start: &[u8]) -> Result<Vec<PathBuf>, Error> {
    if let Some(line) = start.strip_prefix(b"#!") {
        return Ok(interpreter(line).into_iter().collect());
    }
    if !start.starts_with(b"\x7fELF") {
        return Ok(Vec::new());
    }
    let failed = |reason| Error::Libraries {
        path: path.to_owned(),
        reason,
    };
    let ran = Command::new(programs::find("ldd")?)
        .arg(path)
        .env("LC_ALL", "C")
        .output();
    let ran = ran.map_err(|e| failed(format!("ldd: {e}")))?;
    let (listing, said) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    if !ran.status.success() && !said.contains("not a dynamic executable") && !listing.contains("not a dynamic") {
        return Err(failed(format!("ldd: {}", said.trim())));
    }
    libraries(&listing).map_err(|library| failed(format!("{library} is not on this machine")))
}

/// The interpreter of a script, unless it is one that busybox provides.
fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next()?).into_owned();
    let path = PathBuf::from(line.split_whitespace().next()?);
    let provided = path
        .file_name()
        .is_some_and(|name| name == "sh" || name == "env" || name == "busybox");
    (!provided).then_some(path)
}

/// The files in a listing of `ldd`, or the library that it did not find.
fn libraries(listing: &str) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for line in listing.lines().map(str::trim) {
        let (name, found) = line.split_once(" => ").unwrap_or((line, line));
        match found.split_whitespace().next() {
            Some(path) if path.starts_with('/') => files.push(PathBuf::from(path)),
            Some("not") if found == "not found" => return Err(name.to_owned()),
            _ => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_of_ldd_is_understood() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(listing).unwrap(), expected);
        assert_eq!(
            libraries("\tlibgone.so.1 => not found\n"),
            Err("libgone.so.1".to_owned())
        );
        for static_program in ["\tstatically linked\n", "\tnot a dynamic executable\n", ""] {
            assert_eq!(libraries(static_program), Ok(Vec::new()));
        }
    }

    #[test]
    fn this_very_program_comes_with_its_libraries() {
        let own = std::env::current_exe().unwrap();
        let names: Vec<_> = needs(&own, b"\x7fELF").unwrap();
        assert!(names.iter().any(|path| path.ends_with("libc.so.6")), "{names:?}");
        assert!(
            names.iter().any(|path| path.to_string_lossy().contains("ld-linux")),
            "{names:?}"
        );
    }

    #[test]
    fn scripts_bring_their_interpreter() {
        assert_eq!(interpreter(b"/bin/bash -e\nx"), Some(PathBuf::from("/bin/bash")));
        assert_eq!(interpreter(b" /bin/sh\n"), None);
        assert_eq!(interpreter(b"\n"), None);
        assert_eq!(needs(Path::new("text"), b"text").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn places_follow_the_links() {
        let places = [
            ("/bin/a", "usr/bin/a"),
            ("/usr/sbin/a", "usr/bin/a"),
            ("/lib64/ld.so", "usr/lib64/ld.so"),
            ("/lib/x/y.so", "usr/lib/x/y.so"),
            ("/library/a", "library/a"),
            ("/run/a", "run/a"),
        ];
        for (there, inside) in places {
            assert_eq!(place(Path::new(there)).unwrap(), Path::new(inside));
        }
        for refused in ["a", "/", "", "/a/../b", "./a"] {
            assert!(matches!(place(Path::new(refused)), Err(Error::Place(_))), "{refused}");
        }
    }

    #[test]
    fn what_was_asked_for_wins_over_an_applet() {
        let mut image = Image::new(Vec::new()).unwrap();
        image.program("cat").unwrap();
        let bytes = image.finish().unwrap();
        let listing = |name: &str| {
            bytes
                .windows(name.len())
                .filter(|window| *window == name.as_bytes())
                .count()
        };
        assert_eq!(listing("usr/bin/cat\0"), 1);
        assert_eq!(listing("usr/bin/ls\0"), 1);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let mut image = Image::new(io::sink()).unwrap();
        let error = image
            .file(Path::new("/tmp"), Path::new("/run/tmp"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot copy /tmp") && error.contains("not a regular file"),
            "{error}"
        );
        let error = image
            .file(Path::new("/no/such"), Path::new("/run/x"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such"), "{error}");
    }
}
