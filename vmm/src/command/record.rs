//! `ftvm record`: a live guest whose log goes to a file, and whose outputs leave at once.

use std::time::{Duration, Instant};

use ftvm_schema::entry::{EndReason, LogEntry, Mark, Position};
use ftvm_schema::record;
use logging_channel::file::{Existing, FileHeader, LogWriter, RecordingEnd, Verify};
use logging_channel::message::PROTOCOL_VERSION;
use shared_disk::plan::Gate;

use crate::cli::{RecordArgs, VerifyArg};
use crate::failure::Failure;
use crate::guest;
use crate::outside::Outside;
use crate::outside::disk_threads::DiskThreads;
use crate::signals::watch_signals;
use ftvm_host::console::{ByteStream, ConsoleTarget};
use ftvm_host::net::Inbound;
use ftvm_host::option::DiskOption;
use ftvm_host::queue::event_queue;
use ftvm_host::stdio::{StdoutError, answer, tell};
use ftvm_kvm::KvmCpu;
use ftvm_machine::config::MachineConfig;
use ftvm_machine::machine::Machine;
use ftvm_machine::output::{Emission, Output};
use ftvm_roles::clock::LiveClock;
use ftvm_roles::disks::Disks;
use ftvm_roles::disks::Writes;
use ftvm_roles::event::clean_end;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::live::{Live, LiveConfig, MarkPolicy, Sink, SinkError, Totals};
use ftvm_roles::replay::describe_end;

/// A file log has a mark with registers at least every so many exits.
const MARK_EVERY: u64 = 4096;

/// Writes the log, and lets outputs out at once: nobody has to hear of them first.
#[derive(Debug)]
struct FileSink {
    log: LogWriter,
    /// Of micro-checkpoints, as they are in the log.
    checkpoint_bytes: u64,
    outside: Outside,
    disks: Disks<DiskThreads>,
}

impl Sink for FileSink {
    fn logging(&self) -> bool {
        true
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), SinkError> {
        if let LogEntry::Checkpoint { chunk, .. } = &entry {
            self.checkpoint_bytes += chunk.bytes.len() as u64;
        }
        self.log.append(&[entry]).map_err(SinkError::from)
    }

