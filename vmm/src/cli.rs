//! The command line: `ftvm run`, `disown`, `record`, `replay`, `demo`, `doctor`, `guests`, `audit`, and `status`, `failover`
//! and their like for a guest that runs with `--control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use logging_channel::message::DiskReads;
use shared_disk::arbiter::{Arbiter, ArbiterError, SharedStorage};

use ftvm_demo::command::DemoArgs;
use ftvm_host::console::ConsoleTarget;
use ftvm_host::option::{DiskOption, MemorySize, NetOption};
use ftvm_roles::exit_code::ExitCode;

/// Keep a virtual machine running when its host dies: run it as a pair, `ftvm run --primary` on one host and
/// `ftvm run --backup` on another. `ftvm demo` shows it on this machine, `ftvm doctor` says whether a machine can do it.
#[derive(Debug, Parser)]
#[command(name = "ftvm", version, after_help = epilogue())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The exit codes, and what else concerns every command.
fn epilogue() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for code in ExitCode::ALL {
        text += &format!("  {:<3} {}\n", code.number(), code.meaning());
    }
    text += "\nEnvironment: FTVM_LOG sets what is reported on standard error (error, warn, info, debug).";
    text
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest as one side of a fault-tolerant pair
    Run(RunArgs),
    /// Free a guest whose owner died without a clean end; only when neither side lives any more
    Disown(StorageArgs),
    /// Run a guest and record everything that reaches it
    Record(RecordArgs),
    /// Replay a recording and verify it
    Replay(ReplayArgs),
    /// Say how a guest that runs with --control is, and how protected
    Status(ControlArgs),
    /// Have the guest's life end, as with SIGTERM; the backup ends too
    PowerOff(ControlArgs),
    /// Have the guest start again from its kernel, on both hosts; its disks stay as they are
    Reset(ControlArgs),
    /// Have the guest stand still, and its clock with it
    Pause(ControlArgs),
    /// Have a paused guest go on
    Resume(ControlArgs),
    /// Dismiss the backup, and let none join until resume-protection
    SuspendProtection(ControlArgs),
    /// Let a backup join again
    ResumeProtection(ControlArgs),
    /// Hand the guest over to its backup, without a gap to speak of; the old primary ends with code 12
    Failover(ControlArgs),
    /// Kill the primary, if it is protected: a real failover, to see one
    TestFailover(ControlArgs),
    /// Dismiss the backup; another, or the same host's standby, may join at once
    RestartBackup(ControlArgs),
    /// Watch a guest survive the death of its host
    Demo(DemoArgs),
    /// Say what this machine's KVM can do for ftvm, and what to do where it cannot
    Doctor(DoctorArgs),
    /// List the guests that are built in
    Guests(GuestsArgs),
    /// Say which instructions in a kernel, initrd or disk image could make a replay diverge
    Audit(AuditArgs),
}

/// What the guest is made of.
#[derive(Clone, Debug, Args)]
pub struct GuestArgs {
    /// Kernel image: builtin:NAME (see `ftvm guests`), or the path of a Linux bzImage or vmlinux, or of a bare-metal ELF
    #[arg(long, value_name = "IMAGE")]
    pub kernel: Option<String>,
    /// Linux's initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// The kernel's command line; Linux gets it behind the options that make it replayable
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub cmdline: String,
    /// RAM, for example 256M
    #[arg(long, default_value = "64M", value_name = "SIZE")]
    pub memory: MemorySize,
    /// How long an input waits for the guest to exit by itself before it is moved by a micro-checkpoint, in ms
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000), value_name = "MS")]
    pub patience: u64,
}

