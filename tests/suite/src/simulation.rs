//! The simulator's own tests: seeds pass, planted bugs are caught, and a seed means one history.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ftvm_sim::plants::Plant;
use ftvm_sim::{Options, Run, run};

/// Seeds that run here; `.ci/run` runs 10,000.
const SEEDS: u64 = 1_000;

/// Every planted bug must show within so many seeds.
const CAUGHT_WITHIN: u64 = 1_000;

/// Runs seeds on all CPUs until one fails; that run.
fn first_failure(seeds: u64, plant: Option<Plant>) -> Option<Run> {
    let next = AtomicU64::new(0);
    let found = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let run = run(seed, Options { plant, timeline: false });
                    if run.violation.is_some() {
                        next.store(seeds, Ordering::Relaxed);
                        *found.lock() = Some(run);
                    }
                }
            });
        }
    });
    found.into_inner()
}

#[test]
fn the_protocol_holds_in_every_seed() {
    let failure = first_failure(SEEDS, None);
    assert!(
        failure.is_none(),
        "{:?}; rerun with: cargo run --release --bin simulate -- --seed {}",
        failure.as_ref().map(|run| &run.violation),
        failure.as_ref().map_or(0, |run| run.seed)
    );
}

#[test]
fn every_planted_bug_is_caught() {
    for (plant, name, _) in Plant::ALL {
        let caught = first_failure(CAUGHT_WITHIN, Some(plant));
        let caught = caught.unwrap_or_else(|| panic!("{name} shows in none of {CAUGHT_WITHIN} seeds"));
        println!("{name}: seed {}: {:?}", caught.seed, caught.violation);
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..20 {
        let options = Options {
            plant: None,
            timeline: true,
        };
        let (once, again) = (run(seed, options), run(seed, options));
        assert!(once.timeline.len() > 5, "seed {seed} has no timeline");
        assert_eq!(once.timeline, again.timeline, "seed {seed}");
        assert_eq!((once.events, once.counts), (again.events, again.counts), "seed {seed}");
    }
}
