//! One run of a nested host, from its settings to its outcome.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Error;
use super::channel::{self, Capture, Channel, Counts, Event, Reports, Sink};
use super::folder::Folder;
use super::image::{self, Image};
use super::kernel::{Kernel, REQUIRED_MODULES};
use super::modules;
use super::qemu::{IMAGE, Machine, Nic};
use super::share::{Daemon, Share};

/// A boot takes about 6 s on an idle machine; on one so busy that it took 50 s this is still plenty.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// How much later than the first process of the nested host, which keeps the time, this side gives up on it.
const GRACE: Duration = Duration::from_secs(20);
/// How long no output may arrive although some is due after the command ended: whoever reads it here may be slow.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory of the nested host: less than the first does not boot, more than the second no test machine has.
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 512..=65_536;
/// QEMU's q35 and the interrupt controller it has without further options end here.
const PROCESSORS: std::ops::RangeInclusive<u32> = 1..=255;
/// What is kept of the console and of QEMU's messages, in bytes, and how many lines of it an error shows.
const CONSOLE_BYTES: usize = 1 << 18;
const CONSOLE_LINES: usize = 60;
/// Folder of the commands and files of a run in the nested host, and its working directory.
const HOME: &str = "/run";

/// What to run, with what, and for how long at most.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command. A first word with a slash is a program of this machine, copied to `/run/bin`. Any other is looked up
    /// among busybox's applets and the `programs`, and failing that copied from this machine's `$PATH`.
    pub command: Vec<OsString>,
    /// Variables in the command's environment beside `PATH` and `HOME`.
    pub environment: Vec<(String, OsString)>,
    /// Files of this machine, each with its absolute path in the nested host.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Further programs of this machine that the command calls by name.
    pub programs: Vec<String>,
    /// Kernel modules, beside those that KVM and the channels need.
    pub modules: Vec<String>,
    /// Processors of the nested host.
    pub processors: u32,
    /// Memory of the nested host in MiB. The image and all files written count too.
    pub memory_mib: u32,
    /// Network cards, `eth0` and so on.
    pub nics: Vec<Nic>,
    /// Raw disk images of this machine, `/dev/vda` and so on; several hosts may have one at the same time.
    pub disks: Vec<PathBuf>,
    /// Folders of this machine.
    pub shares: Vec<Share>,
    /// How long the command may run, not counting the boot.
    pub timeout: Duration,
    /// Folder of this machine for the files that the command leaves in `/out`; they come also after a timeout.
    pub out: Option<PathBuf>,
}

impl Run {
    /// A run of `command` on two processors with 2 GiB, for two minutes at most, with the modules for TAP devices,
    /// bridges and veth pairs.
    pub fn new<I: Into<OsString>>(command: impl IntoIterator<Item = I>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            modules: ["tun", "veth", "bridge"].map(str::to_owned).to_vec(),
            processors: 2,
            memory_mib: 2048,
            nics: Vec::new(),
            disks: Vec::new(),
            shares: Vec::new(),
            timeout: Duration::from_secs(120),
            out: None,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Setting(what));
        if self.command.is_empty() {
            return refuse("expected a command to run in the nested host, found none".to_owned());
        }
        if !PROCESSORS.contains(&self.processors) {
            return refuse(format!(
                "a nested host has {PROCESSORS:?} processors, not {}",
                self.processors
            ));
        }
        if !MEMORY_MIB.contains(&self.memory_mib) {
            return refuse(format!(
                "a nested host has {MEMORY_MIB:?} MiB of memory, not {}",
                self.memory_mib
            ));
        }
        if let Some((name, _)) = self.environment.iter().find(|(name, _)| !is_variable(name)) {
            return refuse(format!("{name:?} is no name of an environment variable"));
        }
        Ok(())
    }

    fn machine<'a>(&'a self, kernel: &Kernel, dir: &'a Path) -> Result<Machine<'a>, Error> {
        let kernel = kernel.image.canonicalize().map_err(failed("find the kernel"))?;
        Ok(Machine {
            dir,
            kernel,
            processors: self.processors,
            memory_mib: self.memory_mib,
            nics: &self.nics,
            disks: &self.disks,
            shares: &self.shares,
        })
    }

    fn write_image(&self, kernel: &Kernel, file: File) -> Result<(), Error> {
        let wanted: Vec<&str> = REQUIRED_MODULES
            .into_iter()
            .chain(self.modules.iter().map(String::as_str))
            .chain((!self.nics.is_empty()).then_some("virtio_net"))
            .chain((!self.disks.is_empty()).then_some("virtio_blk"))
            .chain((!self.shares.is_empty()).then_some("virtiofs"))
            .collect();
        let mut image = Image::new(BufWriter::with_capacity(1 << 20, file))?;
        image.modules(&modules::in_load_order(&kernel.modules, &wanted)?)?;
        for name in &self.programs {
            image.program(name)?;
        }
        for (here, there) in &self.files {
            image.file(here, there)?;
        }
        let mut words = self.command.clone();
        let first = Path::new(&self.command[0]);
        if first.as_os_str().as_bytes().contains(&b'/') {
            let name = first.file_name().ok_or_else(|| image::Error::Place(first.to_owned()))?;
            let there = Path::new(HOME).join("bin").join(name);
            image.file(first, &there)?;
            words[0] = there.into_os_string();
        } else {
            image.command(&first.to_string_lossy())?;
        }
        image.text("run/command", script(&self.environment, &words).as_bytes())?;
        let out = if self.out.is_some() { "wanted" } else { "unwanted" };
        image.text(
            "run/settings",
            format!("timeout={:.3}\nout={out}\n", self.timeout.as_secs_f64()).as_bytes(),
        )?;
        image.finish()?.flush().map_err(|source| Error::Io {
            what: "write the image".to_owned(),
            source,
        })
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        what: what.to_owned(),
        source,
    }
}

