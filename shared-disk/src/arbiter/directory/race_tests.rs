//! Many claimants at once, and any sequence of calls against a plain variable.

use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;

use super::super::LifeState;
use super::tests::{contents, lost, share, won};
use super::*;

/// Runs `call` for each id at once and returns the answers.
fn race<T: Send>(ids: &[u128], call: impl Fn(u128) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(ids.len());
    thread::scope(|scope| {
        let run = |id: u128| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                barrier.wait();
                call(id)
            })
        };
        let racers: Vec<_> = ids.iter().map(|id| run(*id)).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    })
}

#[test]
fn exactly_one_of_many_threads_wins_each_of_200_generations() {
    let (_root, share) = share();
    let ids: Vec<u128> = (1..=8).collect();
    let starts = race(&ids, |me| share.start(me));
    assert_eq!(starts.iter().filter(|start| start.is_ok()).count(), 1);
    assert!(
        starts
            .iter()
            .all(|start| matches!(start, Ok(1) | Err(ArbiterError::Taken { .. }))),
        "{starts:?}"
    );
    let mut owner = share.newest().unwrap().unwrap().owner;
    for generation in 1..=200 {
        let answers = race(&ids, |me| share.claim(generation, owner, me).unwrap());
        let winners: Vec<_> = answers
            .iter()
            .zip(&ids)
            .filter(|(answer, _)| {
                **answer
                    == ClaimOutcome::Won {
                        generation: generation + 1,
                    }
            })
            .collect();
        assert_eq!(winners.len(), 1, "generation {generation}: {answers:?}");
        owner = *winners[0].1;
        let told = ClaimOutcome::Lost {
            generation: generation + 1,
            owner,
        };
        assert_eq!(answers.iter().filter(|answer| **answer == told).count(), ids.len() - 1);
    }
    assert_eq!(contents(&share).1, 0);
}

#[test]
fn racing_starts_after_an_end_have_one_winner() {
    let (_root, share) = share();
    let ids: Vec<u128> = (1..=4).collect();
    for round in 0..50 {
        let starts = race(&ids, |me| share.start(me));
        let winners: Vec<u128> = ids
            .iter()
            .zip(&starts)
            .filter(|(_, start)| start.is_ok())
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(winners.len(), 1, "{starts:?}");
        assert!(starts.contains(&Ok(2 * round + 1)), "{starts:?}");
        share.end(winners[0]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of starts, claims (repeated and stale ones too) and ends, against a plain variable.
    #[test]
    fn the_directory_is_a_register(calls in proptest::collection::vec((0u8..4, 0u64..6, 0u128..4, 1u128..4), 1..40)) {
        let (_root, share) = share();
        let mut register = (0, 0, LifeState::Ended);
        fs::create_dir(share.path()).unwrap();
        for (call, back, owner, me) in calls {
            match call {
                0 => {
                    let expected = match register {
                        (generation, _, LifeState::Ended) => { register = (generation + 1, me, LifeState::Running); Some(generation + 1) }
                        (generation, owner, LifeState::Running) if owner == me => Some(generation),
                        _ => None,
                    };
                    prop_assert_eq!(share.start(me).ok(), expected);
                }
                1 => {
                    let allowed = register.1 == me && register.0 > 0;
                    if allowed && register.2 == LifeState::Running {
                        register = (register.0 + 1, me, LifeState::Ended);
                    }
                    prop_assert_eq!(share.end(me).is_ok(), allowed);
                }
                _ => {
                    // Mostly plausible arguments: the newest generations and, in every other call, the true owner.
                    let generation = u64::saturating_sub(register.0 + 1, back);
                    let owner = if call == 2 { register.1 } else { owner };
                    if register == (generation, owner, LifeState::Running) {
                        register = (generation + 1, me, LifeState::Running);
                    }
                    let is_mine = register == (generation + 1, me, LifeState::Running);
                    let expected = if is_mine { won(generation + 1) } else { lost(register.0, register.1) };
                    prop_assert_eq!(share.claim(generation, owner, me), expected);
                }
            }
        }
    }
}
