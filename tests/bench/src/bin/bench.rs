//! What recording, the log and the output rule cost on this host; without a KVM, in a nested host.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ftvm_bench::{Figure, clone, commit, exits, loads, log};
use ftvm_lab::ft_host::Terms;
use ftvm_lab::kvm;
use ftvm_lab::linux::Built;
use ftvm_lab::nested::cache;

/// Runs of each kind, and clones.
const RUNS: u32 = 7;
const CLONES: u32 = 3;
/// Seconds for everything in a nested host.
const NESTED_SECONDS: u64 = 1200;
/// Its memory.
const NESTED_MIB: u32 = 2048;
/// Where a Linux guest's files are in it.
const GUEST_INSIDE: &str = "/run/guest";
/// A file beside them.
const QEMU_FIGURES: &str = "qemu.json";

/// Measure what fault tolerance costs on this host. Where KVM does not work, this runs in a nested host: its figures are
/// those of an emulated processor.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
    /// Runs of each kind, whose median is taken; 7 unless given, of `clone` 3.
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    runs: Option<u32>,
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
    /// How long a busy guest stands still to get a backup, beside QEMU's live migration of an equal one. Takes minutes.
    Clone(CloneArguments),
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
    #[command(flatten)]
    terms: Terms,
}

#[derive(Args, Clone, PartialEq, Eq)]
struct CloneArguments {
    /// RAM of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(96..=2048))]
    memory: u32,
    /// Linux, whose programs write, instead of the built-in guest `dirty`.
    #[arg(long)]
    linux: bool,
    /// What the guest writes each second, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=64))]
    rate: u32,
    /// Detection time in ms.
    #[arg(long, value_name = "MS", default_value_t = 4000)]
    detection: u64,
    /// Lease in ms.
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    lease: u64,
    /// QEMU's figures and the guest's files are in this folder: what this command does inside the nested host.
    #[arg(long, hide = true, value_name = "DIR")]
    here: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.what {
        Some(What::Echo { request, reply }) => commit::echo(*request, *reply),
        Some(What::Loads(arguments)) => under_loads(arguments, cli.json),
        Some(What::Clone(arguments)) => cloned(&cli, arguments),
        _ => match kvm::check_kvm() {
            Err(why) if !kvm::inside_nested_host() => Err(kvm::become_nested(&why, &nested())),
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

fn nested() -> kvm::Again {
    kvm::Again {
        seconds: NESTED_SECONDS,
        memory_mib: NESTED_MIB,
        ..kvm::Again::default()
    }
}

/// The emulated hosts are started from here.
fn under_loads(arguments: &LoadsArguments, as_json: bool) -> Result<(), String> {
    let settings = loads::Settings {
        loads: match arguments.only.as_slice() {
            [] => loads::Load::value_variants().to_vec(),
            only => only.to_vec(),
        },
        time: Duration::from_secs(arguments.seconds),
        terms: arguments.terms,
    };
    let measured = loads::measure(&settings, |what| eprintln!("bench: {what}"))?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if as_json {
        let object = serde_json::json!({
            "host": "two nested hosts: emulated processors with emulated SVM",
            "processors": processors,
            "processors_of_a_host": arguments.terms.processors,
            "seconds": arguments.seconds,
            "detection_ms": arguments.terms.detection,
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

/// Where the guests run.
fn place() -> &'static str {
    match kvm::inside_nested_host() {
        true => "nested host: an emulated processor with an emulated SVM",
        false => "this machine's KVM",
    }
}

/// With a KVM, both on this machine. Without, QEMU here, by its emulator, and then ftvm in a nested host, which gets what it cannot
/// make: QEMU's figures, and Linux, which is built from packages.
fn cloned(cli: &Cli, arguments: &CloneArguments) -> Result<(), String> {
    let guest = match (arguments.linux, &arguments.here) {
        (false, _) => clone::Guest::Builtin,
        (true, None) => clone::Guest::Linux(clone::linux_guest()?),
        (true, Some(folder)) => clone::Guest::Linux(Built {
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd"),
            disk: None,
        }),
    };
    let without_kvm = match arguments.here {
        Some(_) => None,
        None => kvm::check_kvm().err(),
    };
    let settings = clone::Settings {
        guest,
        memory_mib: arguments.memory,
        rate_mib: arguments.rate,
        clones: cli.runs.unwrap_or(CLONES),
        accelerator: match (&without_kvm, &arguments.here) {
            (None, None) => clone::Accelerator::Kvm,
            _ => clone::Accelerator::Tcg,
        },
        detection: Duration::from_millis(arguments.detection),
        lease: Duration::from_millis(arguments.lease),
    };
    let mut each = |what: &str| eprintln!("bench: {what}");
    let qemu = match &arguments.here {
        Some(folder) => read(&folder.join(QEMU_FIGURES))?,
        None => clone::with_qemu(&settings, &mut each),
    };
    if let Some(why) = without_kvm {
        return Err(kvm::become_nested(&why, &cloned_nested(&settings, &qemu)?));
    }
    let mut kinds = vec![clone::with_ftvm(&settings, &mut each)?];
    kinds.extend(qemu);
    if cli.json {
        let mut object = clone::json(&kinds, settings.accelerator);
        object["host"] = place().into();
        object["memory_mib"] = arguments.memory.into();
        object["rate_mib"] = arguments.rate.into();
        println!("{object}");
    } else {
        println!(
            "on {}; {} MiB of RAM, of which the guest writes {} MiB/s if it can",
            place(),
            arguments.memory,
            arguments.rate
        );
        print!("{}", clone::table(&kinds, settings.accelerator));
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<clone::Kind>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read(file).map_err(|e| failed(&e))?;
    serde_json::from_slice(&text).map_err(|e| failed(&e))
}

/// A nested host with QEMU's figures and the guest's files.
fn cloned_nested(settings: &clone::Settings, qemu: &[clone::Kind]) -> Result<kvm::Again, String> {
    let figures = cache().join("bench").join(QEMU_FIGURES);
    let failed = |e: std::io::Error| format!("{}: {e}", figures.display());
    fs::create_dir_all(figures.parent().unwrap_or(&figures)).map_err(failed)?;
    fs::write(&figures, serde_json::to_vec(qemu).map_err(|e| e.to_string())?).map_err(failed)?;
    let mut files = Vec::new();
    let mut place = |file: &Path, name: &str| files.push((file.to_owned(), Path::new(GUEST_INSIDE).join(name)));
    place(&figures, QEMU_FIGURES);
    if let clone::Guest::Linux(built) = &settings.guest {
        place(&built.kernel, "vmlinuz");
        place(&built.initrd, "initrd");
    }
    Ok(kvm::Again {
        memory_mib: 2 * settings.memory_mib + NESTED_MIB,
        files,
        more: vec!["--here".into(), GUEST_INSIDE.into()],
        ..nested()
    })
}

fn bench(cli: &Cli) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let runs = usize::try_from(cli.runs.unwrap_or(RUNS)).map_err(|e| e.to_string())?;
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
    let host = place();
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