fn is_variable(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The shell script that becomes the command.
fn script(environment: &[(String, OsString)], words: &[OsString]) -> OsString {
    let mut text = OsString::from(format!("cd {HOME}\nexport PATH={HOME}/bin:$PATH\n"));
    for (name, value) in environment {
        text.push(format!("export {name}="));
        text.push(quoted(value));
        text.push("\n");
    }
    text.push("exec");
    for word in words {
        text.push(" ");
        text.push(quoted(word));
    }
    text.push("\n");
    text
}

/// The word as a shell reads it: between single quotes, each of its own as `'\''`.
fn quoted(word: &OsStr) -> OsString {
    let parts: Vec<&OsStr> = word
        .as_bytes()
        .split(|byte| *byte == b'\'')
        .map(OsStr::from_bytes)
        .collect();
    let mut text = OsString::from("'");
    text.push(parts.join(OsStr::new("'\\''")));
    text.push("'");
    text
}

/// Where the command's output goes while it runs.
pub struct Streams {
    /// The command's standard output, byte for byte.
    pub stdout: Box<dyn Write + Send>,
    /// The command's standard error.
    pub stderr: Box<dyn Write + Send>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Both to the streams of this process.
    pub fn inherit() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command's exit code; 128 and the signal's number if one ended it.
    pub code: u8,
    /// From QEMU's start to the command's.
    pub boot: Duration,
    /// From the command's start until all its output was here.
    pub command: Duration,
    /// Last lines of the kernel's console.
    pub console: String,
}

/// A nested host that is running. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    qemu: Child,
    /// Serve the shared folders.
    daemons: Vec<Daemon>,
    events: Receiver<Event>,
    received: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
    console: Capture,
    said: Capture,
    timeout: Duration,
    started: Instant,
    dir: Folder,
}

impl Running {
    pub(super) fn start(kernel: &Kernel, cache: &Path, run: &Run, streams: Streams) -> Result<Self, Error> {
        run.check()?;
        let cache = cache.canonicalize().map_err(failed("find the cache"))?;
        let dir = Folder::new(&cache).map_err(failed("make the run's folder"))?;
        run.write_image(
            kernel,
            File::create(dir.path().join(IMAGE)).map_err(failed("create the image"))?,
        )?;
        let (console, said) = (Capture::new(CONSOLE_BYTES), Capture::new(CONSOLE_BYTES));
        let (sender, events) = mpsc::sync_channel(channel::MAX_EVENTS);
        let out = run
            .out
            .clone()
            .map_or_else(|| Sink::Writer(Box::new(io::sink())), Sink::Unpack);
        let sinks = [
            (Channel::Console, Sink::Writer(Box::new(console.clone()))),
            (Channel::Stdout, Sink::Writer(streams.stdout)),
            (Channel::Stderr, Sink::Writer(streams.stderr)),
            (Channel::Out, out),
            (Channel::Control, Sink::Lines),
        ];
        let mut threads = Vec::new();
        let mut daemons = Vec::new();
        let reports = Reports {
            events: sender.clone(),
            counts: Arc::default(),
        };
        let started = Instant::now();
        let connect = || -> Result<Child, Error> {
            for (channel, sink) in sinks {
                let thread = channel::serve(dir.path(), channel, sink, reports.clone());
                threads.push(thread.map_err(failed("serve a channel"))?);
            }
            for share in &run.shares {
                daemons.push(share.serve(dir.path())?);
            }
            let mut qemu = run.machine(kernel, dir.path())?.start()?;
            if let Some(stderr) = qemu.stderr.take() {
                threads.push(channel::watch(stderr, said.clone(), sender).map_err(failed("start a thread"))?);
            }
            Ok(qemu)
        };
        let qemu = connect().inspect_err(|_| channel::release(dir.path()))?;
        Ok(Self {
            qemu,
            daemons,
            events,
            received: reports.counts,
            threads,
            console,
            said,
            timeout: run.timeout,
            started,
            dir,
        })
    }

