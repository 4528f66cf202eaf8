//! What every arbiter must do, whatever storage is behind it: one suite for all (PROTOCOL 10, 11, 18).
//!
//! [`check`] is given a way to make an arbiter for a guest of any name, as each host would make its own. [`planted`] are
//! arbiters with one fault each: the suite must fail on every one of them.

use std::sync::{Arc, Barrier};
use std::thread;

use shared_disk::arbiter::{Arbiter, ArbiterError, ClaimOutcome, LifeState, NONCE_BYTES};

pub mod planted;

const A: u128 = 0xa;
const B: u128 = 0xb;
const C: u128 = 0xc;

type Claimed = Result<ClaimOutcome, ArbiterError>;

fn won(generation: u64) -> Claimed {
    Ok(ClaimOutcome::Won { generation })
}

fn lost(generation: u64, owner: u128) -> Claimed {
    Ok(ClaimOutcome::Lost { generation, owner })
}

/// Runs the suite; `generations` are raced for by several hosts at once.
///
/// # Panics
/// If the arbiter does something else than it must.
pub fn check(generations: u64, host: impl Fn(&str) -> Arc<dyn Arbiter> + Sync) {
    before_the_first_start(&*host("early"));
    a_succession([&*host("succession"), &*host("succession"), &*host("succession")]);
    an_end(&*host("ended"), &*host("ended"));
    an_owner_is_removed_by_hand(&*host("disowned"), &*host("disowned"));
    a_nonce(&*host("nonce"), &*host("nonce"));
    guests_are_apart(&*host("one"), &*host("other"));
    starts_race(&host);
    claims_race(generations, &host);
}

fn before_the_first_start(host: &dyn Arbiter) {
    for answer in [host.claim(1, A, B).map(drop), host.end(A), host.disown()] {
        let error = answer.expect_err("never started");
        assert!(error.is_retryable(), "it may be the wrong storage: {error}");
    }
    assert!(host.check_access().is_err());
    assert_eq!(host.last(), Ok(None));
    assert!(
        matches!(host.start(0), Err(ArbiterError::Broken { .. })),
        "nobody cannot own a guest"
    );
    assert_eq!(host.start(A), Ok(1));
    assert!(host.claim(1, A, 0).is_err(), "nobody cannot win");
}

fn a_succession([first, second, third]: [&dyn Arbiter; 3]) {
    assert_eq!(first.start(A), Ok(1));
    assert_eq!(first.start(A), Ok(1), "a repeated start");
    assert_eq!(second.check_access(), Ok(()));
    let taken = second.start(B).expect_err("a start while owned");
    let text = taken.to_string();
    assert!(
        matches!(taken, ArbiterError::Taken { .. }) && !taken.is_retryable(),
        "{text}"
    );
    assert!(
        text.contains(&format!("{A:032x}")) && text.contains("may still be running"),
        "{text}"
    );
    assert_eq!(second.claim(0, 0, B), lost(1, A), "state that is one too old");
    assert_eq!(second.claim(1, C, B), lost(1, A), "state of another life");
    assert_eq!(second.claim(2, A, B), lost(1, A), "state that is one too new");
    for _ in 0..3 {
        assert_eq!(second.claim(1, A, B), won(2), "once and repeated");
    }
    assert_eq!(first.claim(1, A, A), lost(2, B), "the old primary wakes up");
    assert_eq!(third.claim(2, B, C), won(3));
    assert_eq!(
        second.claim(1, A, B),
        lost(3, C),
        "a winner asks again after its own succession"
    );
    assert_eq!(first.claim(1, A, A), lost(3, C));
    assert_eq!(third.claim(3, C, C), won(4), "a primary goes on alone");
    assert_eq!(third.claim(3, C, C), won(4));
    assert!(
        matches!(first.end(A), Err(ArbiterError::Taken { .. })),
        "the end of a life that is another's"
    );
}

fn an_end(first: &dyn Arbiter, second: &dyn Arbiter) {
    assert_eq!(first.start(A), Ok(1));
    assert_eq!(second.claim(1, A, B), won(2));
    assert_eq!(second.end(B), Ok(()));
    assert_eq!(second.end(B), Ok(()), "repeated");
    let last = first
        .last()
        .expect("reads")
        .map(|last| (last.generation, last.owner, last.state));
    assert_eq!(last, Some((3, B, LifeState::Ended)));
    for (generation, owner, me) in [(1, A, A), (2, B, C), (2, B, B), (3, B, C), (0, 0, C)] {
        assert_eq!(
            first.claim(generation, owner, me),
            lost(3, B),
            "claim of {generation} after the end"
        );
    }
    assert_eq!(first.start(C), Ok(4));
    for (generation, owner, me) in [(1, A, A), (2, B, C), (3, B, A), (0, 0, A)] {
        assert_eq!(
            second.claim(generation, owner, me),
            lost(4, C),
            "claim of {generation} in the next life"
        );
    }
    assert!(matches!(second.end(B), Err(ArbiterError::Taken { .. })));
    assert_eq!(second.claim(4, C, A), won(5));
}

