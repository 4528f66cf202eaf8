//! Each test plays one rule of PROTOCOL against the pure core, on both sides of its boundary.

use ftvm_schema::entry::{ConsolePort, Digest, ExitSeq, Incarnation, Input, Intervention, LogEntry, Mark};
use logging_channel::chunk;
use logging_channel::message::{Ack, DiskReads};
use shared_disk::arbiter::ClaimOutcome;

use super::super::exit_code::ExitCode;
use super::*;
use ftvm_machine::output::Emission;

pub(super) const MS: u64 = 1_000_000;
pub(super) const D: u64 = 500 * MS;
const L: u64 = 300 * MS;
const ME: Incarnation = Incarnation(7);
pub(super) const BACKUP: Incarnation = Incarnation(9);

pub(super) fn at(exit: u64, k: u32) -> Position {
    Position { exit: ExitSeq(exit), k }
}

pub(super) fn mark(position: Position, outputs: u64) -> Mark {
    let digest = Digest::default();
    Mark {
        at: position,
        digest,
        outputs: OutputSeq(outputs),
        sent_ns: 0,
        registers: None,
        memory_hash: None,
    }
}

pub(super) fn output(position: Position, seq: u64) -> Output {
    let emission = Emission::Console {
        port: ConsolePort::Serial,
        position: seq,
        bytes: vec![b'x'],
    };
    Output {
        at: position,
        seq: OutputSeq(seq),
        emission,
    }
}

pub(super) fn ack(frame: u64, position: Position, echo_ns: u64) -> Message {
    Message::Ack(Ack {
        incarnation: BACKUP,
        frame,
        received: position,
        executed: position,
        echo_ns,
    })
}

pub(super) fn terms() -> Terms {
    Terms {
        me: ME,
        guest: 1,
        generation: Generation(1),
        detection_ns: D,
        lease_ns: L,
        patience_ns: 0,
        disk_reads: DiskReads::Log,
    }
}

/// Plays the rounds of a clone that needs two.
pub(super) fn clone_pages(primary: &mut Primary, now: u64, actions: &mut Vec<PrimaryAction>) {
    for pages in [vec![], vec![1]] {
        assert!(actions.contains(&PrimaryAction::TakeDirty));
        actions.clear();
        primary.dirty(now, pages, actions);
        assert!(matches!(
            actions.last(),
            Some(PrimaryAction::SendPages { to: BACKUP, .. })
        ));
        primary.pages_sent(now, BACKUP, 1, 100, actions);
    }
    assert!(!actions.contains(&PrimaryAction::TakeDirty));
}

/// A protected primary at exit 100; its grant, sent at `now`, is acked.
pub(super) fn paired(now: u64) -> Primary {
    let mut primary = Primary::new(terms());
    let mut actions = Vec::new();
    primary.joined(now, BACKUP, &mut actions);
    clone_pages(&mut primary, now, &mut actions);
    primary.settled(now, 0, &mut actions);
    assert!(actions.contains(&PrimaryAction::SaveState));
    primary.state_saved(now, b"state", mark(at(100, 0), 0), 0, &mut actions);
    primary.message(now, Generation(1), ack(1, at(100, 0), now), &mut actions);
    assert_eq!(primary.protection(), Protection::Protected);
    primary
}

fn frames(actions: &[PrimaryAction]) -> Vec<u64> {
    actions
        .iter()
        .filter_map(|action| match action {
            PrimaryAction::Send(Message::Log { number, .. }) => Some(*number),
            _ => None,
        })
        .collect()
}

pub(super) fn claims(actions: &[PrimaryAction]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, PrimaryAction::Claim(Generation(1))))
}

#[test]
fn alone_everything_leaves_at_once() {
    let mut primary = Primary::new(terms());
    primary.hold(output(at(5, 0), 0));
    assert!(primary.next_release(0).is_some());
    assert_eq!(primary.may_write(0), Writes::Freely);
}

#[test]
fn an_output_waits_for_the_ack_of_a_mark_at_or_behind_it() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 2), 1))], &mut actions);
    assert_eq!(frames(&actions), [2]);
    primary.hold(output(at(110, 2), 0));
    assert_eq!(primary.next_release(now), None, "nothing is acked");
    // An acked input is no mark: the guest's next inputs may be missing.
    primary.message(now, Generation(1), ack(1, at(110, 1), now), &mut actions);
    assert_eq!(
        primary.next_release(now),
        None,
        "only what lies before the mark is acked"
    );
    primary.message(now, Generation(1), ack(2, at(110, 2), now), &mut actions);
    assert!(primary.next_release(now).is_some());
}