    /// Waits until the command has ended and all its output is here, then ends the machine.
    ///
    /// # Errors
    /// Fails when the machine does not boot, panics or ends early, when the command takes too long, and when its output
    /// cannot be written.
    pub fn wait(mut self) -> Result<Outcome, Error> {
        let mut ready = None;
        let result = self.watch(&mut ready);
        let finished = Instant::now();
        self.stop();
        // Only now has everything from the console arrived.
        let console = self.console.last_lines(CONSOLE_LINES);
        match result? {
            End::Code(code) => {
                let ready = ready.unwrap_or(finished);
                Ok(Outcome {
                    code,
                    boot: ready - self.started,
                    command: finished - ready,
                    console,
                })
            }
            End::Timeout => Err(Error::Timeout {
                after: self.timeout,
                console,
            }),
            End::NoBoot => Err(Error::Boot {
                after: BOOT_TIMEOUT,
                console,
            }),
            End::Hangup if self.console.text().contains("Kernel panic") => Err(Error::Panic { console }),
            End::Hangup => {
                let status = self.qemu.wait().map_err(|source| Error::Io {
                    what: "wait for QEMU".to_owned(),
                    source,
                })?;
                Err(Error::Qemu {
                    status,
                    said: self.said.last_lines(CONSOLE_LINES),
                    console,
                })
            }
        }
    }

    fn watch(&mut self, ready: &mut Option<Instant>) -> Result<End, Error> {
        let mut report: Option<Report> = None;
        let mut failure = None;
        let mut deadline = self.started + BOOT_TIMEOUT;
        loop {
            if let Some(report) = report.as_ref().filter(|report| report.sent.are_in(&self.received)) {
                return failure.map_or(Ok(report.end), Err);
            }
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Received) => {
                    if report.is_some() {
                        deadline = Instant::now() + DRAIN_TIMEOUT;
                    }
                }
                Ok(Event::Control(line)) if line == "ready" => {
                    *ready = Some(Instant::now());
                    deadline = Instant::now() + self.timeout + GRACE;
                    // QEMU has read it; should this process be killed, little is left behind.
                    let _ = fs::remove_file(self.dir.path().join(IMAGE));
                }
                Ok(Event::Control(line)) => {
                    report = Some(Report::parse(&line).ok_or(Error::Control(line))?);
                    deadline = Instant::now() + DRAIN_TIMEOUT;
                }
                Ok(Event::Failed(channel, reason)) => {
                    failure = Some(Error::Output {
                        channel: channel.name(),
                        reason,
                    });
                }
                Ok(Event::Hangup) | Err(RecvTimeoutError::Disconnected) => return Ok(End::Hangup),
                Err(RecvTimeoutError::Timeout) => {
                    return match (report, ready) {
                        (Some(report), _) => Err(Error::Incomplete {
                            ended: report.line,
                            after: DRAIN_TIMEOUT,
                        }),
                        (None, Some(_)) => Ok(End::Timeout),
                        (None, None) => Ok(End::NoBoot),
                    };
                }
            }
        }
    }

    /// Ends QEMU and waits for the channels to run dry.
    fn stop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        self.daemons.clear();
        // No thread may wait for room in a queue that nobody reads.
        self.events = mpsc::sync_channel(0).1;
        channel::release(self.dir.path());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Code(u8),
    Timeout,
    NoBoot,
    Hangup,
}

/// Bytes that the final report says were sent.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    stdout: u64,
    stderr: u64,
    out: u64,
}

impl Sent {
    fn are_in(&self, received: &Counts) -> bool {
        let all = [
            (Channel::Stdout, self.stdout),
            (Channel::Stderr, self.stderr),
            (Channel::Out, self.out),
        ];
        all.iter().all(|(channel, sent)| received.of(*channel) >= *sent)
    }
}

/// The last line on the control channel: `ended CODE|timeout STDOUT STDERR OUT`, the latter in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    line: String,
    end: End,
    sent: Sent,
}

impl Report {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("ended ")?.split(' ');
        let end = match words.next()? {
            "timeout" => End::Timeout,
            code => End::Code(code.parse().ok()?),
        };
        let mut count = || words.next()?.parse().ok();
        let sent = Sent {
            stdout: count()?,
            stderr: count()?,
            out: count()?,
        };
        words.next().is_none().then(|| Self {
            line: line.to_owned(),
            end,
            sent,
        })
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
