//! `ftvm record`: a live guest whose log goes to a file, and whose outputs leave at once.

use std::time::{Duration, Instant};

use logging_channel::codec;
use logging_channel::entry::{EndReason, LogEntry, Mark, Position};
use logging_channel::file::{Ending, Existing, FileHeader, LogWriter, Verify};
use logging_channel::message::PROTOCOL_VERSION;
use shared_disk::plan::Gate;

use super::disk_threads::DiskThreads;
use super::outside::Outside;
use super::say::{answer, tell};
use super::{Failure, guest};
use crate::backends::console::{ConsoleTarget, Life};
use crate::backends::net::Inbound;
use crate::backends::queue::{EventSender, event_queue};
use crate::backends::{HostEvent, StopKind};
use crate::cli::{RecordArgs, VerifyArg};
use crate::machine::MachineError;
use crate::output::{Emission, Output};
use crate::roles::clock::LiveClock;
use crate::roles::disks::Disks;
use crate::roles::event::clean_end;
use crate::roles::live::{Live, LiveConfig, Marks, Sink, Totals};
use crate::roles::primary::Writes;
use crate::roles::replay::describe_end;

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

fn log_error(error: impl std::fmt::Display) -> MachineError {
    MachineError::Log(error.to_string())
}

impl Sink for FileSink {
    fn logging(&self) -> bool {
        true
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), MachineError> {
        if let LogEntry::Checkpoint { chunk, .. } = &entry {
            self.checkpoint_bytes += chunk.bytes.len() as u64;
        }
        self.log.append(&[entry]).map_err(log_error)
    }

    fn output(&mut self, output: Output) -> Result<(), MachineError> {
        match &output.emission {
            // Open: its turn in the plan is all it waits for.
            Emission::Disk(request) | Emission::PrivateDisk(request) => {
                self.disks.accept(request, Gate::Open).map_err(log_error)
            }
            Emission::WantEntropy { len } => self.outside.want_entropy(*len).map_err(log_error),
            said => self.outside.emit(said).map(|_| ()).map_err(log_error),
        }
    }

    fn flush(&mut self) -> Result<(), MachineError> {
        self.disks.start_ready(|| Writes::Freely).map_err(log_error)
    }

    fn disk_done(&mut self, disk: u8, id: u64, _at: Position) {
        let done = self.disks.finished(disk, id).and_then(|()| self.disks.acked(disk, id));
        if let Err(error) = done {
            tracing::error!("{error}");
        }
    }

    fn dirty(&mut self, _pages: Vec<u64>) -> Result<(), MachineError> {
        Ok(())
    }

    fn state(&mut self, _record: Vec<u8>, _at: Mark, _stopped: Duration) -> Result<(), MachineError> {
        Ok(()) // nobody joins a recording
    }
}

/// `ftvm record`
///
/// # Errors
/// A sentence for the user.
pub fn run(args: &RecordArgs) -> Result<u8, Failure> {
    if args.host.disks.iter().any(|disk| disk.private) {
        let text = "private=on is for `ftvm run`: a recording has no backup with a copy of the disk".to_owned();
        return Err(Failure { code: 2, text });
    }
    let kernel = guest::kernel(&args.guest)?;
    let capabilities = guest::capabilities()?;
    let (sender, queue) = event_queue();
    let mut outside =
        Outside::open(&args.host, Life::First, Inbound::Forward, Duration::ZERO, &sender).map_err(Failure::new)?;
    let sizes = outside.open_disks().map_err(Failure::new)?;
    let config = guest::configure(&args.guest, &args.host, &kernel, &sizes, capabilities.best_delivery())?;
    // The guest's RTC shows the time of its configuration and what has gone by since: loading it takes a while.
    let clock = LiveClock::starting(0, Instant::now());
    let machine = guest::boot(&config, &kernel, &capabilities)?;
    let log = create_log(args, &config)?;
    outside.listen().map_err(Failure::new)?;
    watch_signals(&sender, args.seconds.map(Duration::from_secs))?;
    let live = LiveConfig {
        patience: Duration::from_millis(args.guest.patience),
        marks: Marks::EveryExits(MARK_EVERY),
        checks: args.verify == VerifyArg::Exit,
        max_exits: args.exits,
    };
    let begun = Instant::now();
    let sink = FileSink {
        log,
        checkpoint_bytes: 0,
        disks: outside.take_disks().map_err(Failure::new)?,
        outside,
    };
    let live = Live::new(machine, sink, queue, clock, live, begun);
    let (machine, sink, reason, totals) = live.run(sender).map_err(Failure::new)?;
    let seconds = begun.elapsed().as_secs_f64();
    let FileSink {
        log,
        checkpoint_bytes,
        disks,
        outside,
    } = sink;
    drop((disks, outside));
    let (code, text) = clean_end(&reason);
    let ending = Ending {
        exits: machine.at().exit.0,
        outputs: machine.outputs(),
        digest: machine.digest(),
        memory_hash: Some(machine.memory_hash().map_err(Failure::new)?),
        reason: reason.clone(),
        text: text.clone(),
    };
    let memory_hash = ending.memory_hash;
    let trailer = log.finish(ending).map_err(Failure::new)?;
    if matches!(reason, EndReason::PowerOff { status: 1.. }) && args.host.console == ConsoleTarget::Off {
        tracing::warn!("{text}, but it is off here: record with --console stdio, or see `ftvm replay --console`");
    }
    report(
        args,
        &Recorded {
            reason,
            totals,
            exits: machine.at().exit.0,
            log_bytes: trailer.log_bytes,
            checkpoint_bytes,
            seconds,
            memory_hash: memory_hash.unwrap_or_default(),
        },
    )?;
    Ok(code)
}

fn create_log(args: &RecordArgs, config: &crate::machine::config::MachineConfig) -> Result<LogWriter, Failure> {
    let header = FileHeader {
        version: PROTOCOL_VERSION,
        created_unix_ns: guest::unix_ns(),
        verify: match args.verify {
            VerifyArg::Marks => Verify::Marks,
            VerifyArg::Exit => Verify::Exit,
        },
        program: format!("ftvm {}", env!("CARGO_PKG_VERSION")),
        args: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        config: codec::to_bytes(config).map_err(Failure::new)?,
        state: None,
    };
    let existing = if args.overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    LogWriter::create(&args.log, &header, existing).map_err(Failure::new)
}

/// SIGINT, SIGTERM and a time limit become events: a clean end is never taken for a death (PROTOCOL 18).
///
/// # Errors
/// If the process can have no signal handlers or threads.
pub fn watch_signals(events: &EventSender, limit: Option<Duration>) -> Result<(), Failure> {
    let events = events.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    let watch = async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let end = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = interrupt.recv() => StopKind::Interrupt,
            _ = terminate.recv() => StopKind::Terminate,
            () = end => StopKind::Limit,
        };
        // The guest may have ended meanwhile: nobody is there to be told.
        let _ = events.answer(HostEvent::Stop(kind));
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(watch)).map_err(Failure::new)?;
    Ok(())
}

/// What there is to say about a recording.
struct Recorded {
    reason: EndReason,
    totals: Totals,
    exits: u64,
    log_bytes: u64,
    checkpoint_bytes: u64,
    /// From the guest's start to its end, by the host's clock.
    seconds: f64,
    memory_hash: u64,
}

fn report(args: &RecordArgs, recorded: &Recorded) -> Result<(), Failure> {
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
            "outcome": describe_end(&recorded.reason),
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
            clean_end(&recorded.reason).1
        ));
    }
    Ok(())
}
