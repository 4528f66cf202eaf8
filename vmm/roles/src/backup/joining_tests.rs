//! Joins: what comes in which order, and what is refused.

use ftvm_schema::entry::Incarnation;
use logging_channel::chunk;
use logging_channel::message::{BLOCKS_UNDER_WAY, Grant};

use super::tests::{G, ME, MS, claims, ends_with, following, grant, joining};
use super::*;

#[test]
fn without_a_whole_state_and_a_grant_it_never_asks() {
    let now = 1_000 * MS;
    let mut actions = Vec::new();
    let mut backup = joining(now);
    backup.closed(now, "reset", &mut actions);
    assert!(ends_with(&actions, ExitCode::NotEntitled) && !claims(&actions));
    actions.clear();
    let mut backup = joining(now);
    backup.message(now, G, grant(), &mut actions);
    assert!(ends_with(&actions, ExitCode::NotEntitled), "a grant without a state");
    actions.clear();
    let mut backup = joining(now);
    for chunk in chunk::split(b"the state") {
        backup.message(now, G, Message::State(chunk), &mut actions);
    }
    backup.closed(now, "reset", &mut actions);
    assert!(
        ends_with(&actions, ExitCode::NotEntitled) && !claims(&actions),
        "a state without a grant"
    );
}

#[test]
fn a_grant_or_state_that_does_not_fit_is_refused() {
    let now = 1_000 * MS;
    let after = |state: &[Message], grant: Message| {
        let (mut backup, mut actions) = (joining(now), Vec::new());
        for message in state.iter().cloned().chain([grant]) {
            backup.message(now, G, message, &mut actions);
        }
        ends_with(&actions, ExitCode::NotEntitled)
    };
    let granted = |change: fn(&mut Grant)| {
        let Message::Grant(mut grant) = grant() else {
            unreachable!()
        };
        change(&mut grant);
        Message::Grant(grant)
    };
    let content = vec![3; chunk::CHUNK_BYTES + 1];
    let whole: Vec<_> = chunk::split(&content).map(Message::State).collect();
    let damaged: Vec<_> = chunk::split(&[1, 2, 3])
        .map(|mut chunk| {
            chunk.bytes[0] ^= 1;
            Message::State(chunk)
        })
        .collect();
    assert!(!after(&whole, granted(|_| {})));
    assert!(after(&whole[..1], granted(|_| {})), "the state is not whole");
    assert!(after(&whole, granted(|grant| grant.incarnation = Incarnation(8))));
    assert!(after(&whole, granted(|grant| grant.generation = Generation(G.0 + 1))));
    assert!(after(&whole, granted(|grant| grant.generation = Generation(G.0 - 1))));
    assert!(after(&damaged, granted(|_| {})), "its checksum is wrong");
    let reason = "no\u{1b}[2J".to_owned();
    let (mut backup, mut actions) = (joining(now), Vec::new());
    backup.message(now, G, Message::Refuse { reason }, &mut actions);
    let said = actions.iter().find_map(|action| match action {
        BackupAction::End { why, .. } => Some(why.as_str()),
        _ => None,
    });
    assert_eq!(said, Some("the primary refuses: no?[2J"));
}

#[test]
fn blocks_are_written_in_order_and_said_to_be_and_not_too_many_wait() {
    let mut backup = joining(0);
    let mut actions = Vec::new();
    let blocks = || Message::Blocks {
        disk: 1,
        numbers: vec![3],
        content: vec![7],
    };
    backup.message(0, G, blocks(), &mut actions);
    backup.message(0, G, Message::FlushBlocks, &mut actions);
    let load = BackupAction::LoadBlocks {
        disk: 1,
        numbers: vec![3],
        content: vec![7],
    };
    assert_eq!(actions, [load, BackupAction::FlushBlocks]);
    for messages in 1..=2 {
        actions.clear();
        backup.blocks_written(JOIN_SILENCE_NS, &mut actions);
        let incarnation = ME;
        assert_eq!(
            actions,
            [BackupAction::Send(Message::BlocksWritten { incarnation, messages })]
        );
    }
    // A slow disk's progress is a sign of life.
    actions.clear();
    backup.tick(2 * JOIN_SILENCE_NS, &mut actions);
    assert_eq!(actions, []);
    for _ in 0..BLOCKS_UNDER_WAY {
        backup.message(0, G, blocks(), &mut actions);
    }
    assert!(!actions.iter().any(|action| matches!(action, BackupAction::End { .. })));
    backup.message(0, G, blocks(), &mut actions);
    let code = ExitCode::NotEntitled;
    let too_many = |action: &BackupAction| matches!(action, BackupAction::End { code: found, why } if *found == code && why.contains("32"));
    assert!(actions.iter().any(too_many), "{actions:?}");
}

#[test]
fn blocks_behind_the_state_are_refused() {
    for late in [
        Message::FlushBlocks,
        Message::Blocks {
            disk: 0,
            numbers: vec![],
            content: vec![],
        },
    ] {
        let mut backup = following(0);
        let mut actions = Vec::new();
        backup.message(0, G, late, &mut actions);
        assert!(
            matches!(
                &actions[..],
                [BackupAction::End {
                    code: ExitCode::NotEntitled,
                    ..
                }]
            ),
            "{actions:?}"
        );
    }
}
