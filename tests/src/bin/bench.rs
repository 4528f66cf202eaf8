//! What recording, the log and the output rule cost on this host; without a KVM, in a nested host.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tests::bench::{Figure, commit, exits, loads, log};
use tests::kvm;

/// Seconds for everything in a nested host.
const NESTED_SECONDS: &str = "1200";

/// Measure what fault tolerance costs on this host. Where KVM does not work, this runs in a nested host: its figures are
/// those of an emulated processor.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
    /// Runs of each kind, whose median is taken.
    #[arg(long, global = true, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    runs: u32,
    /// Exits of one run.
    #[arg(long, global = true, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1000..), value_name = "N")]
    exits: u64,
}

#[derive(Clone, PartialEq, Eq, Subcommand)]
enum What {
    /// Nanoseconds that recording adds to an exit.
    Exits,
    /// Bytes of log per timer tick and exit.
    Log,
    /// How much later an output leaves because of the backup, and a raw TCP ping-pong beside it.
    Commit,
    /// These three.
    All,
    /// Linux on a pair of two emulated hosts: its log, and its speed with a backup and without, under each of several
    /// loads. Takes minutes.
    Loads(LoadsArguments),
    #[command(hide = true)]
    Echo { request: usize, reply: usize },
}

#[derive(Args, Clone, PartialEq, Eq)]
struct LoadsArguments {
    /// Only these loads.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<loads::Load>,
    /// Seconds that each load runs, with a backup and without.
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,
    /// Detection time in ms: emulated hosts stand still for seconds now and then.
    #[arg(long, value_name = "MS", default_value_t = 6000)]
    detection: u64,
    /// Lease in ms.
    #[arg(long, value_name = "MS", default_value_t = 4000)]
    lease: u64,
    /// RAM of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 160)]
    memory: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.what {
        Some(What::Echo { request, reply }) => commit::echo(*request, *reply),
        Some(What::Loads(arguments)) => under_loads(arguments, cli.json),
        _ => match kvm::check_kvm() {
            Err(why) if !kvm::inside_nested_host() => nested(&why),
            Err(why) => Err(why),
            Ok(()) => bench(&cli),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// This process becomes a nested host that runs it; returns only if that fails.
fn nested(why: &str) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let host = own.with_file_name("nested-host");
    if !host.is_file() {
        return Err(format!(
            "{why}, and there is no nested host at {}: build it with `cargo build --release -p tests`",
            host.display()
        ));
    }
    eprintln!("bench: {why}; running in the nested host {} (slow)", host.display());
    let ftvm = tests::ftvm()?;
    let failed = Command::new(&host)
        .args(["run", "--timeout", NESTED_SECONDS, "--env", "FTVM_IN_NESTED_HOST=1"])
        .args(["--env", "FTVM_BIN=/run/bin/ftvm", "--file"])
        .arg(format!("{}:/run/bin/ftvm", ftvm.display()))
        .arg("--")
        .arg(&own)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(format!("cannot start {}: {failed}", host.display()))
}

/// The emulated hosts are started from here.
fn under_loads(arguments: &LoadsArguments, as_json: bool) -> Result<(), String> {
    let settings = loads::Settings {
        loads: match arguments.only.as_slice() {
            [] => loads::Load::value_variants().to_vec(),
            only => only.to_vec(),
        },
        time: Duration::from_secs(arguments.seconds),
        detection: Duration::from_millis(arguments.detection),
        lease: Duration::from_millis(arguments.lease),
        memory_mib: arguments.memory,
    };
    let measured = loads::measure(&settings, |what| eprintln!("bench: {what}"))?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if as_json {
        let object = serde_json::json!({
            "host": "two nested hosts: emulated processors with emulated SVM",
            "processors": processors,
            "seconds": arguments.seconds,
            "detection_ms": arguments.detection,
            "loads": loads::json(&measured),
        });
        println!("{object}");
    } else {
        println!(
            "on two nested hosts (emulated processors with emulated SVM), which share {processors} processors of this \
             machine; {} s a load",
            arguments.seconds
        );
        print!("{}", loads::table(&measured));
    }
    Ok(())
}

fn bench(cli: &Cli) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let runs = usize::try_from(cli.runs).map_err(|e| e.to_string())?;
    let wanted = |what| {
        let chosen = cli.what.as_ref();
        chosen.is_none_or(|chosen| *chosen == what || *chosen == What::All)
    };
    let mut parts: Vec<(&str, Vec<Figure>)> = Vec::new();
    let at: &Path = folder.path();
    if wanted(What::Exits) {
        parts.push(("exits", exits::measure(at, cli.exits, runs)?));
    }
    if wanted(What::Log) {
        parts.push(("log", log::measure(at)?));
    }
    if wanted(What::Commit) {
        parts.push(("commit", commit::measure(runs)?));
    }
    let host = match kvm::inside_nested_host() {
        true => "nested host: an emulated processor with an emulated SVM",
        false => "this machine's KVM",
    };
    if cli.json {
        println!("{}", json(host, &parts));
    } else {
        println!("on {host}");
        for figure in parts.iter().flat_map(|(_, figures)| figures) {
            println!("{:>14} {:<6} {}", shown(figure.value), figure.unit, figure.about);
        }
    }
    Ok(())
}

fn json(host: &str, parts: &[(&str, Vec<Figure>)]) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("host".to_owned(), host.into());
    for (part, figures) in parts {
        let figures = figures.iter().map(|figure| (figure.name.clone(), figure.value.into()));
        object.insert((*part).to_owned(), serde_json::Value::Object(figures.collect()));
    }
    object.into()
}

/// Three digits where they tell something.
fn shown(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
