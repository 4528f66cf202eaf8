use proptest::prelude::*;

use super::*;
use crate::chunk::{CHUNK_BYTES, split};
use crate::codec::samples::position;
use crate::message::Ack;
use ftvm_schema::entry::{
    Digest, EndReason, ExitSeq, Generation, Incarnation, Input, LogEntry, Mark, OutputSeq, Position,
};

const ME: Incarnation = Incarnation(7);
const G: Generation = Generation(3);

fn tick(exit: u64) -> LogEntry {
    LogEntry::Input {
        at: ExitSeq(exit),
        input: Input::Clock(exit),
    }
}

fn mark(exit: u64, k: u32, sent_ns: u64) -> LogEntry {
    LogEntry::Mark(Mark {
        at: position(exit, k),
        digest: Digest::default(),
        outputs: OutputSeq(0),
        sent_ns,
        registers: None,
        memory_hash: None,
    })
}

fn end(exit: u64) -> LogEntry {
    LogEntry::End {
        at: position(exit, 0),
        reason: EndReason::Reset,
    }
}

fn checkpoint(exit: u64, k: u32, record: &[u8]) -> Vec<LogEntry> {
    split(record)
        .map(|chunk| LogEntry::Checkpoint {
            at: position(exit, k),
            chunk,
        })
        .collect()
}

fn inbox() -> Inbox {
    Inbox::new(ME, G, Position::default(), OutputSeq(0), 1 << 30)
}

fn tracker() -> AckTracker {
    AckTracker::new(ME, Position::default(), OutputSeq(0))
}

fn ack(frame: u64, received: Position, executed: Position, echo_ns: u64) -> Ack {
    Ack {
        incarnation: ME,
        frame,
        received,
        executed,
        echo_ns,
    }
}

mod backup {
    use super::*;

