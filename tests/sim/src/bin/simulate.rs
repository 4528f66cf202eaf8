//! Runs the seeded simulation of the protocol: many seeds, one seed with its timeline, or a planted bug.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use ftvm_sim::plants::Plant;
use ftvm_sim::{Options, Run, run};

/// Runs the protocol's two roles in a simulated world, one history per seed.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds to run, from --first on.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run only this seed, and print its timeline.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Plant a bug; succeeds when it is caught.
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Name the bugs that can be planted.
    #[arg(long)]
    list_plants: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Threads; by default as many as there are CPUs.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list_plants {
        for (_, name, what) in Plant::ALL {
            println!("{name:<28} {what}");
        }
        return ExitCode::SUCCESS;
    }
    let plant = match args.plant.as_deref().map(|name| (name, Plant::named(name))) {
        Some((name, None)) => {
            eprintln!("simulate: no bug is called `{name}`; --list-plants names them");
            return ExitCode::from(2);
        }
        Some((_, plant)) => plant,
        None => None,
    };
    match args.seed {
        Some(seed) => one(seed, plant),
        None => many(&args, plant),
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
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
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
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
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

fn progress(next: &AtomicU64, first: u64, end: u64, began: Instant) {
    loop {
        let done = next.load(Ordering::Relaxed).min(end) - first;
        eprint!("\r{done} of {} seeds, {} s ", end - first, began.elapsed().as_secs());
        if done == end - first {
            return eprintln!();
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
