//! Three hosts' worth of processes on one machine, with a cable for every pair of them.
//!
//! Host I has one address and one process at a time. What has ended is started again as a standby, as a cluster manager
//! would do. Process I reaches host J over a cable of its own, so a fault of one link is one of that link only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ftvm_roles::event::{Event, Protection};
use nix::sys::signal::Signal;

use super::cable::{Cabinet, Cable};
use super::lives::{Judge, Life};
use super::process::{Part, Process};
use ftvm_lab::kv;
use ftvm_lab::pair::free_address;

/// Hosts of the pool.
pub const HOSTS: usize = 3;
/// A cluster manager takes this long to start again what has ended.
const RESTART: Duration = Duration::from_millis(300);
/// The threads of a process that is stopped have stopped by then.
const STOPPING: Duration = Duration::from_millis(5);
/// RAM of the guest: what kv needs.
const MEMORY: &str = "48M";
/// Exit codes of a side that was not entitled to live on: no error of the process.
const CODES: [i32; 2] = [10, 11];

/// What every process is told.
#[derive(Clone, Debug)]
pub struct Common {
    pub ftvm: PathBuf,
    pub folder: PathBuf,
    pub shared: PathBuf,
    /// `--disk`
    pub disk: String,
    /// `--net` of each host, without the guest's MAC.
    pub nets: Vec<String>,
    pub detection: Duration,
    pub lease: Duration,
}

#[derive(Debug)]
struct Host {
    listen: SocketAddr,
    process: Option<Process>,
    ended: Instant,
    /// A fault keeps it down.
    down: bool,
}

/// Who is what in a pool at peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    pub primary: usize,
    pub backup: usize,
    pub standby: usize,
    /// When the primary said that it is protected. CLOCK_BOOTTIME.
    pub protected_ns: u64,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    common: Common,
    hosts: Vec<Host>,
    cables: Vec<Vec<Option<Cable>>>,
    _cabinet: Cabinet,
    started: u64,
    pub judge: Judge,
    /// When a side went live last. CLOCK_BOOTTIME.
    pub went_live_ns: Option<u64>,
    /// Processes that ended by their fence, and those that gave their place up.
    pub fenced: u64,
    pub gave_up: u64,
    pub wrong: Vec<String>,
}

impl Pool {
    /// Starts the guest on host 0 and standbys on the others.
    ///
    /// # Errors
    /// A sentence, if this machine does not give what is needed.
    pub fn start(common: Common) -> Result<Self, String> {
        let host = |e: std::io::Error| format!("no cables: {e}");
        let cabinet = Cabinet::new().map_err(host)?;
        let addresses: Vec<SocketAddr> = (0..HOSTS).map(|_| free_address()).collect();
        let mut cables = Vec::new();
        for from in 0..HOSTS {
            let cable = |to: usize| (to != from).then(|| cabinet.cable(addresses[to])).transpose();
            cables.push((0..HOSTS).map(cable).collect::<Result<Vec<_>, _>>().map_err(host)?);
        }
        let hosts = addresses.into_iter().map(|listen| Host {
            listen,
            process: None,
            ended: Instant::now(),
            down: false,
        });
        let mut pool = Pool {
            common,
            hosts: hosts.collect(),
            cables,
            _cabinet: cabinet,
            started: 0,
            judge: Judge::default(),
            went_live_ns: None,
            fenced: 0,
            gave_up: 0,
            wrong: Vec::new(),
        };
        let mut primary = words("--primary --kernel builtin:kv --memory");
        primary.extend([MEMORY.to_owned(), format!("--cmdline={}", kv::cmdline())]);
        pool.run(0, primary)?;
        for host in 1..HOSTS {
            pool.run(host, words("--standby"))?;
        }
        Ok(pool)
    }

    /// Starts a process on a host.
    fn run(&mut self, host: usize, mut arguments: Vec<String>) -> Result<(), String> {
        let common = &self.common;
        if arguments[0] == "--standby" {
            let peers = self.cables[host].iter().flatten();
            arguments.extend(peers.map(|cable| format!("--peer={}", cable.address())));
        }
        arguments.extend([
            "--allow-same-host".to_owned(),
            format!("--listen={}", self.hosts[host].listen),
            format!("--shared={}", common.shared.display()),
            format!("--detection={}", common.detection.as_millis()),
            format!("--lease={}", common.lease.as_millis()),
            format!("--disk={}", common.disk),
            format!("--net={},mac={}", common.nets[host], kv::GUEST_MAC),
            format!("--console=file={}", common.folder.join("console").display()),
        ]);
        self.started += 1;
        let name = format!("host-{host}.{}", self.started);
        let process = Process::start(&common.ftvm, &arguments, &common.folder, &name, self.started)?;
        self.hosts[host].process = Some(process);
        Ok(())
    }

