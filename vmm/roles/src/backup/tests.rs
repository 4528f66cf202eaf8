//! Each test plays one rule of PROTOCOL against the pure core, on both sides of its boundary.

use ftvm_schema::entry::{Digest, ExitSeq, Incarnation, Input, Mark, OutputSeq};
use logging_channel::chunk;
use logging_channel::flow::AckTracker;

use logging_channel::message::{DiskReads, Grant};
use shared_disk::arbiter::ClaimOutcome;

use super::*;

pub(super) const MS: u64 = 1_000_000;
const D: u64 = 500 * MS;
const L: u64 = 300 * MS;
pub(super) const ME: Incarnation = Incarnation(9);
pub(super) const G: Generation = Generation(3);

fn at(exit: u64) -> Position {
    Position {
        exit: ExitSeq(exit),
        k: 0,
    }
}

fn mark(exit: u64, sent_ns: u64) -> LogEntry {
    LogEntry::Mark(Mark {
        at: at(exit),
        digest: Digest::default(),
        outputs: OutputSeq(0),
        sent_ns,
        registers: None,
        memory_hash: None,
    })
}

pub(super) fn joining(now: u64) -> Backup {
    let terms = Terms {
        me: ME,
        guest: 1,
        generation: G,
        detection_ns: D,
        lease_ns: L,
        patience_ns: 0,
        disk_reads: DiskReads::Log,
    };
    Backup::new(terms, now)
}

pub(super) fn grant() -> Message {
    Message::Grant(Grant {
        generation: G,
        incarnation: ME,
        at: at(100),
        digest: Digest::default(),
        outputs: OutputSeq(0),
    })
}

/// A backup that follows from exit 100 and has acked log frame 1 at `now`.
pub(super) fn following(now: u64) -> Backup {
    let mut backup = joining(now);
    let mut actions = Vec::new();
    for chunk in chunk::split(b"the state") {
        backup.message(now, G, Message::State(chunk), &mut actions);
    }
    assert!(actions.contains(&BackupAction::Load(b"the state".to_vec())));
    backup.message(now, G, grant(), &mut actions);
    actions.clear();
    backup.message(
        now,
        G,
        Message::Log {
            number: 1,
            entries: vec![mark(100, 55)],
        },
        &mut actions,
    );
    let acked = actions.iter().find_map(|action| match action {
        BackupAction::Send(Message::Ack(ack)) => Some((ack.frame, ack.received, ack.echo_ns)),
        _ => None,
    });
    assert_eq!(acked, Some((1, at(100), 55)));
    backup
}

pub(super) fn claims(actions: &[BackupAction]) -> bool {
    actions.contains(&BackupAction::Claim(G))
}

fn live(actions: &[BackupAction]) -> bool {
    actions.iter().any(|action| {
        matches!(
            action,
            BackupAction::GoLive {
                generation: Generation(4),
                ..
            }
        )
    })
}

pub(super) fn ends_with(actions: &[BackupAction], expected: ExitCode) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, BackupAction::End { code, .. } if *code == expected))
}

#[test]
fn going_live_needs_lease_storage_and_drain() {
    let now = 1_000 * MS;
    let won = ClaimOutcome::Won { generation: 4 };
    for missing in ["lease", "storage", "drain", "nothing"] {
        let mut backup = following(now);
        let mut actions = Vec::new();
        backup.closed(now, "reset", &mut actions);
        assert!(claims(&actions) && actions.contains(&BackupAction::Drain));
        if missing != "storage" {
            backup.claimed(now + MS, &won, &mut actions);
        }
        if missing != "drain" {
            backup.drained(now + MS, &mut actions);
        }
        let over = backup.wakes_at().unwrap_or(0);
        assert!(over > now + L, "a lease, and the drift of two clocks");
        backup.due(if missing == "lease" { over - 1 } else { over }, &mut actions);
        assert_eq!(live(&actions), missing == "nothing", "without {missing}");
    }
}

#[test]
fn the_loser_ends() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.closed(now, "reset", &mut actions);
    backup.drained(now, &mut actions);
    backup.claimed(
        now,
        &ClaimOutcome::Lost {
            generation: 4,
            owner: 7,
        },
        &mut actions,
    );
    backup.tick(now + 10 * L, &mut actions);
    assert!(ends_with(&actions, ExitCode::Lost) && !live(&actions));
}