#[test]
fn nothing_leaves_after_the_lease() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 2))], &mut actions);
    primary.message(now, Generation(1), ack(2, at(110, 0), now), &mut actions);
    primary.hold(output(at(110, 0), 0));
    primary.hold(output(at(110, 0), 1));
    assert_eq!(primary.may_write(now + L - 1), Writes::Until(now + L));
    assert!(primary.next_release(now + L - 1).is_some(), "the last moment");
    assert_eq!(primary.next_release(now + L), None, "the lease is over");
    assert_eq!(primary.may_write(now + L), Writes::NotNow);
}

#[test]
fn an_ack_read_late_renews_nothing() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 1))], &mut actions);
    primary.hold(output(at(110, 0), 0));
    // The process slept for a second with the ack in its socket buffer: it echoes the mark's send time, not now.
    let late = now + 1_000 * MS;
    primary.message(late, Generation(1), ack(2, at(110, 0), now), &mut actions);
    assert_eq!(primary.next_release(late), None);
}

#[test]
fn a_lost_backup_costs_a_generation() {
    let now = 1_000 * MS;
    for loses in [false, true] {
        let mut primary = paired(now);
        let mut actions = Vec::new();
        primary.hold(output(at(100, 0), 0));
        primary.closed(now, "gone", &mut actions);
        assert!(claims(&actions));
        assert_eq!(primary.next_release(now), None, "before the answer nothing leaves");
        assert!(primary.may_join().is_err());
        actions.clear();
        if loses {
            primary.claimed(
                now,
                &ClaimOutcome::Lost {
                    generation: 2,
                    owner: 9,
                },
                &mut actions,
            );
            assert!(matches!(
                actions[..],
                [PrimaryAction::End {
                    code: ExitCode::Lost,
                    ..
                }]
            ));
            assert_eq!(primary.next_release(now), None);
        } else {
            primary.claimed(now, &ClaimOutcome::Won { generation: 2 }, &mut actions);
            assert_eq!(
                (primary.generation(), primary.protection()),
                (Generation(2), Protection::NotProtected)
            );
            assert!(primary.next_release(now).is_some());
        }
    }
}

#[test]
fn silence_is_a_death_but_not_one_moment_early() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 1))], &mut actions);
    let step = D / 8;
    for time in (1..=8).map(|n| now + n * step) {
        primary.tick(time, &mut actions);
    }
    assert!(!claims(&actions), "unacked for exactly D");
    primary.tick(now + D + step, &mut actions);
    assert!(claims(&actions));
}

#[test]
fn a_backup_that_stands_still_is_lost_but_not_while_it_resets() {
    let now = 1_000 * MS;
    let step = D / 8;
    for resets in [false, true] {
        let mut primary = paired(now);
        let mut actions = Vec::new();
        let reset = LogEntry::Input {
            at: ExitSeq(110),
            input: Input::Control(Intervention::Reset),
        };
        let entries = resets.then_some(reset).into_iter();
        let entries = entries.chain([LogEntry::Mark(mark(at(111, 0), 0))]);
        primary.log(now, entries.collect(), &mut actions);
        for time in (1..=12).map(|n| now + n * step) {
            let ack = Ack {
                incarnation: BACKUP,
                frame: frames(&actions).into_iter().max().unwrap(),
                received: at(111, 0),
                executed: at(110, 0),
                echo_ns: time - step,
            };
            primary.message(time, Generation(1), Message::Ack(ack), &mut actions);
            primary.tick(time, &mut actions);
        }
        assert_eq!(claims(&actions), !resets);
    }
}

#[test]
fn suspicion_is_final() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.closed(now, "gone", &mut actions);
    actions.clear();
    primary.message(now, Generation(1), ack(2, at(100, 0), now), &mut actions);
    primary.log(now, vec![LogEntry::Mark(mark(at(120, 0), 1))], &mut actions);
    primary.tick(now + MS, &mut actions);
    assert_eq!(actions, [], "no replication, no change of mind");
}

