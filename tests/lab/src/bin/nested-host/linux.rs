//! `soak` and `failover`: the Linux guest, built if it is not there yet.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ftvm_lab::ft_host::Terms;
use ftvm_lab::linux::lock::Set;
use ftvm_lab::linux::{self, Built};
use ftvm_lab::nested::{Host, Run, Streams, Turn, cache, take_turn};
use ftvm_lab::{failover, kvm, soak};
use serde_json::{Value, json};

/// Exit code when something was found wrong.
const WRONG: u8 = 1;
/// Size of the disk with Redis and nginx: these, and as much again.
const SERVICES_MIB: u32 = 256;
/// Size of the disk for workloads: it travels into the nested host.
const WORKLOADS_MIB: u32 = 64;
/// A run of the soak in an emulated host: boot, workload and replay.
const RUN_LIMIT: Duration = Duration::from_secs(900);
/// Memory of the emulated host of a soak: guest, replayed guest and logs are in it.
const SOAK_HOST_MIB: u32 = 3072;

#[derive(Args)]
pub struct SoakArguments {
    /// How many recordings, each replayed.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Chooses what is combined with what.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Only these workloads (guest-images/linux/workloads).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,
    /// Workloads with all their rounds, several times as long.
    #[arg(long)]
    full: bool,
    /// RAM of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// Leave the logs of runs that went wrong here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Run here, with the guest's files in this folder: what this command does inside the nested host.
    #[arg(long, hide = true, value_name = "DIR")]
    here: Option<PathBuf>,
}

#[derive(Args)]
pub struct FailoverArguments {
    /// How many hosts are killed, one after the other under the same guest; a fresh one becomes the survivor's backup.
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u8).range(1..=i64::from(failover::MAX_KILLS)))]
    kills: u8,
    /// Chooses the moments.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    terms: Terms,
    /// Print one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
}

pub fn soak(arguments: &SoakArguments) -> ExitCode {
    let result = match &arguments.here {
        Some(folder) => soak_here(arguments, &files_in(folder)),
        None => guest("workloads", WORKLOADS_MIB, Vec::new()).and_then(|built| match kvm::check_linux() {
            Ok(()) => soak_here(arguments, &built),
            Err(why) => {
                eprintln!("soak: in a nested host, since {why}");
                soak_nested(arguments, &built)
            }
        }),
    };
    conclude(result)
}

/// The guest's files as `guest-image build` names them.
fn files_in(folder: &std::path::Path) -> Built {
    Built {
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd"),
        disk: Some(folder.join("disk")),
    }
}

/// The guest, built in a folder of the cache.
fn guest(name: &str, disk_mib: u32, sets: Vec<Set>) -> Result<Built, String> {
    let settings = linux::Settings {
        out: cache().join("guest").join(name),
        run: None,
        disk_mib: Some(disk_mib),
        sets,
        locked: false,
    };
    eprintln!("building the Linux guest in {}", settings.out.display());
    linux::build(&settings).map_err(|e| e.to_string())
}

fn soak_here(arguments: &SoakArguments, built: &Built) -> Result<Value, String> {
    let workloads = if arguments.workload.is_empty() {
        linux::workloads().map_err(|e| e.to_string())?
    } else {
        arguments.workload.clone()
    };
    let temporary = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let folder = arguments.out.clone().unwrap_or_else(|| temporary.path().to_owned());
    let settings = soak::Settings {
        kernel: built.kernel.clone(),
        initrd: built.initrd.clone(),
        disk: built.disk.clone(),
        workloads,
        length: if arguments.full {
            soak::Length::Full
        } else {
            soak::Length::Short
        },
        runs: arguments.runs,
        seed: arguments.seed,
        memory_mib: arguments.memory,
        folder,
    };
    let begun = Instant::now();
    let reports = soak::run(&settings, |report| {
        let verdict = if report.wrong.is_empty() { "equal" } else { "WRONG" };
        let recorded = &report.figures["recorded"];
        eprintln!(
            "run {:>3} of {}: {:<10} {verdict}  {} exits, {} checkpoints, {} bytes of log, {} s + {} s",
            report.run + 1,
            settings.runs,
            report.workload,
            recorded["exits"],
            recorded["checkpoints"],
            recorded["log_bytes"],
            report.figures["record_s"],
            report.figures["replay_s"]
        );
        for wrong in &report.wrong {
            eprintln!("    {wrong}");
        }
    })?;
    let wrong = reports.iter().filter(|report| !report.wrong.is_empty()).count();
    Ok(json!({
        "runs": reports.len(),
        "wrong": wrong,
        "seconds": begun.elapsed().as_secs(),
        "seed": arguments.seed,
        "each": reports.iter().map(|report| &report.figures).collect::<Vec<_>>(),
    }))
}

