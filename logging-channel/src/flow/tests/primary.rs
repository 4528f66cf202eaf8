use super::super::acks::MAX_TRACKED_FRAMES;
use super::*;

#[test]
fn only_an_acked_mark_covers() {
    let mut tracker = tracker();
    tracker.sent(1, 50, &[tick(5)], 100).unwrap();
    tracker.acked(&ack(1, position(5, 1), position(0, 0), 0), 150).unwrap();
    assert!(
        !tracker.covers(position(5, 1)),
        "inputs prove nothing: another may follow at the same exit"
    );
    assert!(!tracker.covers(position(0, 0)));
    tracker.sent(2, 60, &[tick(6), mark(8, 0, 200)], 200).unwrap();
    assert!(!tracker.covers(position(5, 1)), "sent is not acked");
    tracker
        .acked(&ack(2, position(8, 0), position(0, 0), 200), 250)
        .unwrap();
    assert!(tracker.covers(position(8, 0)));
    assert!(!tracker.covers(position(8, 1)));
    assert_eq!((tracker.all_acked(), tracker.unacked_bytes()), (true, 0));
}

#[test]
fn an_ack_of_a_mark_and_of_inputs_after_it_covers_the_mark_only() {
    let mut tracker = tracker();
    tracker.sent(1, 50, &[mark(5, 0, 100), tick(5)], 100).unwrap();
    tracker.sent(2, 50, &[tick(6)], 110).unwrap();
    tracker
        .acked(&ack(2, position(6, 1), position(0, 0), 100), 150)
        .unwrap();
    assert_eq!(tracker.covered(), Some(position(5, 0)));
    assert!(!tracker.covers(position(5, 1)));
}

#[test]
fn an_end_is_acked_as_a_mark_is() {
    let mut tracker = tracker();
    tracker.sent(1, 10, &[end(5)], 100).unwrap();
    assert!(!tracker.all_acked());
    assert_eq!(tracker.oldest_unacked_age(150), 50);
    tracker.acked(&ack(1, position(5, 0), position(0, 0), 0), 150).unwrap();
    assert!(tracker.covers(position(5, 0)) && tracker.all_acked());
}

#[test]
fn impossible_acks_are_refused_and_change_nothing() {
    let mut tracker = tracker();
    tracker.sent(1, 10, &[mark(5, 0, 100)], 100).unwrap();
    tracker.sent(2, 10, &[mark(6, 0, 200)], 200).unwrap();
    tracker.sent(3, 10, &[mark(7, 0, 300)], 300).unwrap();
    let good = ack(2, position(6, 0), position(5, 0), 200);
    tracker.acked(&good, 250).unwrap();
    let other = Ack {
        incarnation: Incarnation(8),
        ..good
    };
    type Expected = fn(&AckError) -> bool;
    let wrong: [(Ack, Expected); 9] = [
        (other, |error| matches!(error, AckError::Incarnation { .. })),
        (Ack { frame: 4, ..good }, |error| {
            matches!(error, AckError::Future { sent: 3, found: 4, .. })
        }),
        (Ack { frame: 1, ..good }, |error| {
            matches!(
                error,
                AckError::Backwards {
                    before: 2,
                    found: 1,
                    ..
                }
            )
        }),
        (
            Ack {
                received: position(7, 1),
                ..good
            },
            |error| matches!(error, AckError::Future { .. }),
        ),
        (
            Ack {
                received: position(5, 9),
                ..good
            },
            |error| matches!(error, AckError::Backwards { .. }),
        ),
        (
            Ack {
                executed: position(6, 1),
                ..good
            },
            |error| matches!(error, AckError::ExecutedBeyondReceived { .. }),
        ),
        (
            Ack {
                executed: position(4, 9),
                ..good
            },
            |error| matches!(error, AckError::Backwards { .. }),
        ),
        (Ack { echo_ns: 301, ..good }, |error| {
            matches!(error, AckError::Future { .. })
        }),
        (Ack { echo_ns: 199, ..good }, |error| {
            matches!(error, AckError::Backwards { .. })
        }),
    ];
    let unacked = tracker.unacked_bytes();
    for (ack, expected) in wrong {
        let error = tracker.acked(&ack, 400).unwrap_err();
        assert!(expected(&error), "{ack:?}: {error}");
        assert_eq!(
            (tracker.covered(), tracker.unacked_bytes()),
            (Some(position(6, 0)), unacked)
        );
    }
    tracker.heartbeat_sent(350);
    tracker
        .acked(&ack(3, position(7, 0), position(7, 0), 350), 400)
        .unwrap();
}

