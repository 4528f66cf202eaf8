use super::*;
use crate::client::Gap;

const MS: u64 = 1_000_000;

/// The backup's events of a recorded failover; its primary was killed at 5000 ms.
const BACKUP: &str = r#"{"at_ns":1000000000,"event":"following","generation":1}
{"at_ns":1500000000,"event":"state","protection":"protected","why":"following from exit 1204"}
{"at_ns":5012000000,"event":"suspected","reason":"connection to the primary: closed"}
{"at_ns":5012000100,"event":"claim-asked","generation":2}
{"at_ns":5015500000,"event":"claim-won","generation":2,"took_ns":3500000}
{"at_ns":5013250000,"event":"drained","took_ns":1250000}
{"at_ns":5301000000,"event":"lease-over","waited_ns":289000000}
{"at_ns":5303000000,"event":"went-live","generation":2,"reissued":1,"reemitted":2}"#;

pub(in super::super) fn backup() -> Vec<Stamped> {
    BACKUP
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect()
}

pub(in super::super) fn traffic(at_ms: u64, log_bytes: u64, exits: u64) -> Stamped {
    Stamped {
        at_ns: at_ms * MS,
        event: Event::Traffic {
            log_bytes,
            exits,
            frames: 0,
            checkpoints: 0,
            checkpoint_bytes: 0,
            lag_ns: 0,
            idle_permille: 0,
        },
    }
}

fn tally() -> Tally {
    let longest_gap = Gap {
        from_ns: 7 * MS,
        to_ns: 320 * MS,
    };
    Tally {
        acked_writes: 5000,
        longest_gap,
        ..Tally::default()
    }
}

fn figures() -> RunFigures {
    let primary = [
        traffic(1_900, 0, 0),
        traffic(2_000, 1_000, 50),
        traffic(3_000, 3_000, 99),
        traffic(4_000, 101_000, 8_050),
    ];
    let facts = Facts {
        killed_ns: 5_000 * MS,
        first_frame_ns: Some(5_304 * MS),
        steady_ns: 2_000 * MS,
        primary: &primary,
        backup: &backup(),
    };
    RunFigures::of(&facts, &tally(), true)
}

#[test]
fn a_recorded_failover_comes_to_its_figures() {
    let expected = RunFigures {
        acked_writes: 5000,
        lost_writes: 0,
        unverified_writes: 0,
        connection_survived: true,
        blackout_ms: Some(304.0),
        client_gap_ms: 313.0,
        detection_ms: Some(12.0),
        lease_ms: Some(289.0),
        tas_ms: Some(3.5),
        drain_ms: Some(1.25),
        log_bytes_per_s: Some(50_000.0),
        exits_per_s: Some(4_000.0),
    };
    assert_eq!(figures(), expected);
    assert!(expected.is_good());
}

#[test]
fn what_did_not_happen_has_no_figure() {
    let primary = [traffic(2_000, 1_000, 50), traffic(6_000, 101_000, 8_050)];
    let facts = Facts {
        killed_ns: 5_000 * MS,
        first_frame_ns: None,
        steady_ns: 0,
        primary: &primary,
        backup: &[],
    };
    let figures = RunFigures::of(&facts, &tally(), true);
    assert_eq!(
        (figures.blackout_ms, figures.detection_ms, figures.lease_ms),
        (None, None, None)
    );
    assert_eq!(
        (figures.tas_ms, figures.drain_ms, figures.log_bytes_per_s),
        (None, None, None),
        "one report is no rate"
    );
    assert!(!figures.is_good());
}

#[test]
fn any_broken_promise_is_bad() {
    let broken: [fn(&mut RunFigures); 5] = [
        |figures| figures.connection_survived = false,
        |figures| figures.lost_writes = 1,
        |figures| figures.unverified_writes = 1,
        |figures| figures.acked_writes = 0,
        |figures| figures.blackout_ms = None,
    ];
    for breaks in broken {
        let mut figures = figures();
        breaks(&mut figures);
        assert!(!figures.is_good(), "{figures:?}");
    }
}

#[test]
fn runs_are_summed_up() {
    let run = |blackout, lost, rate| RunFigures {
        blackout_ms: Some(blackout),
        lost_writes: lost,
        exits_per_s: Some(rate),
        ..figures()
    };
    let mut tried = Tried {
        seed: 9,
        runs: vec![run(5.0, 0, 10.0), run(7.0, 2, 90.0), run(1.0, 0, 30.0)],
        parted: 0,
        error: None,
    };
    let summary = Summary::of(&tried, 500, 300);
    assert_eq!(
        (summary.kills, summary.all.lost_writes, summary.all.acked_writes),
        (3, 2, 15_000)
    );
    assert_eq!(
        (summary.all.blackout_ms, summary.medians.blackout_ms),
        (Some(7.0), Some(5.0))
    );
    assert_eq!(
        summary.all.exits_per_s,
        Some(30.0),
        "a rate's maximum says little: the median"
    );
    assert!(summary.all.connection_survived);
    tried.runs[1].connection_survived = false;
    assert!(!Summary::of(&tried, 500, 300).all.connection_survived, "all must");
    let none = Summary::of(
        &Tried {
            seed: 9,
            runs: vec![],
            parted: 0,
            error: Some("no".into()),
        },
        500,
        300,
    );
    assert!(!none.all.connection_survived, "nothing happened");
}

#[test]
fn the_json_object_has_the_promised_keys_on_top() {
    let summary = Summary::of(
        &Tried {
            seed: 9,
            runs: vec![figures()],
            parted: 0,
            error: None,
        },
        500,
        300,
    );
    let json = serde_json::to_value(summary).expect("encodes");
    for key in [
        "kills",
        "acked_writes",
        "lost_writes",
        "connection_survived",
        "blackout_ms",
        "client_gap_ms",
        "detection_ms",
        "lease_ms",
        "tas_ms",
        "drain_ms",
        "log_bytes_per_s",
        "exits_per_s",
    ] {
        assert!(!json[key].is_null(), "{key} in {json}");
    }
    assert_eq!(json["runs"][0]["blackout_ms"], 304.0);
    assert!(json.get("error").is_none());
}

#[test]
fn medians_are_in_the_middle() {
    assert_eq!(median(vec![]), None);
    assert_eq!(median(vec![3.0]), Some(3.0));
    assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
}
