//! Processes race for each generation and are killed at any moment: whatever the survivors are told, and whatever the
//! dead have left behind, each generation has exactly one winner, and it is the one that was told so.
//!
//! This program is its own children: with arguments it makes one claim and says how it ended.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use shared_disk::arbiter::{Arbiter, ClaimOutcome, SharedDirectory, TestAndSet};

const GENERATIONS: u64 = 60;
const RACERS: u128 = 5;
const ENVIRONMENT: &str = "FTVM_TEST_CLAIM";

fn main() {
    // What cargo-nextest asks every test program first.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("processes_race: test");
        }
        return;
    }
    match std::env::var(ENVIRONMENT) {
        Ok(claim) => child(&claim),
        Err(_) => parent(),
    }
}

fn child(claim: &str) {
    let fields: Vec<&str> = claim.split_whitespace().collect();
    let [generation, owner, me, root] = fields[..] else {
        panic!("four words expected, found '{claim}'")
    };
    let share = SharedDirectory::new(root, "guest").expect("a good name");
    let outcome = share.claim(generation.parse().unwrap(), owner.parse().unwrap(), me.parse().unwrap());
    println!(
        "{}",
        if matches!(outcome, Ok(ClaimOutcome::Won { .. })) {
            "won"
        } else {
            "lost"
        }
    );
}

fn spawn(root: &Path, generation: u64, owner: u128, me: u128) -> Child {
    let claim = format!("{generation} {owner} {me} {}", root.display());
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command
        .env(ENVIRONMENT, claim)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child")
}

/// A small generator: the delays before a kill need no quality, only variety that a run can repeat.
fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn parent() {
    let root = tempfile::tempdir().expect("a folder");
    let share = SharedDirectory::new(root.path(), "guest").expect("a good name");
    let mut owner = 1;
    assert_eq!(share.start(owner), Ok(1));
    let (mut seed, mut killed, mut told) = (1, 0, 0);
    for generation in 1..=GENERATIONS {
        let ids = (1..=RACERS).map(|racer| u128::from(generation) * 100 + racer);
        let mut children: Vec<_> = ids.map(|me| (me, spawn(root.path(), generation, owner, me))).collect();
        // The first three are killed within the few milliseconds that a claim takes.
        for (_, child) in &mut children[..3] {
            thread::sleep(Duration::from_micros(random(&mut seed) % 1500));
            child.kill().expect("a child can be killed, dead or alive");
        }
        let mut winners = Vec::new();
        for (me, child) in &mut children {
            let status = child.wait().expect("a child ends");
            let mut said = String::new();
            child
                .stdout
                .take()
                .expect("piped")
                .read_to_string(&mut said)
                .expect("text");
            killed += u32::from(!status.success());
            winners.extend((said == "won\n").then_some(*me));
        }
        assert!(winners.len() <= 1, "generation {generation}: {winners:?} all won");
        told += winners.len();
        // Each asks again, the dead too, as if its last breath had been a claim.
        let asked = children
            .iter()
            .map(|(me, _)| (*me, share.claim(generation, owner, *me)));
        let won = Ok(ClaimOutcome::Won {
            generation: generation + 1,
        });
        let owners: Vec<u128> = asked.filter(|(_, answer)| *answer == won).map(|(me, _)| me).collect();
        assert_eq!(owners.len(), 1, "generation {generation}: {owners:?} own it");
        assert!(
            winners.is_empty() || winners == owners,
            "{winners:?} was told, {owners:?} owns it"
        );
        owner = owners[0];
    }
    share.end(owner).expect("the owner ends");
    assert_eq!(share.start(7), Ok(GENERATIONS + 3));
    let left = std::fs::read_dir(root.path().join("guest")).expect("a folder").count();
    assert_eq!(left, 1, "litter of the dead");
    println!("{GENERATIONS} generations, {killed} processes killed, {told} winners lived to tell");
}