#[test]
fn the_oldest_unacked_mark_ages() {
    let mut tracker = tracker();
    assert_eq!(tracker.oldest_unacked_age(1000), 0);
    tracker.sent(1, 10, &[tick(1)], 50).unwrap();
    tracker.sent(2, 10, &[mark(2, 0, 100), mark(3, 0, 110)], 110).unwrap();
    tracker.sent(3, 10, &[mark(4, 0, 200)], 200).unwrap();
    assert_eq!(tracker.oldest_unacked_age(150), 40);
    assert_eq!(
        tracker.oldest_unacked_age(100),
        0,
        "a clock that steps back is no evidence"
    );
    tracker
        .acked(&ack(2, position(3, 0), position(0, 0), 110), 220)
        .unwrap();
    assert_eq!(tracker.oldest_unacked_age(250), 50);
    assert_eq!(tracker.unacked_bytes(), 10);
}

#[test]
fn execution_lag_is_measured_at_acks_and_grows_while_none_comes() {
    let mut tracker = tracker();
    tracker.sent(1, 10, &[mark(1, 0, 100)], 100).unwrap();
    tracker.sent(2, 10, &[mark(2, 0, 200)], 200).unwrap();
    assert_eq!(tracker.execution_lag(250), 150);
    tracker
        .acked(&ack(2, position(2, 0), position(0, 0), 200), 260)
        .unwrap();
    assert_eq!(tracker.execution_lag(300), 200, "received is not executed");
    tracker
        .acked(&ack(2, position(2, 0), position(1, 0), 200), 320)
        .unwrap();
    assert_eq!(tracker.execution_lag(320), 220);
    assert_eq!(tracker.execution_lag(500), 300);
    tracker
        .acked(&ack(2, position(2, 0), position(2, 0), 200), 510)
        .unwrap();
    assert_eq!(tracker.execution_lag(9999), 310);
    tracker.sent(3, 10, &[mark(3, 0, 10_000)], 10_000).unwrap();
    tracker
        .acked(&ack(3, position(3, 0), position(3, 0), 10_000), 10_040)
        .unwrap();
    assert_eq!(tracker.execution_lag(10_050), 40);
}

#[test]
fn a_long_channel_is_no_backlog_and_a_full_one_is() {
    let mut tracker = tracker();
    tracker.sent(1, 10, &[mark(1, 0, 100)], 100).unwrap();
    tracker.sent(2, 10, &[mark(2, 0, 200)], 200).unwrap();
    assert_eq!(tracker.backlog(900, u64::MAX), 0, "nobody has it yet");
    tracker
        .acked(&ack(1, position(1, 0), position(0, 0), 100), 1000)
        .unwrap();
    assert_eq!(tracker.backlog(1030, u64::MAX), 30, "received is not executed");
    tracker
        .acked(&ack(2, position(2, 0), position(1, 0), 200), 1100)
        .unwrap();
    assert_eq!(
        (tracker.backlog(1100, u64::MAX), tracker.execution_lag(1100)),
        (100, 1000)
    );
    tracker
        .acked(&ack(2, position(2, 0), position(2, 0), 200), 1120)
        .unwrap();
    assert_eq!(tracker.backlog(9999, u64::MAX), 20);
    tracker.sent(3, 1 << 18, &[mark(3, 0, 10_000)], 10_000).unwrap();
    assert_eq!(tracker.backlog(10_500, u64::MAX), 20, "just not full");
    assert_eq!(tracker.backlog(10_500, 500), 20, "as long as the channel may be");
    assert_eq!(tracker.backlog(10_500, 499), 500, "longer than any channel");
    tracker.sent(4, 1, &[mark(4, 0, 10_100)], 10_100).unwrap();
    assert_eq!(tracker.backlog(10_500, u64::MAX), 500);
    tracker
        .acked(&ack(4, position(4, 0), position(4, 0), 10_100), 10_600)
        .unwrap();
    assert_eq!(tracker.backlog(99_999, u64::MAX), 0);
}

#[test]
fn frames_are_sent_in_order() {
    let mut tracker = tracker();
    assert!(matches!(
        tracker.sent(2, 1, &[], 0),
        Err(AckError::NotContiguous { expected: 1, found: 2 })
    ));
    tracker.sent(1, 1, &[tick(5)], 0).unwrap();
    assert!(matches!(
        tracker.sent(2, 1, &[tick(4)], 0),
        Err(AckError::Order { number: 2, .. })
    ));
}

#[test]
fn thinning_out_bounds_memory_and_never_covers_too_early() {
    let mut tracker = tracker();
    let frames = 3 * MAX_TRACKED_FRAMES as u64;
    for number in 1..=frames {
        tracker.sent(number, 10, &[mark(number, 0, number)], number).unwrap();
        assert!(tracker.tracked() <= 4 * MAX_TRACKED_FRAMES);
    }
    assert_eq!(tracker.oldest_unacked_age(11), 10);
    for number in 1..=frames {
        tracker
            .acked(&ack(number, position(number, 0), position(number, 0), number), number)
            .unwrap();
        assert!(!tracker.covers(position(number, 1)));
        assert!(tracker.unacked_bytes() >= 10 * (frames - number));
    }
    assert!(tracker.covers(position(frames, 0)));
    assert_eq!((tracker.unacked_bytes(), tracker.tracked()), (0, 0));
}
