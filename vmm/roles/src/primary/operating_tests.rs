//! What operators ask: each operation where it is done and where it is refused.

use ftvm_schema::entry::{Intervention, LogEntry};
use logging_channel::message::Health;
use shared_disk::arbiter::ClaimOutcome;

use super::super::exit_code::ExitCode;
use super::super::operation::{Answer, Operation, Path, Unprotected};
use super::tests::{BACKUP, D, MS, ack, at, clone_pages, mark, output, paired, terms};
use super::*;
use crate::host_event::Control;

const NOW: u64 = 1_000 * MS;

fn alone() -> Primary {
    Primary::new(terms())
}

/// Asks; the answer, if it has come at once.
fn ask(primary: &mut Primary, operation: Operation, actions: &mut Vec<PrimaryAction>) -> Option<Answer> {
    actions.clear();
    primary.operate(NOW, 5, operation, actions);
    answered(actions)
}

fn answered(actions: &[PrimaryAction]) -> Option<Answer> {
    actions.iter().find_map(|action| match action {
        PrimaryAction::Answer { ticket: 5, answer } => Some(answer.clone()),
        _ => None,
    })
}

fn refused(primary: &mut Primary, operation: Operation, why: &str) {
    let mut actions = Vec::new();
    let answer = ask(primary, operation, &mut actions);
    assert!(
        matches!(&answer, Some(Answer::Failed(text)) if text.contains(why)),
        "{}: {answer:?} should say '{why}'",
        operation.name()
    );
    assert_eq!(actions.len(), 1, "nothing else happens");
}

fn sends(actions: &[PrimaryAction], message: &Message) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, PrimaryAction::Send(sent) if sent == message))
}

fn claims(actions: &[PrimaryAction]) -> bool {
    actions.contains(&PrimaryAction::Claim(Generation(1)))
}

fn ends(actions: &[PrimaryAction]) -> Option<ExitCode> {
    actions.iter().find_map(|action| match action {
        PrimaryAction::End { code, .. } => Some(*code),
        _ => None,
    })
}

/// A guest that has been asked to stand still, with output 0 at exit 110 held.
fn handing_over() -> Primary {
    let mut primary = paired(NOW);
    let mut actions = Vec::new();
    assert_eq!(ask(&mut primary, Operation::Failover, &mut actions), None);
    assert!(actions.contains(&PrimaryAction::Order(Control::StandStill)));
    primary.log(NOW, vec![LogEntry::Mark(mark(at(110, 0), 1))], &mut actions);
    primary.hold(output(at(110, 0), 0));
    primary
}

/// The guest is handed over: everything has left.
fn handed_over() -> Primary {
    let mut primary = handing_over();
    let mut actions = Vec::new();
    primary.obeyed(Control::StandStill, &mut actions);
    primary.message(NOW, Generation(1), ack(2, at(110, 0), NOW), &mut actions);
    let left = primary.next_release(NOW).expect("acked");
    primary.call_returned(left.seq);
    primary.settled(NOW, 0, &mut actions);
    assert!(sends(&actions, &Message::Handover));
    primary
}

#[test]
fn the_handover_waits_for_everything_to_leave() {
    for missing in ["standing", "ack", "output", "write", "nothing"] {
        let mut primary = handing_over();
        let mut actions = Vec::new();
        if missing != "standing" {
            primary.obeyed(Control::StandStill, &mut actions);
        }
        if missing != "ack" {
            primary.message(NOW, Generation(1), ack(2, at(110, 0), NOW), &mut actions);
        }
        if missing != "output"
            && let Some(left) = primary.next_release(NOW)
        {
            primary.call_returned(left.seq);
        }
        actions.clear();
        primary.settled(NOW, usize::from(missing == "write"), &mut actions);
        assert_eq!(sends(&actions, &Message::Handover), missing == "nothing", "{missing}");
        let told = actions.iter().position(|action| {
            matches!(action, PrimaryAction::Send(Message::Log { entries, .. })
                if entries.contains(&LogEntry::Released { through: OutputSeq(1) }))
        });
        assert_eq!(
            told.is_some(),
            missing == "nothing",
            "the backup hears what has left, first"
        );
    }
}

