use proptest::prelude::*;

use super::*;

/// Detection time: 800 ms, so a step is due every 100 ms and a stall begins beyond 200 ms more.
const D: u64 = 800 * NS_PER_MS;
const STEP: u64 = D / 8;
const START: u64 = 5_000_000_000;

fn detector(role: PairRole) -> Detector {
    Detector::new(DetectorConfig { role, detection_ns: D }, START)
}

/// Steps in time from the last step to `until`, and returns the verdict there.
fn steps(detector: &mut Detector, until: u64) -> Verdict {
    while detector.last_step + STEP < until {
        let verdict = detector.step(detector.last_step + STEP);
        assert!(!matches!(verdict, Verdict::SelfStalled { .. }));
    }
    detector.step(until)
}

#[test]
fn a_primary_loses_its_backup_when_the_oldest_mark_is_unacked_for_more_than_d() {
    for (age, is_lost) in [(D - 1, false), (D, false), (D + 1, true)] {
        let mut detector = detector(PairRole::Primary);
        let sent = START + 12_345;
        detector.mark_sent(sent, 7);
        detector.mark_sent(sent + 1, 8);
        // Neither heartbeats nor other traffic help, nor the ack of an earlier mark.
        steps(&mut detector, sent + D - 30 * NS_PER_MS);
        detector.heartbeat(sent + D - 30 * NS_PER_MS);
        detector.evidence(sent + D - 10 * NS_PER_MS);
        detector.mark_acked(sent + D - 10 * NS_PER_MS, 6);
        let verdict = steps(&mut detector, sent + age);
        let reason = Reason::MarkUnacked {
            mark: 7,
            age_ms: 800,
            heartbeat_ms: Some(30),
        };
        assert_eq!(
            verdict,
            if is_lost {
                Verdict::Lost(reason)
            } else {
                Verdict::Healthy
            },
            "age {age}"
        );
    }
}

#[test]
fn an_ack_counts_for_all_earlier_marks_and_for_none_later() {
    let mut detector = detector(PairRole::Primary);
    for (after, mark) in [(0, 1), (10, 2), (20, 3)] {
        detector.mark_sent(START + after, mark);
    }
    detector.mark_acked(START + 30, 2);
    assert_eq!(steps(&mut detector, START + 20 + D), Verdict::Healthy);
    assert!(matches!(
        detector.step(START + 21 + D),
        Verdict::Lost(Reason::MarkUnacked { mark: 3, .. })
    ));
}

#[test]
fn a_primary_whose_marks_are_all_acked_waits_for_ever() {
    let mut detector = detector(PairRole::Primary);
    detector.mark_sent(START, 1);
    steps(&mut detector, START + D);
    detector.mark_acked(START + D, 1);
    assert_eq!(steps(&mut detector, START + 20 * D), Verdict::Healthy);
}

#[test]
fn a_backup_loses_its_primary_when_no_mark_came_for_more_than_d() {
    for (age, is_lost) in [(D - 1, false), (D, false), (D + 1, true)] {
        let mut detector = detector(PairRole::Backup);
        let last = START + 3 * STEP;
        steps(&mut detector, last);
        detector.evidence(last);
        steps(&mut detector, last + D - 20 * NS_PER_MS);
        detector.heartbeat(last + D - 10 * NS_PER_MS);
        let reason = Reason::NoMark {
            age_ms: 800,
            heartbeat_ms: Some(10),
        };
        let expected = if is_lost {
            Verdict::Lost(reason)
        } else {
            Verdict::Healthy
        };
        assert_eq!(steps(&mut detector, last + age), expected, "age {age}");
    }
}

#[test]
fn the_first_mark_has_d_to_arrive() {
    let mut detector = detector(PairRole::Backup);
    assert_eq!(steps(&mut detector, START + D), Verdict::Healthy);
    let reason = Reason::NoMark {
        age_ms: 800,
        heartbeat_ms: None,
    };
    assert_eq!(detector.step(START + D + 1), Verdict::Lost(reason));
}

#[test]
fn a_backup_that_is_behind_and_stands_still_for_more_than_d_is_lost() {
    let (executed, received) = ((10, 2), (10, 3));
    for (age, is_lost) in [(D - 1, false), (D, false), (D + 1, true)] {
        let mut detector = detector(PairRole::Primary);
        let stood = START + STEP;
        detector.progress(START + 1, (10, 1), received);
        detector.step(stood);
        detector.progress(stood, executed, received);
        steps(&mut detector, stood + D / 2);
        // Acks that repeat the position, or go back, are no progress; more to execute is none either.
        detector.progress(stood + D / 2, executed, (12, 0));
        detector.progress(stood + D / 2, (9, 9), (12, 0));
        let reason = Reason::NoProgress {
            age_ms: 800,
            executed,
            received: (12, 0),
        };
        let expected = if is_lost {
            Verdict::Lost(reason)
        } else {
            Verdict::Healthy
        };
        assert_eq!(steps(&mut detector, stood + age), expected, "age {age}");
    }
}

