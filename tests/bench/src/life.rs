//! One life of a guest in this process, with a log or without.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ftvm_host::console::ConsoleTarget;
use ftvm_host::option::MemorySize;
use ftvm_host::queue::event_queue;
use ftvm_kvm::selftest::Capabilities;
use ftvm_machine::boot::Kernel;
use ftvm_machine::output::Output;
use ftvm_roles::clock::LiveClock;
use ftvm_roles::live::{Live, LiveConfig, MarkPolicy, Sink, SinkError};
use ftvm_schema::entry::{LogEntry, Mark, Position};
use ftvm_schema::record;
use logging_channel::file::{Existing, FileHeader, LogWriter, Verify};
use logging_channel::message::PROTOCOL_VERSION;
use vmm::cli::{GuestArgs, HostArgs};
use vmm::guest;

/// As in `ftvm record`.
const MARK_EVERY: u64 = 4096;
const PATIENCE: Duration = Duration::from_millis(30);

/// What is kept of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    None,
    /// What `ftvm record` keeps.
    Marks,
    /// What `ftvm record --verify=exit` keeps.
    Exit,
}

impl Log {
    /// All, in the order in which they cost more.
    pub const ALL: [Log; 3] = [Log::None, Log::Marks, Log::Exit];
}

/// What a life amounted to.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// The guest's exits.
    pub exits: u64,
    /// Bytes of log, its header included.
    pub log_bytes: u64,
    /// Time from the first entry of the guest to its end.
    pub took: Duration,
}

/// Writes the log, and drops outputs: what they cost is the same with a log and without.
struct Recorder(Option<LogWriter>);

impl Sink for Recorder {
    fn logging(&self) -> bool {
        self.0.is_some()
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), SinkError> {
        self.0
            .as_mut()
            .map_or(Ok(()), |log| log.append(&[entry]).map_err(SinkError::from))
    }

    fn output(&mut self, _: Output) -> Result<(), SinkError> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn disk_finished(&mut self, _: u8, _: u64, _: Position) {}

    fn dirty(&mut self, _: Vec<u64>) -> Result<(), SinkError> {
        Ok(())
    }

    fn state(&mut self, _: Vec<u8>, _: Mark, _: Duration) -> Result<(), SinkError> {
        Ok(())
    }
}

/// What this host's KVM can do; the self-test takes longer than a life.
fn capabilities() -> Result<&'static Capabilities, String> {
    static FOUND: OnceLock<Capabilities> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let found = guest::capabilities().map_err(|e| e.to_string())?;
    Ok(FOUND.get_or_init(|| found))
}

/// Lives a whole life of the built-in `guest`, at most `exits` exits of it; a log goes to `path`.
///
/// # Errors
/// A sentence: KVM, the guest or the log refuses.
pub fn live(name: &str, cmdline: &str, exits: Option<u64>, log: Log, path: &Path) -> Result<Life, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{name} {cmdline}: {error}");
    let host = HostArgs {
        disks: Vec::new(),
        nets: Vec::new(),
        console: ConsoleTarget::Off,
        virtio_console: None,
        rng: false,
    };
    let args = GuestArgs {
        kernel: Some(format!("builtin:{name}")),
        initrd: None,
        cmdline: cmdline.to_owned(),
        memory: MemorySize(64 << 20),
        patience: 30,
    };
    let capabilities = capabilities()?;
    let kernel: Kernel = guest::kernel(&args).map_err(|e| failed(&e))?;
    let config = guest::configure(&args, &host, &kernel, &[], capabilities.best_delivery()).map_err(|e| failed(&e))?;
    let machine = guest::boot(&config, &kernel, capabilities).map_err(|e| failed(&e))?;
    let header = FileHeader {
        version: PROTOCOL_VERSION,
        created_unix_ns: guest::unix_ns(),
        verify: if log == Log::Exit { Verify::Exit } else { Verify::Marks },
        program: "bench".to_owned(),
        args: String::new(),
        config: record::to_bytes(&config).map_err(|e| failed(&e))?,
        state: None,
    };
    let writer = match log {
        Log::None => None,
        Log::Marks | Log::Exit => Some(LogWriter::create(path, &header, Existing::Replace).map_err(|e| failed(&e))?),
    };
    let settings = LiveConfig {
        patience: PATIENCE,
        marks: MarkPolicy::EveryExits(MARK_EVERY),
        checks: log == Log::Exit,
        max_exits: exits,
    };
    let (sender, queue) = event_queue();
    let begun = Instant::now();
    let clock = LiveClock::starting(0, begun);
    let live = Live::new(machine, Recorder(writer), queue, clock, settings, begun);
    let life = ftvm_host::vcpu::run(live, sender);
    let (machine, Recorder(writer), ..) = life.map_err(|e| failed(&e))?;
    let mut log_bytes = 0;
    if let Some(mut writer) = writer {
        writer.flush().map_err(|e| failed(&e))?;
        log_bytes = writer.log_bytes();
    }
    Ok(Life {
        exits: machine.at().exit.0,
        log_bytes,
        took: begun.elapsed(),
    })
}