#[test]
fn a_handover_that_takes_too_long_is_given_up() {
    let wait = 5_000 * MS;
    for late in [0, 1] {
        let mut primary = handing_over();
        let mut actions = Vec::new();
        primary.obeyed(Control::StandStill, &mut actions);
        primary.settled(NOW + wait + late, 1, &mut actions);
        let gone_on =
            actions.contains(&PrimaryAction::Order(Control::GoOn)) && actions.contains(&PrimaryAction::TellFailures);
        assert_eq!(gone_on, late == 1);
        assert_eq!(answered(&actions).is_some(), late == 1);
        if late == 1 {
            assert_eq!(primary.protection(), Protection::Protected);
            assert_eq!(
                ask(&mut primary, Operation::Failover, &mut actions),
                None,
                "it may be tried again"
            );
        }
    }
}

fn suspects(actions: &[PrimaryAction]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, PrimaryAction::Report(Event::Suspected { .. })))
}

#[test]
fn who_has_handed_over_releases_nothing_and_ends_when_the_other_lives() {
    let mut primary = handed_over();
    primary.hold(output(at(110, 0), 1));
    assert_eq!(primary.next_release(NOW), None);
    assert_eq!(primary.may_write(NOW), Writes::NotNow);
    assert!(primary.may_join().is_err());
    refused(&mut primary, Operation::Pause, "under way");
    let mut actions = Vec::new();
    let heartbeat = Heartbeat {
        guest: 1,
        generation: Generation(2),
        incarnation: BACKUP,
        number: 1,
        sent_ns: 0,
        echo_ns: 0,
    };
    primary.heartbeat(NOW, &heartbeat, &mut actions);
    assert_eq!(ends(&actions), Some(ExitCode::HandedOver));
    assert!(matches!(answered(&actions), Some(Answer::Done(_))));
}

#[test]
fn a_backup_that_does_not_take_over_costs_a_generation() {
    for loses in [false, true] {
        for silent in [false, true] {
            let mut primary = handed_over();
            let mut actions = Vec::new();
            if silent {
                primary.tick(NOW + 2 * D, &mut actions);
                assert!(!claims(&actions), "not one moment early");
                primary.tick(NOW + 2 * D + 1, &mut actions);
            } else {
                primary.closed(NOW, "gone", &mut actions);
            }
            assert!(claims(&actions));
            assert_eq!(suspects(&actions), silent, "who goes live closes the connection");
            assert!(
                !actions.contains(&PrimaryAction::Order(Control::GoOn)),
                "it may be live"
            );
            assert_eq!(primary.next_release(NOW), None);
            actions.clear();
            if loses {
                let lost = ClaimOutcome::Lost {
                    generation: 2,
                    owner: 9,
                };
                primary.claimed(NOW, &lost, &mut actions);
                assert_eq!(ends(&actions), Some(ExitCode::HandedOver));
                assert!(matches!(answered(&actions), Some(Answer::Done(_))));
            } else {
                primary.claimed(NOW, &ClaimOutcome::Won { generation: 2 }, &mut actions);
                assert_eq!(ends(&actions), None);
                assert!(actions.contains(&PrimaryAction::Order(Control::GoOn)));
                assert!(actions.contains(&PrimaryAction::TellFailures));
                assert!(matches!(answered(&actions), Some(Answer::Failed(_))));
                assert!(primary.may_join().is_ok());
            }
        }
    }
}

