//! Random faults on a pool of three under load, and whether the guest's clients could tell; without a KVM, in a nested host.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ftvm_chaos::faults::Kind;
use ftvm_chaos::{Report, Settings};
use ftvm_lab::{kvm, time_factor};

/// Exit code when something was found wrong, and when the run could not be made.
const WRONG: u8 = 1;
const BROKEN: u8 = 125;
/// In a nested host: for the beginning and the end, and for each fault at most.
const NESTED_SECONDS: (u64, u64) = (600, 60);
/// Where the nested host leaves what is kept.
const OUT: &str = "/out";

/// Break things at random under a guest on three hosts: processes, links, the shared directory. Three Redis clients keep a
/// record of all they ask and are told; no acknowledged write may be lost, no two sides may be live, and the guest must
/// soon be protected again.
#[derive(Parser)]
struct Cli {
    /// How many faults, one after the other.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    faults: u32,
    /// Chooses them. The same seed is the same faults, not the same moments.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Only these kinds.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Print one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Detection time in ms; 500, and 2000 in a nested host, whose processes stand still at times.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(20..=60_000))]
    detection: Option<u64>,
    /// Lease in ms, at most the detection time; 300, and 1000 in a nested host.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    lease: Option<u64>,
    /// Keep reports and messages of all processes here, also of a run that went well.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where they are kept otherwise, of a run that went wrong.
    #[arg(long, hide = true, value_name = "DIR")]
    keep_wrong: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(rand::random);
    let keep = [&cli.keep, &cli.keep_wrong].into_iter().flatten().next().cloned();
    let keep = keep.unwrap_or_else(|| std::env::temp_dir().join(format!("ftvm-chaos-{seed}")));
    if let Err(why) = kvm::check_kvm()
        && !kvm::inside_nested_host()
    {
        let failed = kvm::become_nested(&why, &nested(&cli, seed, &keep));
        eprintln!("chaos: {failed}");
        return ExitCode::from(BROKEN);
    }
    match run(&cli, seed, &keep) {
        Ok(report) => {
            match cli.json {
                true => println!("{}", report.json()),
                false => print!("{}", report.table()),
            }
            for wrong in &report.wrong {
                eprintln!("chaos: WRONG: {wrong}");
            }
            match report.wrong.is_empty() {
                true => ExitCode::SUCCESS,
                false => {
                    eprintln!(
                        "chaos: seed {seed}; reports and messages are kept in {}",
                        keep.display()
                    );
                    ExitCode::from(WRONG)
                }
            }
        }
        Err(error) => {
            eprintln!("chaos: seed {seed}: {error}");
            ExitCode::from(BROKEN)
        }
    }
}

fn nested(cli: &Cli, seed: u64, keep: &Path) -> kvm::Again {
    let seconds = NESTED_SECONDS.0 + NESTED_SECONDS.1 * u64::from(cli.faults);
    kvm::Again {
        seconds,
        memory_mib: 3072,
        out: Some(keep.to_owned()),
        // The seed may have been chosen here, and the folder is another there.
        more: [
            "--seed",
            &seed.to_string(),
            if cli.keep.is_some() { "--keep" } else { "--keep-wrong" },
            OUT,
        ]
        .map(Into::into)
        .to_vec(),
        without: vec!["--seed", "--keep"],
        ..kvm::Again::default()
    }
}

fn run(cli: &Cli, seed: u64, keep: &Path) -> Result<Report, String> {
    let (detection, lease) = if time_factor() > 1 { (2000, 1000) } else { (500, 300) };
    let (detection, lease) = (cli.detection.unwrap_or(detection), cli.lease.unwrap_or(lease));
    if lease > detection {
        return Err(format!(
            "--lease {lease} must not be longer than --detection {detection}"
        ));
    }
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let settings = Settings {
        faults: cli.faults,
        seed,
        kinds: match cli.only.as_slice() {
            [] => Kind::PACK.to_vec(),
            only => only.to_vec(),
        },
        detection: Duration::from_millis(detection),
        lease: Duration::from_millis(lease),
        folder: folder.path().to_owned(),
    };
    eprintln!("chaos: seed {seed}, detection {detection} ms, lease {lease} ms");
    let report = ftvm_chaos::run(&settings, &mut |line| eprintln!("{line}"))?;
    if cli.keep.is_some() || !report.wrong.is_empty() {
        kept(folder.path(), keep).map_err(|e| format!("{}: {e}", keep.display()))?;
    }
    Ok(report)
}

/// Copies what tells something: reports, messages, the console.
fn kept(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let tells = path.extension().is_some_and(|kind| kind == "events" || kind == "err");
        if let Some(name) = path.file_name()
            && (tells || name == "console")
        {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