/// This very command, in a nested host.
fn soak_nested(arguments: &SoakArguments, built: &Built) -> Result<Value, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut words: Vec<OsString> = vec![own.into(), "soak".into(), "--here".into(), "/run/guest".into()];
    let workloads = if arguments.workload.is_empty() {
        linux::workloads().map_err(|e| e.to_string())?
    } else {
        arguments.workload.clone()
    };
    for (flag, value) in [
        ("--runs", arguments.runs.to_string()),
        ("--seed", arguments.seed.to_string()),
        ("--memory", arguments.memory.to_string()),
        ("--workload", workloads.join(",")),
        ("--out", "/out".to_owned()),
    ] {
        words.extend([OsString::from(flag), value.into()]);
    }
    words.extend(arguments.full.then(|| "--full".into()));
    let mut run = Run::new(words);
    run.files = vec![(ftvm_lab::ftvm()?, "/run/bin/ftvm".into())];
    run.environment = vec![("FTVM_BIN".to_owned(), "/run/bin/ftvm".into())];
    for (name, file) in [
        ("vmlinuz", Some(&built.kernel)),
        ("initrd", Some(&built.initrd)),
        ("disk", built.disk.as_ref()),
    ] {
        let there = PathBuf::from(format!("/run/guest/{name}"));
        run.files.extend(file.map(|file| (file.clone(), there)));
    }
    run.memory_mib = SOAK_HOST_MIB;
    run.timeout = RUN_LIMIT * arguments.runs;
    run.out.clone_from(&arguments.out);
    let stdout = ftvm_lab::nested::Capture::new(1 << 24);
    let streams = Streams {
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(std::io::stderr()),
    };
    let _turn = take_turn(Turn::Shared).map_err(|e| e.to_string())?;
    let host = Host::locate().map_err(|e| e.to_string())?;
    host.start(&run, streams)
        .and_then(ftvm_lab::nested::Running::wait)
        .map_err(|e| e.to_string())?;
    let text = stdout.text();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| format!("the soak in the nested host said {last:?}: {e}"))
}

pub fn failover(arguments: &FailoverArguments) -> ExitCode {
    let sets = vec![Set::Redis, Set::Nginx];
    let result = guest("services", SERVICES_MIB, sets).and_then(|built| {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let settings = failover::Settings {
            kernel: built.kernel,
            initrd: built.initrd,
            disk: built.disk.ok_or("the guest was built without a disk")?,
            kills: arguments.kills,
            seed: arguments.seed,
            terms: arguments.terms,
            folder: folder.path().to_owned(),
        };
        let _turn = take_turn(Turn::Alone).map_err(|e| e.to_string())?;
        failover::run(&settings, &mut |line| eprintln!("{line}"))
    });
    conclude(result)
}

/// Prints the object; the exit code says whether something in it is wrong.
fn conclude(result: Result<Value, String>) -> ExitCode {
    match result {
        Ok(object) => {
            let wrong = object["wrong"] != 0;
            if let Err(error) = writeln!(std::io::stdout(), "{object}") {
                eprintln!("nested-host: cannot write the result: {error}");
                return ExitCode::from(WRONG);
            }
            ExitCode::from(if wrong { WRONG } else { 0 })
        }
        Err(error) => {
            eprintln!("nested-host: {error}");
            ExitCode::from(super::BROKEN)
        }
    }
}