    fn output(&mut self, output: Output) -> Result<(), SinkError> {
        match &output.emission {
            // Open: its turn in the plan is all it waits for.
            Emission::Disk(request) | Emission::PrivateDisk(request) => {
                self.disks.accept(request, Gate::Open).map_err(SinkError::from)
            }
            Emission::WantEntropy { len } => self.outside.want_entropy(*len).map_err(SinkError::from),
            said => self.outside.emit(said).map(|_| ()).map_err(SinkError::from),
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.disks.start_ready(|| Writes::Freely).map_err(SinkError::from)
    }

    fn disk_finished(&mut self, disk: u8, id: u64, _at: Position) {
        let done = self.disks.finished(disk, id).and_then(|()| self.disks.acked(disk, id));
        if let Err(error) = done {
            tracing::error!("{error}");
        }
    }

    fn dirty(&mut self, _pages: Vec<u64>) -> Result<(), SinkError> {
        Ok(())
    }

    fn state(&mut self, _record: Vec<u8>, _at: Mark, _stopped: Duration) -> Result<(), SinkError> {
        Ok(()) // nobody joins a recording
    }
}

/// A private disk is one of two, and a recording has one side only.
#[derive(Debug, thiserror::Error)]
#[error("private=on is for `ftvm run`: a recording has no backup with a copy of the disk")]
struct PrivateDiskRecorded;

pub(super) fn run(args: &RecordArgs) -> Result<ExitCode, Failure> {
    if args.host.disks.iter().any(DiskOption::is_private) {
        return Err(Failure::usage(PrivateDiskRecorded));
    }
    let kernel = guest::kernel(&args.guest)?;
    let capabilities = guest::capabilities()?;
    let (sender, queue) = event_queue();
    let mut outside = Outside::open(&args.host, ByteStream::New, Inbound::Forward, Duration::ZERO, &sender)?;
    let sizes = outside.disks.open()?;
    let config = guest::configure(&args.guest, &args.host, &kernel, &sizes, capabilities.best_delivery())?;
    // The guest's RTC shows the time of its configuration and what has gone by since: loading it takes a while.
    let clock = LiveClock::starting(0, Instant::now());
    let machine = guest::boot(&config, &kernel, &capabilities)?;
    let log = create_log(args, &config)?;
    outside.listen()?;
    watch_signals(&sender, args.seconds.map(Duration::from_secs))?;
    let live = LiveConfig {
        patience: Duration::from_millis(args.guest.patience),
        marks: MarkPolicy::EveryExits(MARK_EVERY),
        checks: args.verify == VerifyArg::Exit,
        max_exits: args.exits,
    };
    let begun = Instant::now();
    let sink = FileSink {
        log,
        checkpoint_bytes: 0,
        disks: outside.disks.take()?,
        outside,
    };
    let live = Live::new(machine, sink, queue, clock, live, begun);
    let (machine, sink, reason, totals) = ftvm_host::vcpu::run(live, sender)?;
    finish(args, &machine, sink, &reason, totals, begun.elapsed())
}

/// Gives consoles and disks back, writes the log's last words, and says how it was.
fn finish(
    args: &RecordArgs,
    machine: &Machine<KvmCpu>,
    sink: FileSink,
    reason: &EndReason,
    totals: Totals,
    took: Duration,
) -> Result<ExitCode, Failure> {
    let FileSink {
        log,
        checkpoint_bytes,
        disks,
        outside,
    } = sink;
    drop((disks, outside));
    let (code, text) = clean_end(reason);
    let memory_hash = machine.memory_hash()?;
    let trailer = log.finish(RecordingEnd {
        exits: machine.at().exit.0,
        outputs: machine.outputs(),
        digest: machine.digest(),
        memory_hash: Some(memory_hash),
        reason: reason.clone(),
        text: text.clone(),
    })?;
    if matches!(reason, EndReason::PowerOff { status: 1.. }) && args.host.console == ConsoleTarget::Off {
        tracing::warn!("{text}, but it is off here: record with --console stdio, or see `ftvm replay --console`");
    }
    report(
        args,
        &Recorded {
            outcome: describe_end(reason),
            text,
            totals,
            exits: machine.at().exit.0,
            log_bytes: trailer.log_bytes,
            checkpoint_bytes,
            seconds: took.as_secs_f64(),
            memory_hash,
        },
    )?;
    Ok(code)
}

fn create_log(args: &RecordArgs, config: &MachineConfig) -> Result<LogWriter, Failure> {
    let header = FileHeader {
        version: PROTOCOL_VERSION,
        created_unix_ns: guest::unix_ns(),
        verify: match args.verify {
            VerifyArg::Marks => Verify::Marks,
            VerifyArg::Exit => Verify::Exit,
        },
        program: format!("ftvm {}", env!("CARGO_PKG_VERSION")),
        args: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        config: record::to_bytes(config)?,
        state: None,
    };
    let existing = if args.overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    Ok(LogWriter::create(&args.log, &header, existing)?)
}

/// What there is to say about a recording.
struct Recorded {
    /// How the guest ended, in the words of a log.
    outcome: String,
    /// The same, and where to look for more.
    text: String,
    totals: Totals,
    exits: u64,
    log_bytes: u64,
    checkpoint_bytes: u64,
    /// From the guest's start to its end, by the host's clock.
    seconds: f64,
    memory_hash: u64,
}

fn report(args: &RecordArgs, recorded: &Recorded) -> Result<(), StdoutError> {
    let Recorded {
        exits,
        log_bytes,
        totals,
        ..
    } = recorded;
    let hash = format!("{:016x}", recorded.memory_hash);
    if args.json {
        let object = serde_json::json!({
            "exits": exits,
            "inputs": totals.inputs,
            "checkpoints": totals.checkpoints,
            "checkpoint_pages": totals.checkpoint_pages,
            "checkpoint_bytes": recorded.checkpoint_bytes,
            "device_faults": totals.device_faults,
            "log_bytes": log_bytes,
            "seconds": recorded.seconds,
            "memory_hash": hash,
            "outcome": recorded.outcome,
        });
        answer(object)?;
    } else {
        tell(format_args!(
            "recorded {exits} exits, {} inputs, {} checkpoints ({} pages, {} bytes) in {log_bytes} bytes and {:.1} s; {}; \
             memory {hash}",
            totals.inputs,
            totals.checkpoints,
            totals.checkpoint_pages,
            recorded.checkpoint_bytes,
            recorded.seconds,
            recorded.text
        ));
    }
    Ok(())
}