/// What a host gives a guest: the backup has its own.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// A disk: path=FILE[,readonly=on|off][,direct=on|off][,reserve=on|off][,private=on|off][,mark=FILE]; private: an image on
    /// each host
    #[arg(long = "disk", value_name = "OPTIONS")]
    pub disks: Vec<DiskOption>,
    /// A network card: tap=NAME[,mac=MAC] or dgram=SOCKET,remote=SOCKET[,mac=MAC]
    #[arg(long = "net", value_name = "OPTIONS")]
    pub nets: Vec<NetOption>,
    /// The serial console: stdio, off, pty, file=PATH[,sync] or socket=PATH
    #[arg(long, default_value = "stdio", value_name = "WHERE")]
    pub console: ConsoleTarget,
    /// Also give the guest a virtio console, at: off, pty, file=PATH[,sync] or socket=PATH
    #[arg(long, value_name = "WHERE")]
    pub virtio_console: Option<ConsoleTarget>,
    /// Give the guest a virtio entropy device
    #[arg(long)]
    pub rng: bool,
}

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("role").required(true).args(["primary", "backup", "standby"]))]
pub struct RunArgs {
    /// Start the guest here and replicate it to a backup that joins
    #[arg(long)]
    pub primary: bool,
    /// Join the primary at --peer and go live when it dies
    #[arg(long, requires = "peer")]
    pub backup: bool,
    /// Wait until one of the --peers needs a backup, become it, and after it has lost its place wait again
    #[arg(long, requires = "peer")]
    pub standby: bool,
    /// A standby's turn: 0 joins at once, each further one a second later
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=60), value_name = "N")]
    pub priority: u8,
    /// The part of the world this host fails with, by a name of your own: a standby protects no guest at its own site
    #[arg(long, default_value = "", value_name = "NAME")]
    pub site: String,
    /// Let a standby protect a guest on its own host
    #[arg(long)]
    pub allow_same_host: bool,
    /// Let a standby protect a guest at its own site
    #[arg(long)]
    pub allow_same_site: bool,
    /// Where backups may join (TCP) and heartbeats arrive (UDP, same port)
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// The primary to join; for a standby, given as often as there are hosts where the guest may be. A --primary with
    /// peers stands by after it has handed its guest over
    #[arg(long, value_name = "ADDR:PORT")]
    pub peer: Vec<SocketAddr>,
    #[command(flatten)]
    pub storage: StorageArgs,
    /// Detection time in ms: silence longer than this is a death
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(20..=60_000), value_name = "MS")]
    pub detection: u64,
    /// Lease in ms, at most the detection time: how long a primary may release outputs after its last acknowledged mark
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000), value_name = "MS")]
    pub lease: u64,
    /// Where the backup gets what the guest reads from its disks; the primary's choice counts for the pair
    #[arg(long, value_enum, default_value = "log")]
    pub disk_reads: DiskReadsArg,
    /// Listen at this Unix socket for `ftvm status`, `ftvm failover` and the like (docs/src/operations.md)
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Append what happens as JSON lines to this file
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Be killed when the process that started this one is gone: for a demo's or test's own processes
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
    #[command(flatten)]
    pub guest: GuestArgs,
    #[command(flatten)]
    pub host: HostArgs,
}

impl RunArgs {
    /// The arbiter that decides who may live.
    ///
    /// # Errors
    /// The storage cannot be used, or the guest's name not be one there.
    pub fn arbiter(&self) -> Result<Arc<dyn Arbiter>, ArbiterError> {
        self.storage.shared.open(&self.storage.name)
    }
}

/// The storage whose test-and-set decides who may live.
#[derive(Clone, Debug, Args)]
pub struct StorageArgs {
    /// What both hosts reach: a directory on a shared file system, scsi:/dev/DEVICE, or etcd:http://HOST:PORT[,http://...]
    #[arg(long, value_name = "STORAGE")]
    pub shared: SharedStorage,
    /// The guest's name there
    #[arg(long, default_value = "guest", value_name = "NAME")]
    pub name: String,
}

/// Where a backup gets what the guest reads from its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiskReadsArg {
    /// From the log, which carries it: more to send, nothing to wait for
    Log,
    /// From the shared disk itself: less to send, but it must read as fast as the primary
    Backup,
}

impl DiskReadsArg {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DiskReadsArg::Log => "log",
            DiskReadsArg::Backup => "backup",
        }
    }
}

impl From<DiskReadsArg> for DiskReads {
    fn from(arg: DiskReadsArg) -> Self {
        match arg {
            DiskReadsArg::Log => DiskReads::Log,
            DiskReadsArg::Backup => DiskReads::Backup,
        }
    }
}

/// What a recording keeps for verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerifyArg {
    /// A digest and registers every few thousand exits
    Marks,
    /// Also a check byte for every exit, so that replay names the exact exit of a divergence
    Exit,
}

#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The log to write; refused if it exists, unless --overwrite
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// Replace an existing log
    #[arg(long)]
    pub overwrite: bool,
    /// What to keep for verification
    #[arg(long, value_enum, default_value = "marks")]
    pub verify: VerifyArg,
    /// Stop after this many exits
    #[arg(long, value_name = "N")]
    pub exits: Option<u64>,
    /// Stop after this many seconds
    #[arg(long, value_name = "S")]
    pub seconds: Option<u64>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub guest: GuestArgs,
    #[command(flatten)]
    pub host: HostArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// The log to replay
    #[arg(value_name = "FILE")]
    pub log: PathBuf,
    /// The kernel image, if it is not where it was when recorded
    #[arg(long, value_name = "IMAGE")]
    pub kernel: Option<String>,
    /// The initrd, if it is not where it was when recorded
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// Show what the guest wrote to its consoles
    #[arg(long)]
    pub console: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Which guest an operation is for.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// The socket that its `ftvm run` was given
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct GuestsArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    /// A Linux kernel, an initrd, an ELF file or a raw disk image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