#[test]
fn suspicion_is_final() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.closed(now, "reset", &mut actions);
    actions.clear();
    backup.message(
        now,
        G,
        Message::Log {
            number: 2,
            entries: vec![mark(120, 99)],
        },
        &mut actions,
    );
    assert_eq!(actions, [], "no ack, no delivery");
    assert!(!backup.may_speak());
}

#[test]
fn silence_is_a_death_but_not_one_moment_early() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    let step = D / 8;
    for time in (1..=8).map(|n| now + n * step) {
        backup.tick(time, &mut actions);
    }
    assert!(!claims(&actions), "silent for exactly D");
    backup.tick(now + D + step, &mut actions);
    assert!(claims(&actions));
}

#[test]
fn heartbeats_prove_nothing() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    for time in (1..=9).map(|n| now + n * (D / 8)) {
        let heartbeat = Heartbeat {
            guest: 1,
            generation: G,
            incarnation: Incarnation(7),
            number: 1,
            sent_ns: time,
            echo_ns: 0,
        };
        backup.heartbeat(time, &heartbeat, &mut actions);
        backup.tick(time, &mut actions);
    }
    assert!(claims(&actions), "no mark for D, whatever UDP says");
}

#[test]
fn a_sleeper_does_not_judge() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.tick(now + 10 * D, &mut actions);
    assert!(!claims(&actions), "it was itself asleep");
}

#[test]
fn a_diverged_backup_never_asks() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.diverged(at(110), "digest", &mut actions);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, BackupAction::Send(Message::Diverged { .. })))
    );
    backup.closed(now, "reset", &mut actions);
    backup.tick(now + 2 * D, &mut actions);
    assert!(ends_with(&actions, ExitCode::NotEntitled) && !claims(&actions));
}

#[test]
fn a_clean_end_is_no_death() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    let reason = EndReason::PowerOff { status: 0 };
    let entries = vec![
        mark(120, 99),
        LogEntry::End {
            at: at(120),
            reason: reason.clone(),
        },
    ];
    backup.message(now, G, Message::Log { number: 2, entries }, &mut actions);
    backup.closed(now, "reset", &mut actions);
    backup.tick(now + 2 * D, &mut actions);
    assert!(!claims(&actions));
    backup.guest_ended(&reason, &mut actions);
    assert!(ends_with(&actions, ExitCode::Success));
}

#[test]
fn what_does_not_continue_is_not_acked() {
    let now = 1_000 * MS;
    for (number, entries) in [
        (3, vec![mark(120, 99)]),
        (
            2,
            vec![LogEntry::Input {
                at: ExitSeq(90),
                input: Input::Clock(1),
            }],
        ),
    ] {
        let mut backup = following(now);
        let mut actions = Vec::new();
        backup.message(now, G, Message::Log { number, entries }, &mut actions);
        assert!(
            !actions
                .iter()
                .any(|action| matches!(action, BackupAction::Send(Message::Ack(_)) | BackupAction::Deliver(_)))
        );
        assert!(claims(&actions), "what is stored stands, and the stream is over");
    }
}

#[test]
fn a_read_done_here_is_acked_as_soon_as_it_is_executed() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let executed_at = |backup: &mut Backup, now, exit| {
        let mut actions = Vec::new();
        backup.executed(now, at(exit), &mut actions);
        actions.iter().find_map(|action| match action {
            BackupAction::Send(Message::Ack(ack)) => Some(ack.executed),
            _ => None,
        })
    };
    let executed = |backup: &mut Backup, exit| executed_at(backup, now, exit);
    assert_eq!(executed(&mut backup, 100), None, "the next frame's ack says so");
    let input = Input::DiskRead {
        disk: 0,
        id: 3,
        digest: Digest::default(),
    };
    let read = LogEntry::Input {
        at: ExitSeq(120),
        input,
    };
    let entries = vec![read, mark(130, 60)];
    backup.message(now, G, Message::Log { number: 2, entries }, &mut Vec::new());
    assert_eq!(executed(&mut backup, 119), None);
    assert_eq!(executed(&mut backup, 130), Some(at(130)));
    assert_eq!(executed(&mut backup, 130), None, "once");
    // Suspicion is final: nothing is acked any more.
    let read = LogEntry::Input {
        at: ExitSeq(140),
        input: Input::DiskRead {
            disk: 0,
            id: 4,
            digest: Digest::default(),
        },
    };
    let entries = vec![read, mark(150, 61)];
    backup.message(now, G, Message::Log { number: 3, entries }, &mut Vec::new());
    backup.closed(now, "cut", &mut Vec::new());
    assert_eq!(executed(&mut backup, 150), None);
}