fn an_owner_is_removed_by_hand(first: &dyn Arbiter, second: &dyn Arbiter) {
    assert_eq!(first.start(A), Ok(1));
    assert_eq!(second.disown(), Ok(()));
    assert_eq!(second.disown(), Ok(()), "repeated");
    assert_eq!(first.claim(1, A, B), lost(2, A), "the dead stay dead");
    assert_eq!(second.start(B), Ok(3));
}

fn a_nonce(first: &dyn Arbiter, second: &dyn Arbiter) {
    assert_eq!(first.start(A), Ok(1));
    let absent = second.read_nonce("n").expect_err("not written").to_string();
    assert!(absent.contains("does not see"), "{absent}");
    assert_eq!(first.write_nonce("n", b"one"), Ok(()));
    assert_eq!(first.write_nonce("n", &[7; NONCE_BYTES]), Ok(()));
    assert_eq!(second.read_nonce("n"), Ok(vec![7; NONCE_BYTES]));
    assert!(first.write_nonce("n", &[7; NONCE_BYTES + 1]).is_err());
    assert!(second.read_nonce("m").is_err(), "another's name");
    assert_eq!(first.remove_nonce("m"), Ok(()));
    assert!(second.read_nonce("n").is_ok());
    for _ in 0..2 {
        assert_eq!(first.remove_nonce("n"), Ok(()));
    }
    assert!(second.read_nonce("n").is_err());
    for name in ["", ".x", "a/b", "a b", &"x".repeat(65)] {
        assert!(
            first.write_nonce(name, b"").is_err() && first.read_nonce(name).is_err(),
            "{name:?}"
        );
    }
    assert_eq!(first.claim(1, A, B), won(2), "nonces leave the register alone");
}

fn guests_are_apart(one: &dyn Arbiter, other: &dyn Arbiter) {
    assert_eq!(one.start(A), Ok(1));
    assert_eq!(other.start(B), Ok(1));
    assert_eq!(one.claim(1, A, C), won(2));
    assert_eq!(other.claim(1, A, C), lost(1, B));
    assert_eq!(other.end(B), Ok(()));
    assert_eq!(one.claim(2, C, A), won(3));
}

const RACERS: u128 = 4;

/// Runs `call` for each racer at once, each with an arbiter of its own.
fn race<T: Send>(
    host: &(impl Fn(&str) -> Arc<dyn Arbiter> + Sync),
    call: impl Fn(&dyn Arbiter, u128) -> T + Sync,
) -> Vec<T> {
    let barrier = Barrier::new(usize::try_from(RACERS).expect("a few"));
    thread::scope(|scope| {
        let run = |me: u128| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                let arbiter = host("raced");
                barrier.wait();
                call(&*arbiter, me)
            })
        };
        let racers: Vec<_> = (1..=RACERS).map(run).collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("no panic"))
            .collect()
    })
}

fn starts_race(host: &(impl Fn(&str) -> Arc<dyn Arbiter> + Sync)) {
    for round in 0..3 {
        let starts = race(host, |arbiter, me| arbiter.start(me));
        let winners: Vec<u128> = (1..=RACERS)
            .zip(&starts)
            .filter(|(_, start)| start.is_ok())
            .map(|(me, _)| me)
            .collect();
        assert_eq!(winners.len(), 1, "{starts:?}");
        assert!(starts.contains(&Ok(2 * round + 1)), "{starts:?}");
        assert_eq!(host("raced").end(winners[0]), Ok(()));
    }
}

fn claims_race(generations: u64, host: &(impl Fn(&str) -> Arc<dyn Arbiter> + Sync)) {
    let arbiter = host("raced");
    let mut owner = A;
    let first = arbiter.start(owner).expect("ended before");
    for generation in first..first + generations {
        let answers = race(host, |arbiter, me| arbiter.claim(generation, owner, me));
        let winners: Vec<u128> = (1..=RACERS)
            .zip(&answers)
            .filter(|(_, answer)| **answer == won(generation + 1))
            .map(|(me, _)| me)
            .collect();
        assert_eq!(winners.len(), 1, "generation {generation}: {answers:?}");
        owner = winners[0];
        let told = answers
            .iter()
            .filter(|answer| **answer == lost(generation + 1, owner))
            .count();
        assert_eq!(told + 1, answers.len(), "generation {generation}: {answers:?}");
    }
}
