//! `ftvm replay`: a recording run again in a new process, verified at every mark.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_schema::entry::{ConsolePort, LogEntry};
use logging_channel::file::{LogError, LogReader, Verify};

use crate::cli::ReplayArgs;
use crate::failure::Failure;
use crate::guest::{self};
use ftvm_host::stdio::{answer, tell};
use ftvm_hypervisor::{Cpu, DeliveryMode, Kick};
use ftvm_kvm::KvmCpu;
use ftvm_kvm::selftest::Capabilities;
use ftvm_machine::boot::Kernel;
use ftvm_machine::config::MachineConfig;
use ftvm_machine::output::Emission;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::replay::{Divergence, NoDisks, ReplayError, Replayer, describe_end};

/// How often the replayed guest is interrupted, to see whether it still makes exits.
const KICK_EVERY: Duration = Duration::from_secs(1);

/// How often progress is shown on a terminal.
const PROGRESS: Duration = Duration::from_millis(200);

/// Why a log that can be read is not replayed.
#[derive(Debug, thiserror::Error)]
enum ReplayCommandError {
    /// The interrupt delivery mode decides which exits are numbered (PROTOCOL 21).
    #[error(
        "the log was recorded with interrupt delivery '{0}', which this host's KVM cannot replay; replay it on a host like the \
         one that recorded it"
    )]
    Delivery(&'static str),
    /// The host has no thread to give.
    #[error("cannot start the watchdog's thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What a replay found.
#[derive(Debug, Default)]
struct Findings {
    divergence: Option<Divergence>,
    damage: Option<LogError>,
    differences: Vec<String>,
}

pub(super) fn run(args: &ReplayArgs) -> Result<ExitCode, Failure> {
    let mut log = LogReader::open(&args.log)?;
    let config = MachineConfig::from_record(&log.header().config)?;
    ftvm_kvm::profile::check_supported(&config.profile)?;
    let capabilities = guest::capabilities()?;
    check_delivery(&config, &capabilities)?;
    let kernel = Kernel::open_recorded(
        &config,
        args.kernel.as_deref(),
        args.initrd.as_deref(),
        &guest::built_in(),
    )?;
    let mut machine = guest::boot(&config, &kernel, &capabilities)?;
    if log.header().verify == Verify::Exit {
        machine.keep_trail();
    }
    let kick = machine.cpu().kicker();
    let mut replayer = Replayer::new(machine, Instant::now);
    watch(kick)?;
    let begun = Instant::now();
    let mut outcome = follow(args, &mut log, &mut replayer)?;
    let hash = replayer.machine().memory_hash()?;
    if outcome.divergence.is_none() {
        compare_ending(&log, &mut replayer, hash, &mut outcome);
    }
    report(args, &log, &mut replayer, hash, &outcome, begun.elapsed())
}

/// A diverged guest may loop without an exit: kicked, it lets the replayer look at the time. Ends with the process.
fn watch(kick: Arc<dyn Kick>) -> Result<(), ReplayCommandError> {
    let thread = std::thread::Builder::new().name("watchdog".to_owned());
    let watch = move || {
        loop {
            std::thread::sleep(KICK_EVERY);
            kick.kick();
        }
    };
    thread.spawn(watch).map_err(ReplayCommandError::Thread)?;
    Ok(())
}

/// This host must have the recorded interrupt delivery mode.
fn check_delivery(config: &MachineConfig, host: &Capabilities) -> Result<(), ReplayCommandError> {
    let needed = config.profile.delivery;
    if needed == DeliveryMode::None || host.delivery_modes.contains(&needed) {
        return Ok(());
    }
    Err(ReplayCommandError::Delivery(needed.name()))
}

/// Feeds the replayer until the log ends, is damaged, or the histories part.
fn follow(args: &ReplayArgs, log: &mut LogReader, replayer: &mut Replayer<KvmCpu>) -> Result<Findings, Failure> {
    let mut outcome = Findings::default();
    let mut shown = Instant::now();
    let show = std::io::stderr().is_terminal() && !args.json && !args.console;
    loop {
        let entry = match log.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => {
                outcome.damage = Some(error);
                break;
            }
        };
        replayer.feed(entry);
        match replayer.catch_up(&mut NoDisks) {
            Ok(()) => {}
            Err(ReplayError::Diverged(mut divergence)) => {
                name_exit(log, replayer, &mut divergence);
                outcome.divergence = Some(*divergence);
                break;
            }
            Err(error) => return Err(error.into()),
        }
        print_outputs(args, replayer);
        if show && shown.elapsed() > PROGRESS {
            shown = Instant::now();
            eprint!("\rreplaying: exit {}", replayer.machine().at().exit.0);
        }
    }
    if show {
        eprint!("\r\x1b[K");
    }
    print_outputs(args, replayer);
    Ok(outcome)
}

