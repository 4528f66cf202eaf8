//! Each test plays one rule of PROTOCOL against the pure core, on both sides of its boundary.

use logging_channel::chunk;
use logging_channel::entry::{Digest, ExitSeq, Input, Mark, OutputSeq};

use super::*;

const MS: u64 = 1_000_000;
const D: u64 = 500 * MS;
const L: u64 = 300 * MS;
const ME: Incarnation = Incarnation(9);
const G: Generation = Generation(3);

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

fn joining(now: u64) -> Backup {
    let config = BackupConfig {
        me: ME,
        guest: 1,
        generation: G,
        detection_ns: D,
        lease_ns: L,
    };
    Backup::new(config, now)
}

fn grant() -> Message {
    Message::Grant(Grant {
        generation: G,
        incarnation: ME,
        at: at(100),
        digest: Digest::default(),
        outputs: OutputSeq(0),
    })
}

/// A backup that follows from exit 100 and has acked log frame 1 at `now`.
fn following(now: u64) -> Backup {
    let mut backup = joining(now);
    let mut actions = Vec::new();
    for chunk in chunk::split(b"the state") {
        backup.message(now, G, Message::State(chunk), &mut actions);
    }
    assert!(actions.contains(&Action::Load(b"the state".to_vec())));
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
        Action::Send(Message::Ack(ack)) => Some((ack.frame, ack.received, ack.echo_ns)),
        _ => None,
    });
    assert_eq!(acked, Some((1, at(100), 55)));
    backup
}

fn claims(actions: &[Action]) -> bool {
    actions.contains(&Action::Claim(G))
}

fn live(actions: &[Action]) -> bool {
    actions.contains(&Action::GoLive(Generation(4)))
}

fn ends_with(actions: &[Action], expected: u8) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::End { code, .. } if *code == expected))
}

#[test]
fn going_live_needs_lease_storage_and_drain() {
    let now = 1_000 * MS;
    let won = Outcome::Won { generation: 4 };
    for missing in ["lease", "storage", "drain", "nothing"] {
        let mut backup = following(now);
        let mut actions = Vec::new();
        backup.closed(now, "reset", &mut actions);
        assert!(claims(&actions) && actions.contains(&Action::Drain));
        if missing != "storage" {
            backup.claimed(now + MS, &won, &mut actions);
        }
        if missing != "drain" {
            backup.drained(now + MS, &mut actions);
        }
        let over = backup.lease_ends().unwrap_or(0);
        assert!(over > now + L, "a lease, and the drift of two clocks");
        backup.tick(if missing == "lease" { over - 1 } else { over }, &mut actions);
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
        &Outcome::Lost {
            generation: 4,
            owner: 7,
        },
        &mut actions,
    );
    backup.tick(now + 10 * L, &mut actions);
    assert!(ends_with(&actions, EXIT_LOST) && !live(&actions));
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
fn without_a_whole_state_and_a_grant_it_never_asks() {
    let now = 1_000 * MS;
    let mut actions = Vec::new();
    let mut backup = joining(now);
    backup.closed(now, "reset", &mut actions);
    assert!(ends_with(&actions, EXIT_NOT_ENTITLED) && !claims(&actions));
    actions.clear();
    let mut backup = joining(now);
    backup.message(now, G, grant(), &mut actions);
    assert!(ends_with(&actions, EXIT_NOT_ENTITLED), "a grant without a state");
    actions.clear();
    let mut backup = joining(now);
    for chunk in chunk::split(b"the state") {
        backup.message(now, G, Message::State(chunk), &mut actions);
    }
    backup.closed(now, "reset", &mut actions);
    assert!(
        ends_with(&actions, EXIT_NOT_ENTITLED) && !claims(&actions),
        "a state without a grant"
    );
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
            .any(|action| matches!(action, Action::Send(Message::Diverged { .. })))
    );
    backup.closed(now, "reset", &mut actions);
    backup.tick(now + 2 * D, &mut actions);
    assert!(ends_with(&actions, EXIT_NOT_ENTITLED) && !claims(&actions));
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
    assert!(ends_with(&actions, 0));
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
                .any(|action| matches!(action, Action::Send(Message::Ack(_)) | Action::Deliver(_)))
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
            Action::Send(Message::Ack(ack)) => Some(ack.executed),
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
    assert_eq!(executed(&mut backup, now + EXECUTED_ACK - 1, 110), 0);
    assert_eq!(executed(&mut backup, now + EXECUTED_ACK, 111), 1);
    assert_eq!(executed(&mut backup, now + 2 * EXECUTED_ACK - 1, 112), 0);
    assert_eq!(executed(&mut backup, now + 2 * EXECUTED_ACK, 130), 1);
    assert_eq!(executed(&mut backup, now + 9 * EXECUTED_ACK, 130), 0, "nothing new");
}