    #[test]
    fn an_ack_says_what_is_stored_and_only_when_something_changed() {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![tick(4), mark(4, 1, 900)]).unwrap();
        assert_eq!(inbox.ack(), Some(ack(1, position(4, 1), position(0, 0), 900)));
        assert_eq!(inbox.ack(), None);
        inbox.executed(position(4, 1));
        assert_eq!(inbox.ack(), Some(ack(1, position(4, 1), position(4, 1), 900)));
        inbox.heard(950);
        inbox.heard(940);
        assert_eq!(inbox.ack().unwrap().echo_ns, 950);
        assert_eq!(
            [inbox.take(), inbox.take(), inbox.take()],
            [Some(tick(4)), Some(mark(4, 1, 900)), None]
        );
    }

    #[test]
    fn a_frame_of_another_number_or_generation_ends_the_session() {
        for (generation, number) in [(Generation(2), 2), (Generation(4), 2), (G, 1), (G, 3), (G, 0)] {
            let mut inbox = inbox();
            inbox.admit(G, 1, vec![mark(1, 0, 5)]).unwrap();
            let before = inbox.ack().unwrap();
            let error = inbox.admit(generation, number, vec![mark(9, 0, 6)]).unwrap_err();
            let expected = matches!(error, InboxError::Generation { .. } | InboxError::NotContiguous { .. });
            assert!(expected, "{error}");
            assert_eq!((inbox.ack(), inbox.horizon().position()), (None, before.received));
            assert!(matches!(inbox.admit(G, 2, vec![]), Err(InboxError::Over { number: 2 })));
        }
    }

    #[test]
    fn a_frame_with_one_entry_out_of_place_is_not_stored_at_all() {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![tick(5)]).unwrap();
        let before = inbox.ack().unwrap();
        let error = inbox.admit(G, 2, vec![tick(6), mark(7, 0, 9), tick(6)]).unwrap_err();
        assert!(matches!(error, InboxError::Order { number: 2, .. }), "{error}");
        assert_eq!((inbox.ack(), inbox.horizon().position()), (None, before.received));
        assert_eq!([inbox.take(), inbox.take()], [Some(tick(5)), None]);
    }

    #[test]
    fn a_checkpoint_is_acked_and_given_only_whole() {
        let record: Vec<u8> = vec![7; 2 * CHUNK_BYTES + 1];
        let chunks = checkpoint(5, 2, &record);
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![tick(5)]).unwrap();
        inbox.take();
        assert_eq!(inbox.ack().unwrap().frame, 1);
        inbox.admit(G, 2, vec![chunks[0].clone()]).unwrap();
        inbox
            .admit(
                G,
                3,
                vec![chunks[1].clone(), LogEntry::Released { through: OutputSeq(1) }],
            )
            .unwrap();
        assert_eq!(inbox.ack(), None, "neither frame nor position may move");
        assert_eq!(inbox.take(), Some(LogEntry::Released { through: OutputSeq(1) }));
        inbox.admit(G, 4, vec![chunks[2].clone()]).unwrap();
        assert_eq!(inbox.ack(), Some(ack(4, position(5, 2), position(0, 0), 0)));
        let Some(LogEntry::Checkpoint { at, chunk }) = inbox.take() else {
            panic!("no checkpoint")
        };
        assert_eq!(
            (at, chunk.total, chunk.offset),
            (position(5, 2), record.len() as u64, 0)
        );
        assert!(chunk.bytes == record);
    }

    #[test]
    fn an_incomplete_checkpoint_is_discarded_at_go_live() {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![tick(5)]).unwrap();
        inbox
            .admit(G, 2, checkpoint(5, 2, &[7; CHUNK_BYTES + 1])[..1].to_vec())
            .unwrap();
        let discarded = Discarded {
            at: position(5, 2),
            held: CHUNK_BYTES as u64,
            total: CHUNK_BYTES as u64 + 1,
        };
        assert_eq!(inbox.close(), Some(discarded));
        assert_eq!(inbox.horizon().position(), position(5, 1));
        assert_eq!([inbox.take(), inbox.take()], [Some(tick(5)), None]);
        assert!(
            matches!(inbox.admit(G, 3, vec![]), Err(InboxError::Over { .. })),
            "suspicion is final"
        );
    }

    #[test]
    fn damaged_interrupted_and_wandering_checkpoints_are_refused() {
        let record = [7; CHUNK_BYTES + 1];
        let chunks = checkpoint(5, 2, &record);
        let attempt = |rest: LogEntry| {
            let mut inbox = inbox();
            inbox.admit(G, 1, vec![chunks[0].clone()]).unwrap();
            let error = inbox.admit(G, 2, vec![rest]).unwrap_err();
            assert_eq!((inbox.ack().unwrap().frame, inbox.close()), (0, None));
            error
        };
        assert!(matches!(attempt(tick(6)), InboxError::InsideCheckpoint { .. }));
        assert!(matches!(attempt(mark(6, 0, 0)), InboxError::InsideCheckpoint { .. }));
        assert!(matches!(attempt(end(6)), InboxError::InsideCheckpoint { .. }));
        let elsewhere = checkpoint(6, 2, &record)[1].clone();
        assert!(matches!(attempt(elsewhere), InboxError::CheckpointMoved { .. }));
        let mut damaged = chunks[1].clone();
        if let LogEntry::Checkpoint { chunk, .. } = &mut damaged {
            chunk.bytes[0] ^= 1;
        }
        assert!(matches!(attempt(damaged), InboxError::Checkpoint { .. }));

        let mut small = Inbox::new(ME, G, Position::default(), OutputSeq(0), CHUNK_BYTES as u64);
        assert!(matches!(small.admit(G, 1, chunks), Err(InboxError::Checkpoint { .. })));
    }

    #[test]
    fn it_never_claims_to_have_executed_beyond_the_horizon() {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![tick(5)]).unwrap();
        inbox.executed(position(9, 0));
        assert_eq!(inbox.ack().unwrap().executed, position(5, 1));
    }
}

mod primary {
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
        assert_eq!(tracker.oldest_unacked().unwrap().sent_ns, 100);
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
        for (ack, expected) in wrong {
            let error = tracker.acked(&ack, 400).unwrap_err();
            assert!(expected(&error), "{ack:?}: {error}");
            assert_eq!((tracker.covered(), tracker.acked_frame()), (Some(position(6, 0)), 2));
        }
        tracker.heartbeat_sent(350);
        tracker
            .acked(&ack(3, position(7, 0), position(7, 0), 350), 400)
            .unwrap();
    }

    #[test]
    fn the_oldest_unacked_mark_ages() {
        let mut tracker = tracker();
        assert_eq!((tracker.oldest_unacked(), tracker.oldest_unacked_age(1000)), (None, 0));
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
        assert_eq!(tracker.oldest_unacked().unwrap().sent_ns, 1);
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
}

mod leases {
    use super::*;

    #[test]
    fn a_lease_runs_from_the_latest_echo() {
        let mut lease = Lease::new(100);
        assert!(!lease.valid_at(0), "nothing echoed, nothing granted");
        lease.renew(1000, 5000).unwrap();
        assert_eq!(lease.ends_at(), 1100);
        assert!(!lease.valid_at(5000), "an old echo read late renews nothing");
        assert!(lease.valid_at(1099) && !lease.valid_at(1100));
        lease.renew(900, 5000).unwrap();
        assert_eq!(lease.ends_at(), 1100);
    }