#[test]
fn a_backup_that_is_lost_while_the_guest_stops_lets_it_go_on() {
    let mut primary = handing_over();
    let mut actions = Vec::new();
    primary.closed(NOW, "gone", &mut actions);
    assert!(actions.contains(&PrimaryAction::Order(Control::GoOn)));
    assert!(claims(&actions));
    let lost = ClaimOutcome::Lost {
        generation: 2,
        owner: 9,
    };
    primary.claimed(NOW, &lost, &mut actions);
    assert_eq!(ends(&actions), Some(ExitCode::Lost), "that was no handover");
}

#[test]
fn a_dismissed_backup_is_gone_only_with_the_test_and_set() {
    for operation in [Operation::SuspendProtection, Operation::RestartBackup] {
        let mut primary = paired(NOW);
        let mut actions = Vec::new();
        assert_eq!(ask(&mut primary, operation, &mut actions), None);
        assert!(sends(&actions, &Message::Dismiss));
        assert_eq!(primary.protection(), Protection::NotProtected);
        primary.hold(output(at(105, 0), 0));
        refused(&mut primary, Operation::Failover, "under way");
        actions.clear();
        primary.message(NOW, Generation(1), Message::Bye, &mut actions);
        assert!(claims(&actions));
        assert_eq!(primary.next_release(NOW), None, "not before the answer (PROTOCOL 11)");
        primary.claimed(NOW, &ClaimOutcome::Won { generation: 2 }, &mut actions);
        assert!(matches!(answered(&actions), Some(Answer::Done(_))));
        assert!(primary.next_release(NOW).is_some());
        assert_eq!(primary.may_join().is_ok(), operation == Operation::RestartBackup);
        let why = match operation {
            Operation::RestartBackup => Unprotected::NeedBackup,
            _ => Unprotected::Suspended,
        };
        assert_eq!(primary.unprotected(), Some(why));
    }
}

#[test]
fn a_bye_without_a_dismissal_is_no_way_to_leave() {
    let mut primary = paired(NOW);
    let mut actions = Vec::new();
    primary.message(NOW, Generation(1), Message::Bye, &mut actions);
    assert!(claims(&actions), "taken for a fault of the backup's");
    assert!(suspects(&actions));
}

#[test]
fn a_dismissed_backup_that_does_not_answer_is_suspected() {
    let mut primary = paired(NOW);
    let mut actions = Vec::new();
    ask(&mut primary, Operation::SuspendProtection, &mut actions);
    actions.clear();
    let mut now = NOW;
    while !claims(&actions) {
        now += D / 8;
        assert!(now <= NOW + 2 * D, "within the detection time");
        primary.tick(now, &mut actions);
    }
    primary.claimed(now, &ClaimOutcome::Won { generation: 2 }, &mut actions);
    assert!(matches!(answered(&actions), Some(Answer::Done(_))));
    assert!(primary.may_join().is_err());
}

#[test]
fn a_joining_backup_is_sent_away_without_ado() {
    let mut primary = alone();
    let mut actions = Vec::new();
    primary.joined(NOW, BACKUP, &mut actions);
    assert!(matches!(
        ask(&mut primary, Operation::SuspendProtection, &mut actions),
        Some(Answer::Done(_))
    ));
    assert!(actions.contains(&PrimaryAction::Close));
    assert!(!claims(&actions), "nothing was granted");
    assert!(primary.may_join().is_err());
    refused(&mut primary, Operation::SuspendProtection, "already");
    assert!(matches!(
        ask(&mut primary, Operation::ResumeProtection, &mut actions),
        Some(Answer::Done(_))
    ));
    assert!(primary.may_join().is_ok());
    refused(&mut primary, Operation::ResumeProtection, "not suspended");
}