    /// Looks at every process: hears its reports, notes its end, starts it again.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn look(&mut self) -> Result<(), String> {
        for host in 0..HOSTS {
            self.hear(host);
            self.bury(host);
            let Host {
                process, ended, down, ..
            } = &self.hosts[host];
            if process.is_none() && !down && ended.elapsed() >= RESTART {
                self.run(host, words("--standby"))?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        for report in process.reports() {
            let mut lives = |generation, from_ns| {
                self.judge.lives(Life {
                    generation,
                    host,
                    process: process.number,
                    from_ns,
                });
            };
            match report.event {
                Event::Leading { generation } => lives(generation, 0),
                Event::WentLive { generation, .. } => {
                    self.went_live_ns = Some(report.at_ns);
                    lives(generation, process.suspected_ns.unwrap_or(report.at_ns));
                }
                Event::ClaimWon { generation, .. } => self.judge.won(generation, process.number),
                _ => {}
            }
        }
    }

    fn bury(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let Some(status) = process.ended() else { return };
        // What it said last.
        self.hear(host);
        let Some(process) = self.hosts[host].process.take() else {
            return;
        };
        let fenced = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGKILL as i32);
        match status.code() {
            _ if process.killed => {}
            None if fenced => self.fenced += 1,
            Some(code) if CODES.contains(&code) => self.gave_up += 1,
            _ => self.wrong.push(format!(
                "the process on host {host} ended with {status}; it said last\n      {}",
                process.last_words()
            )),
        }
        self.note_panic(host, &process);
        self.hosts[host].ended = Instant::now();
    }

    fn note_panic(&mut self, host: usize, process: &Process) {
        if process.panicked() {
            self.wrong.push(format!(
                "the process on host {host} panicked; it said last\n      {}",
                process.last_words()
            ));
        }
    }

    /// Who is what, if there is a live side with a backup, and the third stands by.
    #[must_use]
    pub fn cast(&self) -> Option<Cast> {
        let find = |wanted: Part| {
            let at = |host: &Host| host.process.as_ref().is_some_and(|p| p.part == wanted && !p.stopped);
            let mut found = (0..HOSTS).filter(|number| at(&self.hosts[*number]));
            found.next().filter(|_| found.next().is_none())
        };
        let primary = find(Part::Live(Protection::Protected))?;
        Some(Cast {
            primary,
            backup: find(Part::Backup(Protection::Protected))?,
            standby: find(Part::Standby)?,
            protected_ns: self.hosts[primary].process.as_ref()?.since_ns,
        })
    }

    /// Kills the process of a host, which stays down; false if it had ended. What the host had sent and its cables had not yet
    /// delivered is lost with it: it was in its buffers.
    pub fn kill(&mut self, host: usize) -> bool {
        self.hosts[host].down = true;
        let Some(process) = &mut self.hosts[host].process else {
            return false;
        };
        process.killed = true;
        process.signal(Signal::SIGKILL);
        let touched = (0..HOSTS).flat_map(|other| [self.cable(host, other), self.cable(other, host)]);
        touched.flatten().for_each(Cable::hang_up);
        true
    }

    /// Kills a primary, but only one that is protected in the moment of its death: it is stopped, heard, and then killed
    /// or let go on. False if it was let go.
    pub fn kill_protected(&mut self, host: usize) -> bool {
        self.stop(host);
        std::thread::sleep(STOPPING);
        self.hear(host);
        let part = self.hosts[host].process.as_ref().map(|process| process.part);
        let protected = part == Some(Part::Live(Protection::Protected));
        if protected {
            self.kill(host);
        }
        self.go_on(host);
        protected
    }

    /// A host may have a process again.
    pub fn raise(&mut self, host: usize) {
        self.hosts[host].down = false;
    }

    /// SIGSTOP.
    pub fn stop(&mut self, host: usize) {
        if let Some(process) = &mut self.hosts[host].process {
            process.stopped = true;
            process.signal(Signal::SIGSTOP);
        }
    }

    /// SIGCONT.
    pub fn go_on(&mut self, host: usize) {
        if let Some(process) = &mut self.hosts[host].process {
            process.stopped = false;
            process.signal(Signal::SIGCONT);
        }
    }

    /// The cable over which the process on host `from` reaches host `to`.
    #[must_use]
    pub fn cable(&self, from: usize, to: usize) -> Option<&Cable> {
        self.cables[from][to].as_ref()
    }

    /// What every process is, and said last.
    #[must_use]
    pub fn describe(&self) -> String {
        let each = self.hosts.iter().enumerate().map(|(number, host)| match &host.process {
            Some(process) => format!(
                "\n  host {number}: {:?}; it said last\n      {}",
                process.part,
                process.last_words()
            ),
            None => format!("\n  host {number}: no process"),
        });
        each.collect()
    }

    /// Ends every process; a panic is found even now.
    pub fn end(&mut self) {
        for host in 0..HOSTS {
            if let Some(process) = self.hosts[host].process.take() {
                self.note_panic(host, &process);
            }
        }
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}
