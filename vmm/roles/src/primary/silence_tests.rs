//! Disks that do not answer: what is said, and when the guest goes elsewhere.

use logging_channel::message::Health;

use super::super::disks::UnderWay;
use super::super::event::Event;
use super::super::operation::Path;
use super::tests::{MS, at, output, paired, terms};
use super::*;
use crate::host_event::Control;

const NOW: u64 = 100_000 * MS;

fn asked(disk: u8, effect: LateEffect, age: u64) -> UnderWay {
    UnderWay {
        disk,
        effect,
        since_ns: NOW - age,
    }
}

/// A pair whose backup reaches everything, or not its disk.
fn pair_with(disk: bool) -> Primary {
    let mut primary = paired(NOW);
    let health = Message::Health(Health {
        disks: vec![disk],
        nics: vec![],
    });
    primary.message(NOW, Generation(1), health, &mut Vec::new());
    primary
}

/// What comes of it: what is said of each disk (whether a write hangs, whether the guest is handed over), and whether the
/// guest is told to stand still.
fn looked(primary: &mut Primary, now: u64, under_way: &[UnderWay]) -> (Vec<(u8, bool, bool)>, bool) {
    let mut actions = Vec::new();
    primary.disks_under_way(now, under_way, &mut actions);
    let said = actions.iter().filter_map(|action| match action {
        PrimaryAction::Report(Event::DiskSilent {
            disk,
            write,
            hands_over,
            ..
        }) => Some((*disk, *write, *hands_over)),
        _ => None,
    });
    (
        said.collect(),
        actions.contains(&PrimaryAction::Order(Control::StandStill)),
    )
}

#[test]
fn a_disk_that_does_not_answer_a_read_hands_over_to_a_healthier_backup() {
    for (healthy, age, expected) in [
        (true, DISK_SILENCE - 1, (vec![], false)),
        (true, DISK_SILENCE, (vec![(0, false, true)], true)),
        (false, DISK_SILENCE, (vec![(0, false, false)], false)),
    ] {
        let mut primary = pair_with(healthy);
        let calls = [asked(0, LateEffect::Nothing, age)];
        assert_eq!(looked(&mut primary, NOW, &calls), expected);
        assert_eq!(looked(&mut primary, NOW, &calls), (vec![], false), "said and done once");
    }
}

#[test]
fn a_write_that_may_still_land_keeps_the_guest_here() {
    let mut primary = pair_with(true);
    let read = asked(0, LateEffect::Nothing, DISK_SILENCE);
    let write = asked(1, LateEffect::Lands, DISK_SILENCE);
    let said = vec![(0, false, false), (1, true, false)];
    assert_eq!(looked(&mut primary, NOW, &[read, write]), (said, false));
    assert_eq!(primary.silent_disks().collect::<Vec<_>>(), [0, 1]);
    // It ends; the read does not.
    let mut actions = Vec::new();
    primary.disks_under_way(NOW + MS, &[read], &mut actions);
    assert!(actions.contains(&PrimaryAction::Report(Event::DiskAnswers { disk: 1 })));
    assert!(actions.contains(&PrimaryAction::Order(Control::StandStill)));
    assert_eq!(primary.silent_disks().collect::<Vec<_>>(), [0]);
    // Everything has answered.
    actions.clear();
    primary.disks_under_way(NOW + 2 * MS, &[], &mut actions);
    assert_eq!(actions, [PrimaryAction::Report(Event::DiskAnswers { disk: 0 })]);
}

#[test]
fn a_write_of_a_disk_that_was_only_read_is_said_too() {
    let mut primary = pair_with(false);
    let read = asked(0, LateEffect::Nothing, DISK_SILENCE);
    let write = asked(0, LateEffect::Lands, DISK_SILENCE);
    assert_eq!(looked(&mut primary, NOW, &[read]), (vec![(0, false, false)], false));
    assert_eq!(
        looked(&mut primary, NOW, &[write, read]),
        (vec![(0, true, false)], false)
    );
}

#[test]
fn a_backup_that_recovers_takes_over_later() {
    let mut primary = pair_with(false);
    let read = [asked(0, LateEffect::Nothing, DISK_SILENCE)];
    assert_eq!(looked(&mut primary, NOW, &read), (vec![(0, false, false)], false));
    let health = Message::Health(Health::default());
    primary.message(NOW, Generation(1), health, &mut Vec::new());
    assert_eq!(looked(&mut primary, NOW + MS, &read), (vec![(0, false, true)], true));
}

#[test]
fn a_handover_that_cannot_end_is_not_tried_again_at_once() {
    let mut primary = pair_with(true);
    let read = [asked(0, LateEffect::Nothing, DISK_SILENCE)];
    assert!(looked(&mut primary, NOW, &read).1);
    primary.hold(output(at(200, 0), 0));
    let given_up = NOW + 5_001 * MS;
    let mut actions = Vec::new();
    primary.settled(given_up, 1, &mut actions);
    assert!(actions.contains(&PrimaryAction::Order(Control::GoOn)), "{actions:?}");
    assert_eq!(looked(&mut primary, given_up + CALM - 1, &read), (vec![], false));
    let health = |primary: &mut Primary, now| primary.path_lost(now, Path::Disk(1), "EIO", &mut Vec::new());
    assert_eq!(health(&mut primary, given_up + CALM - 1), FailedRequest::Told);
    assert_eq!(
        looked(&mut primary, given_up + CALM, &read),
        (vec![(0, false, true)], true)
    );
}

#[test]
fn nobody_joins_while_a_write_may_still_land() {
    let mut primary = Primary::new(terms());
    let look = |primary: &mut Primary, effect| {
        primary.disks_under_way(NOW, &[asked(0, effect, DISK_SILENCE)], &mut Vec::new());
        primary.may_join()
    };
    assert_eq!(
        look(&mut primary, LateEffect::Lands),
        Err(NotJoinable::WriteHangs { disk: 0 })
    );
    assert_eq!(look(&mut primary, LateEffect::Nothing), Ok(()));
}