#[test]
fn without_a_backup_there_is_nothing_to_hand_over_to() {
    for operation in [Operation::Failover, Operation::TestFailover, Operation::RestartBackup] {
        refused(&mut alone(), operation, "no backup");
    }
    let mut primary = alone();
    let mut actions = Vec::new();
    primary.joined(NOW, BACKUP, &mut actions);
    clone_pages(&mut primary, NOW, &mut actions);
    primary.settled(NOW, 0, &mut actions);
    primary.state_saved(NOW, b"state", mark(at(100, 0), 0), 0, &mut actions);
    for operation in [Operation::Failover, Operation::TestFailover] {
        refused(&mut primary, operation, "still receiving");
    }
    primary.message(NOW, Generation(1), ack(1, at(100, 0), NOW), &mut actions);
    assert!(matches!(
        ask(&mut primary, Operation::TestFailover, &mut actions),
        Some(Answer::Done(_))
    ));
    assert!(actions.contains(&PrimaryAction::Die));
}

#[test]
fn while_it_is_decided_who_lives_nothing_is_done() {
    let mut primary = paired(NOW);
    primary.closed(NOW, "gone", &mut Vec::new());
    for operation in [
        Operation::PowerOff,
        Operation::Pause,
        Operation::Failover,
        Operation::SuspendProtection,
    ] {
        refused(&mut primary, operation, "finding out");
    }
}

#[test]
fn a_pause_is_over_when_it_is_resumed() {
    let mut primary = paired(NOW);
    let mut actions = Vec::new();
    refused(&mut primary, Operation::Resume, "not paused");
    for (operation, what, paused) in [
        (Operation::Pause, Intervention::Pause, true),
        (Operation::Resume, Intervention::Resume, false),
    ] {
        assert_eq!(ask(&mut primary, operation, &mut actions), None);
        let order = Control::Intervene(what);
        assert!(actions.contains(&PrimaryAction::Order(order)));
        refused(&mut primary, Operation::PowerOff, "under way");
        primary.obeyed(order, &mut actions);
        assert!(matches!(answered(&actions), Some(Answer::Done(_))));
        assert_eq!(primary.paused(), paused);
        if paused {
            refused(&mut primary, Operation::Pause, "already");
        }
    }
    // One that comes from elsewhere paused can be resumed.
    let mut primary = alone().with(BootCell::default(), true);
    assert_eq!(ask(&mut primary, Operation::Resume, &mut actions), None);
}

#[test]
fn a_reset_needs_the_boot_record_on_both_sides() {
    refused(&mut alone(), Operation::Reset, "does not have the state");
    let boot = BootCell::default();
    let mut primary = paired(NOW).with(boot.clone(), false);
    refused(&mut primary, Operation::Reset, "does not have the state");
    boot.set(vec![1; 300 << 10]).unwrap();
    let mut chunks = 0;
    for tick in 1.. {
        refused(&mut primary, Operation::Reset, "still receiving the state from which");
        let mut actions = Vec::new();
        let now = NOW + tick * MS;
        primary.tick(now, &mut actions);
        match actions
            .iter()
            .find(|action| matches!(action, PrimaryAction::Send(Message::Boot(_))))
        {
            Some(_) => chunks += 1,
            None => break,
        }
    }
    assert_eq!(chunks, 2);
    let mut actions = Vec::new();
    assert_eq!(ask(&mut primary, Operation::Reset, &mut actions), None);
    assert!(actions.contains(&PrimaryAction::Order(Control::Intervene(Intervention::Reset))));
}

#[test]
fn a_reset_does_not_come_between_a_saved_state_and_the_backup_that_gets_it() {
    let boot = BootCell::default();
    boot.set(vec![1; 300 << 10]).unwrap();
    let mut primary = alone().with(boot, false);
    let mut actions = Vec::new();
    primary.joined(NOW, BACKUP, &mut actions);
    clone_pages(&mut primary, NOW, &mut actions);
    // Before the state is asked for, a reset is in it.
    assert_eq!(ask(&mut primary, Operation::Reset, &mut actions), None);
    primary.obeyed(Control::Intervene(Intervention::Reset), &mut actions);
    actions.clear();
    primary.settled(NOW, 0, &mut actions);
    assert!(actions.contains(&PrimaryAction::SaveState));
    refused(&mut primary, Operation::Reset, "about to follow");
    primary.state_saved(NOW, b"state", mark(at(100, 0), 0), 0, &mut actions);
    refused(&mut primary, Operation::Reset, "still receiving the state from which");
}

