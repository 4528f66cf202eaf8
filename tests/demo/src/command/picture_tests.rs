use super::super::figures::tests::{backup, traffic};
use super::*;
use crate::timeline::{Style, render};

const MS: u64 = 1_000_000;
const KILLED: u64 = 5_000 * MS;

fn view(history: &AckHistory) -> ClientView<'_> {
    // The client began 2 s before the kill; the gap goes from 1 ms before the kill to 310 ms after it.
    ClientView {
        acked_at_kill: 1234,
        history,
        begun_ns: 3_000 * MS,
        gap_ns: (1_999 * MS, 2_310 * MS),
    }
}

fn draw(backup: &[Stamped], first_frame_ns: Option<u64>, now_ms: u64, settled_ms: u64) -> Timeline {
    let primary = [traffic(4_000, 1, 1)];
    let facts = Facts {
        killed_ns: KILLED,
        first_frame_ns,
        steady_ns: 0,
        primary: &primary,
        backup,
    };
    let history = AckHistory::default();
    timeline("kv", &facts, &view(&history), (now_ms * MS, settled_ms * MS), None)
}

#[test]
fn the_whole_failover_is_told_in_order() {
    let whole = draw(&backup(), Some(5_304 * MS), 7_000, 7_000);
    let told: Vec<(i64, Who)> = whole.events.iter().map(|event| (event.at_us, event.who)).collect();
    assert_eq!(
        told,
        [
            (0, Who::Client),
            (0, Who::Primary),
            (12_000, Who::Backup),
            (13_250, Who::Backup),
            (15_500, Who::Storage),
            (301_000, Who::Backup),
            (303_000, Who::Backup),
            (304_000, Who::Backup),
            (310_000, Who::Client),
        ]
    );
    assert!(whole.phases.iter().all(|phase| phase.state == PhaseState::Done));
    let reissue = whole
        .phases
        .iter()
        .find(|phase| phase.kind == PhaseKind::Reissue)
        .expect("there is one");
    assert_eq!(
        (reissue.from_us, reissue.to_us),
        (301_000, 303_000),
        "it begins when the last of the three is over"
    );
    assert_eq!(
        whole.acks.as_ref().and_then(|acks| acks.gap),
        Some(Window {
            from_us: -1_000,
            to_us: 310_000
        })
    );
    assert!(render(&whole, Style::Plain).contains("generation 1 → 2"));
}

#[test]
fn later_pictures_only_add_events_at_the_end() {
    let all = backup();
    let mut before = Vec::new();
    for now_ms in (5_000..6_000).step_by(3) {
        // Files are read up to 60 ms late, the hub is asked at once.
        let read: Vec<Stamped> = all
            .iter()
            .filter(|seen| seen.at_ns < (now_ms - 60) * MS)
            .cloned()
            .collect();
        let first_frame = (now_ms >= 5_304).then_some(5_304 * MS);
        let after = draw(&read, first_frame, now_ms, now_ms - 100).events;
        let known = before.len().min(after.len());
        assert_eq!(before[..known], after[..known], "at {now_ms}");
        before = after;
    }
    assert_eq!(before.len(), 9);
}

#[test]
fn phases_that_are_not_over_run_until_now() {
    let phases = draw(&backup()[..3], None, 5_100, 5_000).phases;
    let seen: Vec<_> = phases
        .iter()
        .map(|phase| (phase.kind, phase.to_us, phase.state))
        .collect();
    assert_eq!(
        seen,
        [
            (PhaseKind::Detection, 12_000, PhaseState::Done),
            (PhaseKind::Lease, 100_000, PhaseState::Running),
            (PhaseKind::TestAndSet, 100_000, PhaseState::Running),
            (PhaseKind::Drain, 100_000, PhaseState::Running),
        ]
    );
}

#[test]
fn a_gap_of_another_time_is_not_the_failovers() {
    let history = AckHistory::default();
    let seen = backup();
    let facts = Facts {
        killed_ns: KILLED,
        first_frame_ns: Some(5_304 * MS),
        steady_ns: 0,
        primary: &[],
        backup: &seen,
    };
    for gap_ns in [(0, 900 * MS), (2_304 * MS, 2_900 * MS)] {
        let view = ClientView {
            gap_ns,
            ..view(&history)
        };
        assert_eq!(gap_over_kill(&facts, &view), None, "{gap_ns:?}");
    }
    let until_first_frame = ClientView {
        gap_ns: (2_303 * MS, 2_304 * MS),
        ..view(&history)
    };
    assert!(gap_over_kill(&facts, &until_first_frame).is_some());
}

#[test]
fn the_chart_does_not_begin_before_the_client() {
    let history = AckHistory::default();
    let facts = Facts {
        killed_ns: KILLED,
        first_frame_ns: None,
        steady_ns: 0,
        primary: &[],
        backup: &[],
    };
    let view = ClientView {
        begun_ns: 4_990 * MS,
        ..view(&history)
    };
    let drawn = timeline("kv", &facts, &view, (6_000 * MS, 6_000 * MS), None);
    assert_eq!(drawn.window.from_us, -10_000);
}