#[test]
fn a_clean_end_waits_for_its_ack() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    let reason = EndReason::PowerOff { status: 0 };
    let end = LogEntry::End {
        at: at(120, 0),
        reason: reason.clone(),
    };
    primary.log(now, vec![LogEntry::Mark(mark(at(120, 0), 0)), end], &mut actions);
    primary.guest_ended(now, reason, &mut actions);
    assert!(
        !actions.iter().any(|action| matches!(action, PrimaryAction::End { .. })),
        "the end is not acked"
    );
    primary.message(now, Generation(1), ack(2, at(120, 0), now), &mut actions);
    assert!(matches!(
        actions.last(),
        Some(PrimaryAction::End {
            code: ExitCode::Success,
            ..
        })
    ));
    assert!(!claims(&actions));
}

#[test]
fn a_higher_generation_ends_this_side() {
    let mut primary = paired(1_000 * MS);
    let mut actions = Vec::new();
    let heartbeat = |generation| Heartbeat {
        guest: 1,
        generation: Generation(generation),
        incarnation: BACKUP,
        number: 1,
        sent_ns: 0,
        echo_ns: 0,
    };
    primary.heartbeat(1_000 * MS, &heartbeat(1), &mut actions);
    assert_eq!(actions, []);
    primary.heartbeat(1_000 * MS, &heartbeat(2), &mut actions);
    assert!(matches!(
        actions[..],
        [PrimaryAction::End {
            code: ExitCode::Lost,
            ..
        }]
    ));
}

#[test]
fn releases_are_told_after_the_call() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 1))], &mut actions);
    primary.message(now, Generation(1), ack(2, at(110, 0), now), &mut actions);
    primary.hold(output(at(110, 0), 0));
    let released = |actions: &[PrimaryAction]| {
        actions.iter().any(|action| match action {
            PrimaryAction::Send(Message::Log { entries, .. }) => entries
                .iter()
                .any(|entry| matches!(entry, LogEntry::Released { through: OutputSeq(1) })),
            _ => false,
        })
    };
    let _submitted = primary.next_release(now);
    primary.tick(now + MS, &mut actions);
    assert!(!released(&actions), "submitted is not released");
    primary.call_returned(OutputSeq(0));
    primary.tick(now + 2 * MS, &mut actions);
    assert!(released(&actions));
}

#[test]
fn what_is_held_still_leaves_when_the_backup_has_ended_first() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    let end = LogEntry::End {
        at: at(110, 0),
        reason: EndReason::PowerOff { status: 0 },
    };
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 1)), end], &mut actions);
    primary.hold(output(at(110, 0), 0));
    primary.message(now, Generation(1), ack(2, at(110, 0), now), &mut actions);
    // Both messages are read in one go, or the lease is over meanwhile.
    primary.message(now + L, Generation(1), Message::Bye, &mut actions);
    assert!(!actions.iter().any(|action| matches!(action, PrimaryAction::End { .. })));
    assert_eq!(primary.may_write(now + L), Writes::Freely, "the backup has ended");
    assert!(primary.next_release(now + L).is_some());
    primary.settled(now + L, 0, &mut actions);
    assert!(matches!(
        actions.last(),
        Some(PrimaryAction::End {
            code: ExitCode::Success,
            ..
        })
    ));
    assert_eq!(primary.may_write(now + L), Writes::Freely);
}

#[test]
fn a_connection_that_closes_before_the_end_is_acked_needs_the_test_and_set() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    let end = LogEntry::End {
        at: at(110, 0),
        reason: EndReason::PowerOff { status: 0 },
    };
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 0)), end], &mut actions);
    primary.closed(now, "reset", &mut actions);
    assert!(claims(&actions), "the backup may not know of the end, and go live");
}

#[test]
fn the_cost_of_the_log_counts_whole_checkpoints_and_all_their_bytes() {
    let now = 1_000 * MS;
    let mut primary = Primary::new(terms());
    assert_eq!(primary.cost(now), None, "without a backup");
    primary = paired(now);
    let before = primary.cost(now).unwrap();
    assert_eq!((before.checkpoints, before.checkpoint_bytes), (0, 0));
    let record = vec![7; chunk::CHUNK_BYTES + 1];
    let chunks: Vec<_> = chunk::split(&record).collect();
    let entry = |index: usize| LogEntry::Checkpoint {
        at: at(100, 1),
        chunk: chunks[index].clone(),
    };
    let mut actions = Vec::new();
    primary.log(now, vec![entry(0)], &mut actions);
    let half = primary.cost(now).unwrap();
    assert_eq!(
        (half.checkpoints, half.checkpoint_bytes),
        (0, chunk::CHUNK_BYTES as u64)
    );
    primary.log(now, vec![entry(1), LogEntry::Mark(mark(at(100, 1), 0))], &mut actions);
    let whole = primary.cost(now + 3 * MS).unwrap();
    assert_eq!((whole.checkpoints, whole.checkpoint_bytes), (1, record.len() as u64));
    assert_eq!(whole.frames - before.frames, 2);
    assert_eq!(whole.lag_ns, 3 * MS, "the mark has waited for its execution");
}

