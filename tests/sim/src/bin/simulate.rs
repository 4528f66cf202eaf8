//! Runs the seeded simulation of the protocol: many seeds, one seed with its timeline, or a planted bug.

#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ftvm_sim::plants::Plant;
use ftvm_sim::{Options, Run, run};

const HELP: &str = "\
Runs the protocol's two roles in a simulated world, one history per seed

Usage: simulate [OPTIONS]

Options:
  --seeds N        How many seeds to run, from --first on [default: 10000]
  --first SEED     The first seed [default: 0]
  --seed SEED      Run only this seed, and print its timeline
  --plant NAME     Plant a bug; succeeds when it is caught
  --list-plants    Name the bugs that can be planted
  --json           One JSON object instead of text
  --threads N      Threads [default: as many as there are CPUs]
  -h, --help       Print this";

/// How often progress is told where nobody watches a terminal.
const PROGRESS_IN_A_FILE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Args {
    seeds: u64,
    first: u64,
    seed: Option<u64>,
    plant: Option<Plant>,
    json: bool,
    threads: Option<usize>,
}

/// What the command line asks for; nothing if that has been answered already.
fn parse() -> Result<Option<Args>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut args = Args {
        seeds: 10_000,
        first: 0,
        seed: None,
        plant: None,
        json: false,
        threads: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("seeds") => args.seeds = parser.value()?.parse()?,
            Long("first") => args.first = parser.value()?.parse()?,
            Long("seed") => args.seed = Some(parser.value()?.parse()?),
            Long("plant") => {
                let name = parser.value()?.string()?;
                let unknown = || format!("no bug is called `{name}`; --list-plants names them");
                args.plant = Some(Plant::named(&name).ok_or_else(unknown)?);
            }
            Long("json") => args.json = true,
            Long("threads") => args.threads = Some(parser.value()?.parse()?),
            Long("list-plants") => {
                for (_, name, what) in Plant::ALL {
                    println!("{name:<28} {what}");
                }
                return Ok(None);
            }
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(args))
}

fn main() -> ExitCode {
    match parse() {
        Ok(Some(args)) => match args.seed {
            Some(seed) => one(seed, args.plant),
            None => many(&args, args.plant),
        },
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error}; see --help");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, plant: Option<Plant>) -> ExitCode {
    let run = run(seed, Options { plant, timeline: true });
    for line in &run.timeline {
        println!("{line}");
    }
    println!("{} events, {:?}", run.events, run.counts);
    match &run.violation {
        Some(violation) => {
            println!(
                "seed {seed} fails at {:.3} ms: {}: {}",
                ms(violation.at),
                violation.rule,
                violation.what
            );
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed} passes");
            ExitCode::SUCCESS
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "for display")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What many runs came to.
#[derive(Debug, Default)]
struct Sum {
    failures: Vec<Run>,
    counts: BTreeMap<&'static str, u64>,
    events: u64,
    runs: u64,
}

fn many(args: &Args, plant: Option<Plant>) -> ExitCode {
    let began = Instant::now();
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(args.first);
    let end = args.first + args.seeds;
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let run = run(seed, Options { plant, timeline: false });
                    let mut sum = sum.lock();
                    let caught = run.violation.is_some();
                    sum.take(run, args.json || plant.is_some());
                    if caught && plant.is_some() {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            });
        }
        if !args.json {
            scope.spawn(|| progress(&next, args.first, end, began));
        }
    });
    let sum = sum.into_inner();
    finish(args, plant, &sum, began.elapsed())
}

impl Sum {
    fn take(&mut self, run: Run, silent: bool) {
        self.runs += 1;
        self.events += run.events;
        for (name, count) in &run.counts {
            *self.counts.entry(name).or_default() += count;
        }
        if let Some(violation) = &run.violation {
            if !silent {
                println!(
                    "\rseed {} fails at {:.3} ms: {}: {}",
                    run.seed,
                    ms(violation.at),
                    violation.rule,
                    violation.what
                );
            }
            self.failures.push(run);
        }
    }
}

/// Tells how far it is: on a terminal twice a second in one line, elsewhere a line now and then.
fn progress(next: &AtomicU64, first: u64, end: u64, began: Instant) {
    let watched = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    loop {
        let done = next.load(Ordering::Relaxed).min(end) - first;
        let line = format!("{done} of {} seeds, {} s", end - first, began.elapsed().as_secs());
        if done == end - first {
            return if watched {
                eprintln!("\r{line} ")
            };
        }
        if watched {
            eprint!("\r{line} ");
        } else if told.elapsed() >= PROGRESS_IN_A_FILE {
            eprintln!("{line}");
            told = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn finish(args: &Args, plant: Option<Plant>, sum: &Sum, took: Duration) -> ExitCode {
    let failed: Vec<u64> = sum.failures.iter().map(|run| run.seed).collect();
    if args.json {
        let failures: Vec<_> = sum
            .failures
            .iter()
            .filter_map(|run| {
                let violation = run.violation.as_ref()?;
                Some(serde_json::json!({
                    "seed": run.seed, "at_ns": violation.at, "rule": violation.rule, "what": violation.what,
                }))
            })
            .collect();
        let report = serde_json::json!({
            "seeds": sum.runs, "failures": failures, "counts": sum.counts, "events": sum.events,
            "seconds": took.as_secs_f64(), "plant": plant.map(Plant::name),
        });
        println!("{report}");
    } else {
        println!(
            "{} seeds, {} failures, {:.1} s, {:?}",
            sum.runs,
            failed.len(),
            took.as_secs_f64(),
            sum.counts
        );
        if let Some(run) = sum.failures.first() {
            let planted = plant
                .map(|plant| format!(" --plant {}", plant.name()))
                .unwrap_or_default();
            println!(
                "rerun with: cargo run --release --bin simulate -- --seed {}{planted}",
                run.seed
            );
            if let (Some(plant), Some(violation)) = (plant, &run.violation) {
                println!(
                    "{} is caught after {} seeds: {}: {}",
                    plant.name(),
                    sum.runs,
                    violation.rule,
                    violation.what
                );
            }
        }
    }
    if failed.is_empty() == plant.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