#[test]
fn execution_is_acked_now_and_then() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let entries = vec![mark(130, 60)];
    backup.message(now, G, Message::Log { number: 2, entries }, &mut Vec::new());
    let executed = |backup: &mut Backup, now, exit| {
        let mut actions = Vec::new();
        backup.executed(now, at(exit), &mut actions);
        actions.len()
    };
    const EVERY: u64 = D / EXECUTED_ACKS;
    assert_eq!(executed(&mut backup, now + EVERY - 1, 110), 0);
    assert_eq!(executed(&mut backup, now + EVERY, 111), 1);
    assert_eq!(backup.wakes_at(), None, "all that there is to say is said");
    assert_eq!(executed(&mut backup, now + 2 * EVERY - 1, 112), 0);
    let owed = backup.wakes_at().unwrap();
    assert_eq!(owed, now + 2 * EVERY);
    let due = |backup: &mut Backup, now| {
        let mut actions = Vec::new();
        backup.due(now, &mut actions);
        actions
    };
    assert_eq!(due(&mut backup, owed - 1), vec![]);
    let acked = due(&mut backup, owed);
    assert!(
        matches!(acked[..], [BackupAction::Send(Message::Ack(ack))] if ack.executed == at(112)),
        "{acked:?}"
    );
    assert_eq!((backup.wakes_at(), due(&mut backup, owed)), (None, vec![]));
    assert_eq!(executed(&mut backup, now + 3 * EVERY, 130), 1);
    assert_eq!(executed(&mut backup, now + 9 * EVERY, 130), 0, "nothing new");
}

/// However seldom frames come, what the primary takes for lag is the backup's own: a guest that was slowed down once would
/// otherwise stay slow.
#[test]
fn waiting_for_the_next_ack_is_no_lag() {
    const EXECUTES: u64 = MS;
    /// Below this a slowed guest is sped up again.
    const LITTLE: u64 = D / 20;
    for gap in [D / 200, D / 51, D / 40, D / 21, D / 19, D / 9, D / 3] {
        let mut now = 1_000 * MS;
        let mut backup = following(now);
        let mut tracker = AckTracker::new(ME, at(100), OutputSeq(0));
        tracker.sent(1, 10, &[mark(100, 55)], now).unwrap();
        let told = |tracker: &mut AckTracker, actions: &mut Vec<BackupAction>, now| {
            for action in actions.drain(..) {
                if let BackupAction::Send(Message::Ack(ack)) = action {
                    tracker.acked(&ack, now).unwrap();
                }
            }
        };
        let mut actions = Vec::new();
        for number in 2..40 {
            let entries = vec![mark(100 + number, now)];
            tracker.sent(number, 10, &entries, now).unwrap();
            backup.message(now, G, Message::Log { number, entries }, &mut actions);
            told(&mut tracker, &mut actions, now);
            backup.executed(now + EXECUTES, at(100 + number), &mut actions);
            told(&mut tracker, &mut actions, now + EXECUTES);
            let next = now + gap;
            if let Some(due) = backup.wakes_at().filter(|due| *due < next) {
                backup.due(due, &mut actions);
                told(&mut tracker, &mut actions, due);
            }
            now = next;
            assert!(
                tracker.backlog(now, D) < LITTLE,
                "frames every {gap} ns: {} ns",
                tracker.backlog(now, D)
            );
        }
    }
}