#[test]
fn a_reset_may_take_longer_and_only_the_reset() {
    for (executed, limit) in [((9, 1), D + RESET_NS), ((10, 2), D + RESET_NS), ((11, 0), D)] {
        let mut detector = detector(PairRole::Primary);
        detector.reset_at(10);
        detector.progress(START, executed, (12, 0));
        assert_eq!(steps(&mut detector, START + limit), Verdict::Healthy, "{executed:?}");
        assert!(
            matches!(
                detector.step(START + limit + 1),
                Verdict::Lost(Reason::NoProgress { .. })
            ),
            "{executed:?}"
        );
    }
}

#[test]
fn a_backup_that_has_caught_up_may_stand_still() {
    let mut detector = detector(PairRole::Primary);
    detector.progress(START, (10, 1), (10, 2));
    steps(&mut detector, START + D);
    detector.progress(START + D, (10, 2), (10, 2));
    assert_eq!(steps(&mut detector, START + 9 * D), Verdict::Healthy);
    detector.progress(START + 9 * D, (10, 2), (11, 0));
    assert_eq!(
        steps(&mut detector, START + 10 * D),
        Verdict::Healthy,
        "behind for D only"
    );
    assert!(matches!(
        detector.step(START + 10 * D + 1),
        Verdict::Lost(Reason::NoProgress { .. })
    ));
}

#[test]
fn each_side_judges_by_its_own_evidence_only() {
    let mut primary = detector(PairRole::Primary);
    assert_eq!(
        steps(&mut primary, START + 3 * D),
        Verdict::Healthy,
        "no traffic is no ground while nothing is unacked"
    );
    let mut backup = detector(PairRole::Backup);
    backup.mark_sent(START, 1);
    backup.progress(START, (0, 0), (1, 0));
    for round in 1..30 {
        backup.evidence(START + round * STEP);
        assert_eq!(backup.step(START + round * STEP), Verdict::Healthy);
    }
}

#[test]
fn a_late_step_gives_no_verdict_and_restarts_the_window() {
    let limit = STEP + D / 4;
    for (gap, is_stalled) in [(limit - 1, false), (limit, false), (limit + 1, true)] {
        for role in [PairRole::Primary, PairRole::Backup] {
            let mut detector = detector(role);
            detector.mark_sent(START, 1);
            detector.progress(START, (1, 0), (2, 0));
            steps(&mut detector, START + D);
            let woken = START + D + gap;
            let verdict = detector.step(woken);
            if !is_stalled {
                assert!(matches!(verdict, Verdict::Lost(_)), "{role:?}, gap {gap}: {verdict:?}");
                continue;
            }
            assert_eq!(verdict, Verdict::SelfStalled { late_ns: D / 4 + 1 });
            assert_eq!(detector.step(woken), Verdict::Healthy, "after draining");
            assert_eq!(steps(&mut detector, woken + D), Verdict::Healthy);
            assert!(matches!(detector.step(woken + D + 1), Verdict::Lost(_)));
        }
    }
}

#[test]
fn suspicion_is_final() {
    for role in [PairRole::Primary, PairRole::Backup] {
        let mut detector = detector(role);
        detector.mark_sent(START, 1);
        let lost = steps(&mut detector, START + D + 1);
        assert!(matches!(lost, Verdict::Lost(_)), "{lost:?}");
        detector.evidence(START + D + 2);
        detector.mark_acked(START + D + 2, 1);
        assert_eq!(detector.step(START + D + 2), lost);
        assert_eq!(detector.step(START + 100 * D), lost, "not even a stall takes it back");
    }
}

#[test]
fn marks_beyond_the_bound_delay_a_verdict_and_lose_nothing() {
    let mut detector = detector(PairRole::Primary);
    let count = u64::try_from(UNACKED_MARKS).unwrap() + 10;
    for mark in 1..=count {
        detector.mark_sent(START + mark, mark);
    }
    assert_eq!(detector.unacked.len(), UNACKED_MARKS);
    detector.mark_acked(START + count, count - 1);
    let left: Vec<u64> = detector.unacked.iter().map(|unacked| unacked.mark).collect();
    assert_eq!(left, [count], "the last mark is not forgotten");
    detector.mark_acked(START + count, count);
    assert!(detector.unacked.is_empty());
}

#[test]
fn reasons_read_well() {
    for (reason, text) in [
        (
            Reason::MarkUnacked {
                mark: 7,
                age_ms: 801,
                heartbeat_ms: Some(9),
            },
            "mark 7 is unacked for 801 ms; last heartbeat 9 ms ago",
        ),
        (
            Reason::NoMark {
                age_ms: 801,
                heartbeat_ms: None,
            },
            "no mark for 801 ms; no heartbeat ever",
        ),
        (
            Reason::NoProgress {
                age_ms: 801,
                executed: (3, 1),
                received: (4, 0),
            },
            "the backup executes nothing for 801 ms: it stands at exit 3+1 and has received up to 4+0",
        ),
    ] {
        assert_eq!(reason.to_string(), text);
    }
}

