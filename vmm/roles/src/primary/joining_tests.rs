//! Joins, complete and given up.

use ftvm_schema::entry::Incarnation;
use logging_channel::message::Ack;

use super::super::clone::Blocks;
use super::tests::{BACKUP, MS, at, claims, clone_pages, mark, output, terms};
use super::*;

#[test]
fn a_joining_backup_may_go_before_the_grant_and_costs_nothing() {
    let mut primary = Primary::new(terms());
    let mut actions = Vec::new();
    primary.joined(0, BACKUP, &mut actions);
    primary.hold(output(at(5, 0), 0));
    assert!(primary.next_release(0).is_some(), "nothing is granted: outputs flow");
    primary.closed(0, "gone", &mut actions);
    assert!(!claims(&actions));
    assert!(primary.may_join().is_ok());
    primary.dirty(0, vec![], &mut actions);
    primary.joined(0, BACKUP, &mut actions);
    clone_pages(&mut primary, 0, &mut actions);
    primary.settled(0, 0, &mut actions);
    primary.state_saved(0, b"state", mark(at(9, 0), 1), 0, &mut actions);
    primary.closed(0, "gone", &mut actions);
    assert!(claims(&actions), "from the grant on leaving needs the test-and-set");
}

#[test]
fn a_backup_is_granted_nothing_while_an_unguarded_write_is_in_flight() {
    let mut primary = Primary::new(terms());
    let mut actions = Vec::new();
    assert_eq!(primary.may_write(0), Writes::Freely);
    primary.joined(0, BACKUP, &mut actions);
    assert_eq!(
        primary.may_write(0),
        Writes::Freely,
        "the guest runs on during the rounds"
    );
    primary.settled(0, 0, &mut actions);
    assert!(
        !actions.contains(&PrimaryAction::SaveState),
        "nor is its state wanted yet"
    );
    clone_pages(&mut primary, 0, &mut actions);
    assert_eq!(primary.may_write(0), Writes::Settling, "now none may begin");
    primary.settled(0, 1, &mut actions);
    assert!(!actions.contains(&PrimaryAction::SaveState));
    primary.settled(1, 0, &mut actions);
    primary.settled(2, 0, &mut actions);
    let asked = actions.iter().filter(|action| **action == PrimaryAction::SaveState);
    assert_eq!(asked.count(), 1);
}

#[test]
fn a_joining_backup_that_falls_silent_is_given_up() {
    let mut primary = Primary::new(terms());
    let mut actions = Vec::new();
    primary.joined(0, BACKUP, &mut actions);
    primary.dirty(MS, vec![], &mut actions);
    let alive = Message::Ack(Ack {
        incarnation: BACKUP,
        ..Ack::default()
    });
    primary.message(5 * MS, Generation(1), alive, &mut actions);
    primary.tick(5 * MS + JOIN_SILENCE_NS, &mut actions);
    assert_eq!(primary.protection(), Protection::Starting);
    primary.tick(5 * MS + JOIN_SILENCE_NS + 1, &mut actions);
    assert_eq!(primary.protection(), Protection::NotProtected);
    assert!(actions.contains(&PrimaryAction::Close) && !claims(&actions));
    // What its sender says late belongs to nobody; nor do pages of one backup count for the next.
    actions.clear();
    primary.pages_sent(0, BACKUP, 1, 1, &mut actions);
    primary.joined(0, Incarnation(77), &mut actions);
    primary.dirty(0, vec![], &mut actions);
    actions.clear();
    primary.pages_sent(0, BACKUP, 1, 1, &mut actions);
    assert_eq!(actions, []);
}

#[test]
fn what_was_asked_for_a_backup_that_has_gone_is_not_the_next_ones() {
    let now = 1_000 * MS;
    let mut primary = Primary::new(terms());
    let mut actions = Vec::new();
    let sends = |actions: &mut Vec<PrimaryAction>| {
        let sends = |action: &PrimaryAction| matches!(action, PrimaryAction::SendPages { .. });
        std::mem::take(actions).iter().filter(|action| sends(action)).count()
    };
    // The first one goes while the vCPU thread still owes an answer; the answer comes in the next one's rounds.
    primary.joined(now, Incarnation(8), &mut actions);
    primary.closed(now, "gone", &mut actions);
    primary.joined(now, BACKUP, &mut actions);
    actions.clear();
    primary.dirty(now, vec![1], &mut actions);
    assert_eq!(sends(&mut actions), 0, "the answer for the one that has gone");
    primary.dirty(now, vec![2], &mut actions);
    assert_eq!(sends(&mut actions), 1, "its own");

    // It goes too, after its state has been asked for; that comes in the third one's rounds.
    primary.pages_sent(now, BACKUP, 1, 100, &mut actions);
    primary.dirty(now, vec![3], &mut actions);
    primary.pages_sent(now, BACKUP, 1, 100, &mut actions);
    primary.settled(now, 0, &mut actions);
    assert!(actions.contains(&PrimaryAction::SaveState));
    primary.closed(now, "gone", &mut actions);
    primary.joined(now, BACKUP, &mut actions);
    actions.clear();
    primary.state_saved(now, b"state", mark(at(100, 0), 0), 0, &mut actions);
    assert_eq!(actions, [PrimaryAction::StopLogging]);
    assert_eq!(primary.protection(), Protection::Starting);
    actions = vec![PrimaryAction::TakeDirty];
    clone_pages(&mut primary, now, &mut actions);
    primary.settled(now, 0, &mut actions);
    primary.state_saved(now, b"state", mark(at(100, 0), 0), 0, &mut actions);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, PrimaryAction::Send(Message::Grant(_))))
    );
}