    #[test]
    fn an_echo_of_the_future_renews_nothing() {
        let mut lease = Lease::new(100);
        lease.renew(50, 50).unwrap();
        assert_eq!(
            lease.renew(61, 60),
            Err(LeaseError {
                echo_ns: 61,
                now_ns: 60
            })
        );
        assert_eq!(lease.ends_at(), 150);
    }

    #[test]
    fn the_backup_waits_a_lease_and_the_drift() {
        let mut wait = LeaseWait::new(1_000_001, 200);
        assert!(wait.is_over(0), "what was never echoed grants nothing");
        wait.sent(5000);
        assert_eq!(wait.over_at(), 5000 + 1_000_001 + 201, "drift is rounded up");
        assert!(!wait.is_over(wait.over_at() - 1) && wait.is_over(wait.over_at()));
        wait.sent(4000);
        assert_eq!(wait.over_at(), 1_005_202);
        assert_eq!(LeaseWait::new(u64::MAX, u32::MAX).over_at(), 0);
    }

    #[test]
    fn ends_do_not_overflow() {
        let mut lease = Lease::new(u64::MAX);
        lease.renew(5, 5).unwrap();
        assert_eq!(lease.ends_at(), u64::MAX);
        let mut wait = LeaseWait::new(u64::MAX, 1);
        wait.sent(5);
        assert!(!wait.is_over(u64::MAX - 1));
    }

    proptest! {
        /// However an echo travels, and with clocks as far apart and drifting as far as allowed, the backup's wait ends
        /// after the primary's lease.
        #[test]
        fn the_wait_outlasts_the_lease(
            length in 1u64..1_000_000_000, sent in 0u64..1 << 40, delay in 0u64..1_000_000_000,
            offset in 0u64..1 << 40, drift_ppm in 0u32..1000,
        ) {
            let mut lease = Lease::new(length);
            let mut wait = LeaseWait::new(length, drift_ppm);
            // The primary sends at `sent`; the backup, whose clock runs fast by drift_ppm, echoes after `delay`.
            let fast = |primary_ns: u64| offset + primary_ns + primary_ns * u64::from(drift_ppm) / 1_000_000;
            wait.sent(fast(sent + delay));
            lease.renew(sent, sent + 2 * delay).unwrap();
            prop_assert!(!lease.valid_at(lease.ends_at()));
            prop_assert!(wait.over_at() >= fast(lease.ends_at()));
        }
    }
}

mod together {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Send {
            inputs: u64,
            marked: bool,
            checkpoint: bool,
        },
        Deliver,
        Execute,
        Ack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let send =
            (0..4u64, any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(inputs, marked, checkpoint)| Step::Send {
                inputs,
                marked,
                checkpoint,
            });
        proptest::collection::vec(
            prop_oneof![send, Just(Step::Deliver), Just(Step::Execute), Just(Step::Ack)],
            1..120,
        )
    }

    proptest! {
        /// Both sides against each other: the backup's acks are always possible ones, and what the primary takes for
        /// covered is never beyond what the backup holds.
        #[test]
        fn what_is_covered_is_held(steps in steps()) {
            let (mut tracker, mut inbox) = (tracker(), inbox());
            let mut wire = std::collections::VecDeque::new();
            let mut held_mark = None;
            let (mut exit, mut now, mut number) = (0u64, 0u64, 0u64);
            for step in steps {
                now += 10;
                match step {
                    Step::Send { inputs, marked, checkpoint } => {
                        let mut frames = vec![(0..inputs).map(|n| tick(exit + 1 + n)).collect::<Vec<_>>()];
                        exit += inputs + 1;
                        if checkpoint {
                            frames.extend(super::checkpoint(exit, 1, &[1; CHUNK_BYTES + 1]).into_iter().map(|e| vec![e]));
                            exit += 1;
                        }
                        if marked {
                            frames.push(vec![mark(exit, 0, now)]);
                        }
                        for entries in frames {
                            number += 1;
                            tracker.sent(number, 1, &entries, now).unwrap();
                            wire.push_back((number, entries));
                        }
                    }
                    Step::Deliver => {
                        if let Some((number, entries)) = wire.pop_front() {
                            if let Some(LogEntry::Mark(mark)) = entries.last() {
                                held_mark = Some(mark.at);
                            }
                            inbox.admit(G, number, entries).unwrap();
                        }
                    }
                    Step::Execute => while let Some(entry) = inbox.take() {
                        if let LogEntry::Mark(mark) = entry { inbox.executed(mark.at) }
                    },
                    Step::Ack => if let Some(ack) = inbox.ack() {
                        tracker.acked(&ack, now).unwrap();
                    },
                }
                if let Some(covered) = tracker.covered() {
                    prop_assert!(Some(covered) <= held_mark);
                }
                prop_assert!(tracker.executed() <= inbox.horizon().position());
            }
        }
    }
}