#[test]
#[should_panic(expected = "leaves no step")]
fn a_detection_time_without_steps_is_refused() {
    let _ = Detector::new(
        DetectorConfig {
            role: PairRole::Backup,
            detection_ns: 7,
        },
        0,
    );
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Heartbeat,
    Evidence,
    Sent(u64),
    Acked(u64),
    Progress(u64, u64),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Heartbeat),
        Just(Event::Evidence),
        (0..40u64).prop_map(Event::Sent),
        (0..40u64).prop_map(Event::Acked),
        (0..4u64, 0..4u64).prop_map(|(executed, received)| Event::Progress(executed, received)),
        Just(Event::Step),
        Just(Event::Step),
        Just(Event::Step),
    ]
}

/// What the rules say of the whole history, looked through anew at each step.
fn naive(role: PairRole, history: &[(u64, Event)], window: u64, now: u64) -> bool {
    let last = |wanted: fn(&Event) -> bool| {
        history
            .iter()
            .rev()
            .find(|(_, event)| wanted(event))
            .map_or(START, |(at, _)| *at)
    };
    let too_old = |since: u64| now - since.max(window) > D;
    if role == PairRole::Backup {
        return too_old(last(|event| matches!(event, Event::Evidence)));
    }
    let unacked = history.iter().enumerate().any(|(index, (at, event))| {
        let Event::Sent(mark) = event else { return false };
        let acked = history[index..]
            .iter()
            .any(|(_, later)| matches!(later, Event::Acked(ack) if ack >= mark));
        !acked && too_old(*at)
    });
    let mut behind: Option<(u64, u64)> = None;
    for (at, event) in history {
        let Event::Progress(executed, received) = event else {
            continue;
        };
        let stands = behind.filter(|(_, place)| executed <= place);
        behind = (executed < received).then(|| stands.unwrap_or((*at, *executed)));
    }
    unacked || behind.is_some_and(|(since, _)| too_old(since))
}

proptest! {
    #[test]
    fn verdicts_follow_the_rules(
        role in prop_oneof![Just(PairRole::Primary), Just(PairRole::Backup)],
        events in proptest::collection::vec((0..=(STEP + D / 4 + 2), event()), 1..120),
    ) {
        let mut detector = detector(role);
        let (mut now, mut last_step, mut window, mut lost, mut top) = (START, START, START, None, 0);
        let mut history: Vec<(u64, Event)> = Vec::new();
        for (pause, event) in events {
            // Short pauses mostly, so that most steps come in time.
            now += if pause % 4 == 0 { pause } else { pause / 16 };
            match event {
                Event::Heartbeat => detector.heartbeat(now),
                Event::Evidence => detector.evidence(now),
                Event::Sent(gap) => {
                    top += gap + 1;
                    detector.mark_sent(now, top);
                    history.push((now, Event::Sent(top)));
                    continue;
                }
                Event::Acked(back) => {
                    let mark = u64::saturating_sub(top, back);
                    detector.mark_acked(now, mark);
                    history.push((now, Event::Acked(mark)));
                    continue;
                }
                Event::Progress(executed, received) => detector.progress(now, (executed, 0), (received, 0)),
                Event::Step => {
                    let verdict = detector.step(now);
                    let stalled = now - last_step > STEP + D / 4;
                    last_step = now;
                    if let Some(lost) = lost {
                        prop_assert_eq!(verdict, lost);
                    } else if stalled {
                        window = now;
                        let is_stall = matches!(verdict, Verdict::SelfStalled { .. });
                        prop_assert!(is_stall);
                    } else if naive(role, &history, window, now) {
                        prop_assert!(matches!(verdict, Verdict::Lost(_)), "{verdict:?}");
                        lost = Some(verdict);
                    } else {
                        prop_assert_eq!(verdict, Verdict::Healthy);
                    }
                }
            }
            history.push((now, event));
        }
    }

    /// Heartbeats, however many, never change a verdict.
    #[test]
    fn heartbeats_prove_nothing(
        role in prop_oneof![Just(PairRole::Primary), Just(PairRole::Backup)],
        pauses in proptest::collection::vec(0..STEP + D / 3, 1..40),
    ) {
        let kind = |verdict: &Verdict| std::mem::discriminant(verdict);
        let (mut with, mut without) = (detector(role), detector(role));
        with.mark_sent(START, 1);
        without.mark_sent(START, 1);
        let mut now = START;
        for pause in pauses {
            now += pause;
            with.heartbeat(now);
            prop_assert_eq!(kind(&with.step(now)), kind(&without.step(now)));
        }
    }
}