#[test]
fn private_disks_are_level_before_the_state_is_saved() {
    let now = 1_000 * MS;
    let mut primary = Primary::new(terms()).with_private_disks(1);
    let mut actions = Vec::new();
    let blocks = |blocks| PrimaryAction::SendBlocks { to: BACKUP, blocks };
    primary.joined(now, BACKUP, &mut actions);
    assert!(actions.contains(&blocks(Blocks::All)) && !actions.contains(&PrimaryAction::TakeDirty));
    for pages in [vec![], vec![1]] {
        actions.clear();
        primary.blocks_sent(now, Incarnation(8), 1 << 16, &mut actions);
        assert_eq!(actions, [], "said of another backup");
        assert_eq!(primary.may_write(now), Writes::Freely);
        primary.blocks_sent(now, BACKUP, 1 << 16, &mut actions);
        assert_eq!(actions, [PrimaryAction::TakeDirty], "a round's pages follow its blocks");
        actions.clear();
        primary.dirty(now, pages, &mut actions);
        primary.pages_sent(now, BACKUP, 1, 100, &mut actions);
    }
    // The rounds are over: nothing is written any more, and when nothing is in flight the last blocks go.
    assert_eq!(primary.may_write(now), Writes::Settling);
    actions.clear();
    primary.settled(now, 1, &mut actions);
    assert_eq!(actions, []);
    primary.settled(now, 0, &mut actions);
    assert_eq!(actions, [blocks(Blocks::Written)]);
    assert_eq!(primary.may_write(now), Writes::Settling);
    actions.clear();
    primary.settled(now, 0, &mut actions);
    assert_eq!(actions, [], "the state is not asked for before they are written");
    primary.blocks_sent(now, BACKUP, 1 << 16, &mut actions);
    assert_eq!(actions, [PrimaryAction::SaveState]);
    assert_eq!(primary.may_write(now), Writes::Settling);
    primary.state_saved(now, b"state", mark(at(100, 0), 0), 0, &mut actions);
    let mirrored = |action: &PrimaryAction| {
        matches!(
            action,
            PrimaryAction::Report(Event::Cloned {
                disk_bytes: 0x3_0000,
                rounds: 2,
                ..
            })
        )
    };
    assert!(actions.iter().any(mirrored), "{actions:?}");
    assert_ne!(primary.may_write(now), Writes::Settling);
}

#[test]
fn a_join_with_private_disks_that_is_given_up_leaves_nothing_behind() {
    let now = 1_000 * MS;
    let mut primary = Primary::new(terms()).with_private_disks(1);
    let mut actions = Vec::new();
    primary.joined(now, Incarnation(8), &mut actions);
    primary.closed(now, "gone", &mut actions);
    assert_eq!(primary.may_write(now), Writes::Freely);
    actions.clear();
    primary.joined(now, BACKUP, &mut actions);
    let all = PrimaryAction::SendBlocks {
        to: BACKUP,
        blocks: Blocks::All,
    };
    assert!(actions.contains(&all), "the next one has nothing");
    actions.clear();
    primary.blocks_sent(now, Incarnation(8), 1, &mut actions);
    assert_eq!(actions, []);
}

#[test]
fn a_guest_that_is_slowed_for_its_clone_runs_freely_when_that_is_over() {
    let now = 1_000 * MS;
    for given_up in [false, true] {
        let mut primary = Primary::new(terms());
        let mut actions = Vec::new();
        primary.joined(now, BACKUP, &mut actions);
        while actions.contains(&PrimaryAction::TakeDirty) {
            assert!(!actions.contains(&PrimaryAction::Pace(0)));
            actions.retain(|action| matches!(action, PrimaryAction::Pace(_)));
            primary.dirty(now, (0..9000).collect(), &mut actions);
            primary.pages_sent(now, BACKUP, 9000, 9000 << 12, &mut actions);
        }
        assert_eq!(actions[..3], [500, 800, 900].map(PrimaryAction::Pace));
        actions.clear();
        if given_up {
            primary.closed(now, "gone", &mut actions);
        } else {
            primary.settled(now, 0, &mut actions);
            assert_eq!(actions, [PrimaryAction::SaveState], "it stays slow until then");
            primary.state_saved(now, b"state", mark(at(100, 0), 0), 0, &mut actions);
            let told = |action: &PrimaryAction| {
                matches!(
                    action,
                    PrimaryAction::Report(Event::Cloned {
                        slowed_permille: 900,
                        ..
                    })
                )
            };
            assert!(actions.iter().any(told), "{actions:?}");
        }
        assert!(actions.contains(&PrimaryAction::Pace(0)));
    }
}
