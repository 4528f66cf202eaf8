//! A folder of this machine inside nested hosts, by virtiofs: one daemon per host and folder.
//!
//! Several hosts may have one folder: links, renames and syncs go to this machine's own file system, as they would to a
//! file server that all of them use. Inside: `mount -t virtiofs TAG FOLDER`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Error, programs};

/// Where Debian (12 and later) and Fedora keep the daemon.
const PLACES: [&str; 3] = [
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
];
/// For the daemon to make its socket.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A folder to share, and the name by which it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The folder here.
    pub here: PathBuf,
    /// Letters and digits; unique in its host.
    pub tag: String,
}

/// A running daemon; dropping it ends it.
#[derive(Debug)]
pub(super) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, with its host.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Share {
    /// The socket's name in the run's folder `dir`. Its like nowhere else: Debian 12's daemon keeps a lock by this name.
    pub(super) fn socket(&self, dir: &Path) -> String {
        let run = dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{}.{run}", self.tag)
    }

    /// Starts the daemon, which makes its socket in `dir` and ends with the thread that calls this.
    pub(super) fn serve(&self, dir: &Path) -> Result<Daemon, Error> {
        let failed = |what: String| move |source| Error::Io { what, source };
        let place = PLACES.iter().find(|place| Path::new(place).exists());
        let program = match place {
            Some(place) => PathBuf::from(place),
            None => programs::find("virtiofsd")?,
        };
        let here = self
            .here
            .canonicalize()
            .map_err(failed(format!("find the shared folder {}", self.here.display())))?;
        let mut source = std::ffi::OsString::from("source=");
        source.push(&here);
        let daemon = Command::new(programs::find("setpriv")?)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg(format!("--socket-path={}", self.socket(dir)))
            .arg("-o")
            .arg(source)
            .args(["-o", "cache=none,sandbox=chroot", "-f"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start virtiofsd".to_owned()))?;
        let mut daemon = Daemon(daemon);
        let begun = Instant::now();
        while !dir.join(self.socket(dir)).exists() {
            let ended = daemon.0.try_wait().map_err(failed("watch virtiofsd".to_owned()))?;
            if ended.is_some() || begun.elapsed() > START_TIMEOUT {
                return Err(Error::Setting(format!(
                    "virtiofsd did not share {} ({}); it needs root",
                    here.display(),
                    ended.map_or_else(|| "no socket".to_owned(), |status| status.to_string())
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }
}
