//! Starting `ftvm run` processes and waiting, within bounds, for what they report.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ftvm_roles::event::{Event, Protection, Stamped};
use tempfile::TempDir;

use crate::scaled;

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Detection time of the pairs that tests start; their lease is half of it. In an emulated host a process may wait
/// hundreds of milliseconds for its processor, and no test here is about that.
#[must_use]
pub fn detection() -> Duration {
    scaled(Duration::from_millis(200))
}

/// A time that a test waits for, in seconds, stated for a machine with KVM.
#[must_use]
pub fn limit(seconds: u64) -> Duration {
    scaled(Duration::from_secs(seconds))
}

/// A backup goes live.
#[must_use]
pub fn is_live(event: &Event) -> bool {
    matches!(event, Event::WentLive { .. })
}

/// A primary has a backup that holds everything, or a backup is one.
#[must_use]
pub fn is_protected(event: &Event) -> bool {
    matches!(
        event,
        Event::State {
            protection: Protection::Protected,
            ..
        }
    )
}

/// A directory with a shared storage, a console and processes of one guest; they die with it.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    /// Where the primary listens.
    pub address: SocketAddr,
}

/// A running `ftvm run`.
#[derive(Debug)]
pub struct Side {
    child: Child,
    events: PathBuf,
    stderr: PathBuf,
}

impl Site {
    /// An empty site with a free port.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("shared")).expect("a shared directory");
        Site {
            dir,
            address: free_address(),
        }
    }

    /// A file of the site.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the guest has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.path("console")).unwrap_or_default()
    }

    /// Waits until the console holds `text`.
    pub fn wait_console(&self, text: &str, limit: Duration) {
        wait(&format!("{text:?} on the console"), limit, || {
            self.console().contains(text).then_some(())
        });
    }

    /// Starts a primary; `more` are further arguments.
    #[must_use]
    pub fn primary(&self, name: &str, guest: &[&str], more: &[&str]) -> Side {
        let listen = self.address.to_string();
        let (detection, lease) = (
            detection().as_millis().to_string(),
            (detection() / 2).as_millis().to_string(),
        );
        let terms = [
            "--primary",
            "--listen",
            &listen,
            "--detection",
            &detection,
            "--lease",
            &lease,
        ];
        self.start(name, &[&terms, guest, more].concat())
    }

    /// Starts a backup that joins `peer`.
    #[must_use]
    pub fn backup(&self, name: &str, peer: SocketAddr, more: &[&str]) -> Side {
        let peer = peer.to_string();
        self.start(name, &[&["--backup", "--peer", &peer], more].concat())
    }

    /// `ftvm run` with the site's console and shared directory, unless `arguments` name others.
    #[must_use]
    pub fn start(&self, name: &str, arguments: &[&str]) -> Side {
        let (events, stderr) = (self.path(&format!("{name}.events")), self.path(&format!("{name}.err")));
        let mut command = Command::new(crate::ftvm().unwrap_or_else(|e| panic!("{e}")));
        command.arg("run").args(arguments).arg("--events").arg(&events);
        if !arguments.contains(&"--shared") {
            command.arg("--shared").arg(self.path("shared"));
        }
        if !arguments.contains(&"--console") {
            command
                .arg("--console")
                .arg(format!("file={}", self.path("console").display()));
        }
        let err = File::create(&stderr).expect("a file for stderr");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(err)
            .spawn()
            .expect("ftvm starts");
        Side { child, events, stderr }
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Side {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything reported so far.
    #[must_use]
    pub fn events(&self) -> Vec<Stamped> {
        let text = std::fs::read_to_string(&self.events).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for the `count`-th event that `wanted` accepts; it and what was said on stderr are shown if it does not come.
    pub fn wait_event(&self, what: &str, count: usize, limit: Duration, wanted: impl Fn(&Event) -> bool) -> Stamped {
        let begun = Instant::now();
        loop {
            let events = self.events();
            if let Some(found) = events.into_iter().filter(|event| wanted(&event.event)).nth(count - 1) {
                return found;
            }
            assert!(
                begun.elapsed() < limit,
                "no {what} within {limit:?}; stderr:\n{}",
                self.stderr()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until this side says that it is protected, or protects.
    pub fn wait_protected(&self) -> Stamped {
        self.wait_event("protection", 1, limit(10), is_protected)
    }

    /// Waits until this side, which was a backup, has gone live and has a backup of its own.
    pub fn wait_protected_again(&self, limit: Duration) {
        wait("protection of its own", limit, || {
            let events = self.events();
            let mut since = events.iter().skip_while(|stamped| !is_live(&stamped.event));
            since.any(|stamped| is_protected(&stamped.event)).then_some(())
        });
    }

    /// Sends a signal by name (`KILL`, `STOP`, `CONT`, `TERM`).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status();
        assert!(status.expect("kill").success(), "kill -{name}");
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                begun.elapsed() < limit,
                "still running after {limit:?}; stderr:\n{}",
                self.stderr()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Its exit code, once it has ended.
    pub fn code(&mut self, limit: Duration) -> i32 {
        let status = self.wait(limit);
        status
            .code()
            .unwrap_or_else(|| panic!("ended by {status}; stderr:\n{}", self.stderr()))
    }

    /// What it has said on stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until `found` gives something.
///
/// # Panics
/// If it does not within `limit`.
pub fn wait<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(begun.elapsed() < limit, "no {what} within {limit:?}");
        std::thread::sleep(LOOK);
    }
}

/// An address of this host that is free now, for TCP and UDP. No process gets it by chance, as ports that the kernel chooses are
/// higher, and no other call in this process does.
///
/// # Panics
/// If none of them all is free.
#[must_use]
pub fn free_address() -> SocketAddr {
    /// What Linux leaves to those who ask for a port by its number (`ip_local_port_range`), but for the well-known ones.
    const PORTS: Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id().wrapping_mul(37);
    let free = (0..PORTS.len()).find_map(|_| {
        let place = process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(PORTS.start + place).ok()?));
        let both = TcpListener::bind(address).and(UdpSocket::bind(address));
        both.is_ok().then_some(address)
    });
    free.expect("a free port")
}

/// Runs `ftvm` with `arguments` to its end; exit code, stdout, stderr.
#[must_use]
pub fn ftvm(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let program = crate::ftvm().unwrap_or_else(|e| panic!("{e}"));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output();
    let output = output.expect("ftvm starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}