#[test]
fn a_read_that_the_backup_does_itself_is_known_when_it_is_executed() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 2), 0))], &mut actions);
    let end = |known| DiskEnd {
        at: at(110, 2),
        disk: 0,
        id: 1,
        known,
    };
    assert!(!primary.knows(&end(Known::Received)));
    let behind = |executed| {
        Message::Ack(Ack {
            incarnation: BACKUP,
            frame: 2,
            received: at(110, 2),
            executed,
            echo_ns: now,
        })
    };
    primary.message(now, Generation(1), behind(at(110, 1)), &mut actions);
    assert!(primary.knows(&end(Known::Received)) && !primary.knows(&end(Known::Executed)));
    primary.message(now, Generation(1), behind(at(110, 2)), &mut actions);
    assert!(primary.knows(&end(Known::Executed)));
    // Alone there is nobody to wait for; while the storage decides, the other side may be reading.
    let alone = Primary::new(terms());
    assert!(alone.knows(&end(Known::Executed)));
    primary.closed(now, "cut", &mut actions);
    assert!(!primary.knows(&end(Known::Executed)) && !primary.knows(&end(Known::Received)));
}

#[test]
fn a_primary_slows_down_for_its_backup_and_stops_before_it_is_lost() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let mut actions = Vec::new();
    primary.log(now, vec![LogEntry::Mark(mark(at(110, 0), 0))], &mut actions);
    // The ack comes late, from afar: nothing that a slower guest would mend.
    let now = now + 9 * MS;
    let pace = |primary: &mut Primary, now| {
        let mut actions = Vec::new();
        // Received, and never executed.
        let received = Message::Ack(Ack {
            incarnation: BACKUP,
            frame: 2,
            received: at(110, 0),
            executed: at(100, 0),
            echo_ns: now,
        });
        primary.heartbeat_sent(now);
        primary.message(now, Generation(1), received, &mut Vec::new());
        primary.tick(now, &mut actions);
        actions.iter().find_map(|action| match action {
            PrimaryAction::Pace(idle) => Some(*idle),
            _ => None,
        })
    };
    assert_eq!(pace(&mut primary, now), None, "received just now");
    assert_eq!(pace(&mut primary, now + D / SLOW_AT), None, "at the limit");
    assert!(pace(&mut primary, now + D / SLOW_AT + 100 * MS).is_some_and(|idle| idle > 0));
    assert!(primary.has_room(now + D / STOP_AT - 1) && !primary.has_room(now + D / STOP_AT));
    // Alone it does not wait for anybody.
    actions.clear();
    primary.closed(now, "cut", &mut actions);
    assert!(actions.contains(&PrimaryAction::Pace(0)) && primary.has_room(now + D));
}

#[test]
fn a_primary_slows_down_before_acks_are_so_late_that_the_backup_counts_as_lost() {
    let now = 1_000 * MS;
    let mut primary = paired(now);
    let log = vec![LogEntry::Mark(mark(at(110, 0), 0))];
    primary.log(now, log, &mut Vec::new());
    let sent = now;
    let mut paced = |now| {
        let mut actions = Vec::new();
        primary.tick(now, &mut actions);
        actions.iter().any(|action| matches!(action, PrimaryAction::Pace(1..)))
    };
    assert!(!paced(sent + D / LONG_CHANNEL), "a long channel");
    assert!(paced(sent + D / LONG_CHANNEL + 100 * MS));
    // And stops while there is time left for the acks of what is on its way.
    let stops = sent + D / STOP_AT;
    assert!(primary.has_room(stops - 1) && !primary.has_room(stops));
    primary.message(stops, Generation(1), ack(2, at(110, 0), sent), &mut Vec::new());
    assert!(primary.has_room(stops));
}