#[test]
fn a_handover_needs_no_lease_but_the_rest() {
    let now = 1_000 * MS;
    for missing in ["storage", "drain", "nothing"] {
        let mut backup = following(now);
        let mut actions = Vec::new();
        backup.message(now, G, Message::Handover, &mut actions);
        assert!(claims(&actions) && actions.contains(&BackupAction::Drain));
        assert!(!backup.may_speak(), "final (PROTOCOL 11)");
        if missing != "storage" {
            backup.claimed(now, &ClaimOutcome::Won { generation: 4 }, &mut actions);
        }
        if missing != "drain" {
            backup.drained(now, &mut actions);
        }
        assert_eq!(live(&actions), missing == "nothing", "{missing}");
    }
    // The same without it: the lease is outwaited.
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.closed(now, "gone", &mut actions);
    backup.claimed(now, &ClaimOutcome::Won { generation: 4 }, &mut actions);
    backup.drained(now, &mut actions);
    assert!(!live(&actions));
}

#[test]
fn a_handover_before_the_grant_is_nonsense() {
    let mut backup = joining(0);
    let mut actions = Vec::new();
    backup.message(0, G, Message::Handover, &mut actions);
    assert!(!claims(&actions));
    assert!(ends_with(&actions, ExitCode::NotEntitled));
}

#[test]
fn a_dismissed_backup_never_asks() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.message(now, G, Message::Dismiss, &mut actions);
    assert!(actions.contains(&BackupAction::Send(Message::Bye)));
    assert!(ends_with(&actions, ExitCode::NotEntitled));
    backup.closed(now, "gone", &mut actions);
    backup.tick(now + 10 * D, &mut actions);
    assert!(!claims(&actions));
}

#[test]
fn who_has_asked_is_not_dismissed() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    backup.closed(now, "gone", &mut actions);
    actions.clear();
    backup.message(now, G, Message::Dismiss, &mut actions);
    assert_eq!(actions, [], "suspicion is final (PROTOCOL 11)");
}

#[test]
fn a_host_says_what_it_reaches_once_and_when_that_changes() {
    let whole = Health {
        disks: vec![true],
        nics: vec![],
    };
    let lost = Health {
        disks: vec![false],
        nics: vec![],
    };
    let mut backup = joining(0);
    let mut actions = Vec::new();
    backup.health(whole.clone(), &mut actions);
    assert_eq!(actions, [], "nobody asks a backup that is joining");
    for chunk in chunk::split(b"the state") {
        backup.message(0, G, Message::State(chunk), &mut actions);
    }
    backup.message(0, G, grant(), &mut actions);
    let said = BackupAction::Send(Message::Health(whole.clone()));
    assert!(actions.contains(&said), "with the grant, it may be asked at once");
    actions.clear();
    backup.health(whole.clone(), &mut actions);
    assert_eq!(actions, [], "it is known");
    let mut backup = following(0);
    for (health, said) in [(&whole, true), (&whole, false), (&lost, true), (&whole, true)] {
        actions.clear();
        backup.health(health.clone(), &mut actions);
        let expected = BackupAction::Send(Message::Health(health.clone()));
        assert_eq!(actions.contains(&expected), said);
    }
}

#[test]
fn the_boot_record_is_kept_when_it_is_whole() {
    let record = vec![7; chunk::CHUNK_BYTES + 1];
    let mut backup = following(0);
    let mut actions = Vec::new();
    for piece in chunk::split(&record) {
        assert!(!actions.iter().any(|action| matches!(action, BackupAction::KeepBoot(_))));
        backup.message(0, G, Message::Boot(piece), &mut actions);
    }
    assert!(actions.contains(&BackupAction::KeepBoot(record)));
}

#[test]
fn of_the_acks_of_one_turn_the_last_one_says_all() {
    let now = 1_000 * MS;
    let mut backup = following(now);
    let mut actions = Vec::new();
    for number in 2..5 {
        let entries = vec![mark(100 + number, 55 + number)];
        backup.message(now, G, Message::Log { number, entries }, &mut actions);
    }
    let acks = |actions: &[BackupAction]| -> Vec<u64> {
        let acks = actions.iter().filter_map(|action| match action {
            BackupAction::Send(Message::Ack(ack)) => Some(ack.frame),
            _ => None,
        });
        acks.collect()
    };
    assert_eq!(acks(&actions), [2, 3, 4]);
    let (others, all) = (actions.len() - 3, only_the_last_ack(actions));
    assert_eq!((acks(&all), all.len()), (vec![4], others + 1));
    assert_eq!(only_the_last_ack(vec![BackupAction::Drain]), [BackupAction::Drain]);
}