#[test]
fn a_power_off_is_over_when_the_guest_is() {
    let mut primary = alone();
    let mut actions = Vec::new();
    assert_eq!(ask(&mut primary, Operation::PowerOff, &mut actions), None);
    assert!(actions.contains(&PrimaryAction::PowerOff));
    primary.guest_ended(NOW, EndReason::Stopped, &mut actions);
    assert!(matches!(answered(&actions), Some(Answer::Done(_))));
    assert_eq!(ends(&actions), Some(ExitCode::Success));
    refused(&mut primary, Operation::Pause, "has ended");
}

#[test]
fn a_guest_that_ends_ends_what_is_under_way() {
    let mut primary = handing_over();
    let mut actions = Vec::new();
    primary.guest_ended(NOW, EndReason::Stopped, &mut actions);
    assert!(matches!(answered(&actions), Some(Answer::Failed(_))));
    primary.obeyed(Control::StandStill, &mut actions);
    primary.message(NOW, Generation(1), ack(2, at(110, 0), NOW), &mut actions);
    primary.next_release(NOW);
    actions.clear();
    primary.settled(NOW, 0, &mut actions);
    assert!(!sends(&actions, &Message::Handover));
}

#[test]
fn a_lost_path_hands_over_only_to_a_healthier_backup() {
    let health = |disk, nic| {
        Message::Health(Health {
            disks: vec![disk],
            nics: vec![nic],
        })
    };
    for (said, hands_over) in [
        (None, false),
        (Some(health(false, true)), false),
        (Some(health(true, false)), false),
        (Some(health(true, true)), true),
    ] {
        let mut primary = paired(NOW);
        let mut actions = Vec::new();
        if let Some(message) = said {
            primary.message(NOW, Generation(1), message, &mut actions);
        }
        let expected = if hands_over {
            FailedRequest::Withheld
        } else {
            FailedRequest::Told
        };
        assert_eq!(primary.path_lost(NOW, Path::Disk(0), "EIO", &mut actions), expected);
        assert_eq!(actions.contains(&PrimaryAction::Order(Control::StandStill)), hands_over);
        // A second one while the guest stops is withheld too, and begins nothing.
        actions.clear();
        assert_eq!(primary.path_lost(NOW, Path::Disk(0), "EIO", &mut actions), expected);
        assert!(actions.is_empty(), "{actions:?}");
    }
    assert_eq!(
        alone().path_lost(NOW, Path::Disk(0), "EIO", &mut Vec::new()),
        FailedRequest::Told
    );
}

#[test]
fn what_is_lost_on_both_hosts_does_not_go_to_and_fro() {
    let calm = 60_000 * MS;
    for (at, expected) in [
        (NOW + calm - 1, FailedRequest::Told),
        (NOW + calm, FailedRequest::Withheld),
    ] {
        let mut primary = paired(NOW);
        primary.came_over(NOW);
        let mut actions = Vec::new();
        primary.message(NOW, Generation(1), Message::Health(Health::default()), &mut actions);
        assert_eq!(primary.path_lost(at, Path::Disk(0), "EIO", &mut actions), expected);
    }
}

#[test]
fn a_divergence_is_counted_and_said() {
    let mut primary = paired(NOW);
    let mut actions = Vec::new();
    let message = Message::Diverged {
        at: at(120, 0),
        what: "digest".to_owned(),
    };
    primary.message(NOW, Generation(1), message, &mut actions);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, PrimaryAction::Report(Event::Diverged { exit: 120, .. })))
    );
    assert_eq!(primary.divergences(), 1);
    primary.claimed(NOW, &ClaimOutcome::Won { generation: 2 }, &mut actions);
    assert!(primary.may_join().is_ok(), "another backup gets a clone");
}