/// The check bytes that tell the exact exit stand behind the entry where the divergence was noticed.
fn name_exit(log: &mut LogReader, replayer: &mut Replayer<KvmCpu>, divergence: &mut Divergence) {
    if divergence.exact || log.header().verify != Verify::Exit {
        return;
    }
    while let Ok(Some(entry)) = log.next_entry() {
        if let LogEntry::Checks { from, bytes } = entry {
            if from.0 > divergence.at_exit {
                return;
            }
            replayer.refine(from, &bytes, divergence);
            if divergence.exact {
                return;
            }
        }
    }
}

fn print_outputs(args: &ReplayArgs, replayer: &mut Replayer<KvmCpu>) {
    while let Some(output) = replayer.unreleased().pop() {
        if let Emission::Console {
            port: ConsolePort::Serial | ConsolePort::Virtio,
            bytes,
            ..
        } = output.emission
            && args.console
        {
            let mut out = std::io::stderr().lock();
            // A reader that has gone away must not stop the verification.
            let _ = out.write_all(&bytes);
        }
    }
}

/// What the trailer says must be so.
fn compare_ending(log: &LogReader, replayer: &mut Replayer<KvmCpu>, hash: u64, outcome: &mut Findings) {
    let Some(trailer) = log.trailer() else { return };
    let machine = replayer.machine();
    let mut compare = |what: &str, recorded: String, replayed: String| {
        if recorded != replayed {
            outcome
                .differences
                .push(format!("{what}: recorded {recorded}, replayed {replayed}"));
        }
    };
    compare(
        "exits",
        trailer.ending.exits.to_string(),
        machine.at().exit.0.to_string(),
    );
    compare(
        "digest",
        format!("{:016x}", trailer.ending.digest.0),
        format!("{:016x}", machine.digest().0),
    );
    if let Some(recorded) = trailer.ending.memory_hash {
        compare("memory hash", format!("{recorded:016x}"), format!("{hash:016x}"));
    }
}

fn report(
    args: &ReplayArgs,
    log: &LogReader,
    replayer: &mut Replayer<KvmCpu>,
    hash: u64,
    outcome: &Findings,
    took: Duration,
) -> Result<ExitCode, Failure> {
    let exits = replayer.machine().at().exit.0;
    let (inputs, checkpoints) = replayer.totals();
    let diverged = outcome.divergence.is_some() || !outcome.differences.is_empty();
    let mut end = replayer
        .ended()
        .map_or_else(|| format!("log ends at exit {exits}"), describe_end);
    let mut code = ExitCode::Success;
    if let Some(damage) = &outcome.damage {
        code = ExitCode::DamagedLog;
        end = damage.to_string();
    }
    if diverged {
        code = ExitCode::Diverged;
        end = outcome
            .divergence
            .as_ref()
            .map_or_else(|| outcome.differences.join("; "), ToString::to_string);
    }
    if args.json {
        let at_exit = match &outcome.divergence {
            Some(divergence) => Some(divergence.at_exit),
            None => diverged.then_some(exits),
        };
        let object = serde_json::json!({
            "exits": exits,
            "inputs": inputs,
            "checkpoints": checkpoints,
            "log_bytes": log.trailer().map(|trailer| trailer.log_bytes),
            "memory_hash": format!("{hash:016x}"),
            "outcome": end.trim_end(),
            "diverged": diverged,
            "at_exit": at_exit,
            "divergence": outcome.divergence,
            "damaged": outcome.damage.as_ref().map(ToString::to_string),
            "seconds": took.as_secs_f64(),
        });
        answer(object)?;
    } else {
        tell(format_args!(
            "replayed {exits} exits, {inputs} inputs, {checkpoints} checkpoints in {:.2} s; {}; memory {hash:016x}",
            took.as_secs_f64(),
            end.trim_end()
        ));
    }
    Ok(code)
}
