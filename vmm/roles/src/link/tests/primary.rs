//! A primary's turns: what leaves when, and what is never taken for something else.

use ftvm_schema::entry::EndReason;
use shared_disk::arbiter::ClaimOutcome;

use super::*;
use crate::disks::LateEffect;
use crate::host_event::Control;
use crate::primary::DISK_SILENCE;

fn released(deeds: &[Did]) -> Vec<u64> {
    let seq = |did: &Did| match did {
        Did::LetOut(seq) => Some(*seq),
        _ => None,
    };
    deeds.iter().filter_map(seq).collect()
}

#[test]
fn the_lease_is_looked_at_right_before_each_output() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    link.step(
        batch(110, vec![console(110, 0), console(110, 1), console(110, 2)]),
        &mut world,
    )
    .unwrap();
    assert!(released(&world.deeds()).is_empty(), "nothing is acked");
    // The first two system calls take all of the lease.
    world.call = (Call::Over, L / 2);
    link.step(from_peer(1, ack(2, 110, NOW)), &mut world).unwrap();
    assert_eq!(released(&world.deeds()), [0, 1]);
    let echo = world.now.get() - 1;
    link.step(PrimaryEvent::Tick, &mut world).unwrap();
    link.step(from_peer(1, ack(3, 110, echo)), &mut world).unwrap();
    assert_eq!(released(&world.deeds()), [2], "the lease is renewed");
}

#[test]
fn a_renewed_lease_gives_the_writes_in_flight_longer() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    let request = Output {
        emission: Emission::Disk(write(0, 0)),
        ..console(110, 0)
    };
    link.step(batch(110, vec![request]), &mut world).unwrap();
    assert_eq!(world.deeds(), [Did::Send(1, "Log")]);
    link.step(from_peer(1, ack(2, 110, NOW)), &mut world).unwrap();
    assert_eq!(
        world.deeds(),
        [Did::LetOut(0), Did::Arm(NOW + L), Did::Start(0, 0)],
        "armed first"
    );
    world.later(50 * MS);
    link.step(batch(120, vec![]), &mut world).unwrap();
    world.deeds();
    let echo = world.now.get();
    link.step(from_peer(1, ack(3, 120, echo)), &mut world).unwrap();
    assert_eq!(world.deeds(), [Did::Arm(echo + L)]);
}

#[test]
fn a_disk_that_does_not_answer_is_told_of_at_a_tick() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    link.hands().under_way.push(UnderWay {
        disk: 0,
        effect: LateEffect::Lands,
        since_ns: NOW - DISK_SILENCE,
    });
    link.step(PrimaryEvent::Tick, &mut world).unwrap();
    let silent = |did: &Did| {
        matches!(
            did,
            Did::Report(Event::DiskSilent {
                disk: 0,
                write: true,
                ..
            })
        )
    };
    assert!(world.taken(|_| false).iter().any(silent));
    assert!(link.core().silent_disks().eq([0]));
}

#[test]
fn an_old_connection_says_nothing_about_the_new_one() {
    let mut world = Recorder::new();
    let mut link = started(&mut world);
    joining(&mut link, 1, &mut world);
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    assert_eq!(link.core().protection(), Protection::NotProtected);
    joining(&mut link, 2, &mut world);
    world.deeds();
    // The writer of the first one finds out late, and what its reader had read ahead comes after all.
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    link.step(from_peer(1, Message::Dismiss), &mut world).unwrap();
    assert_eq!(link.core().protection(), Protection::Starting);
    assert_eq!(world.deeds(), []);

    let mut link = protected(&mut world);
    link.step(PrimaryEvent::Link(closed(0)), &mut world).unwrap();
    assert_eq!(link.core().protection(), Protection::Protected);
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    assert_eq!(world.deeds(), [Did::Claim(1)], "its own is evidence");
}

#[test]
fn a_second_backup_is_refused() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    joining(&mut link, 2, &mut world);
    assert_eq!(world.deeds(), [Did::Refuse(2)]);
    assert_eq!(link.core().protection(), Protection::Protected);
}

#[test]
fn private_disks_are_marked_when_the_next_generation_is_won_and_not_before() {
    let mut world = Recorder::new();
    world.private = vec![1];
    let mut link = started(&mut world);
    joining(&mut link, 1, &mut world);
    let marks = |world: &Recorder| world.taken(|did| !matches!(did, Did::Mark(_) | Did::Claim(_)));
    assert_eq!(marks(&world), []);
    let written = LinkEvent::BlocksSent { to: PEER, bytes: 512 };
    link.step(PrimaryEvent::Link(written), &mut world).unwrap();
    assert_eq!(marks(&world), []);

    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    assert_eq!(marks(&world), [Did::Claim(1)]);
    link.step(PrimaryEvent::Link(LinkEvent::StorageSilent("?".to_owned())), &mut world)
        .unwrap();
    assert_eq!(marks(&world), []);
    let won = LinkEvent::Claimed(ClaimOutcome::Won { generation: 2 });
    link.step(PrimaryEvent::Link(won), &mut world).unwrap();
    assert_eq!(marks(&world), [Did::Mark(2)]);

    let mut link = protected(&mut world);
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    let lost = LinkEvent::Claimed(ClaimOutcome::Lost {
        generation: 2,
        owner: 9,
    });
    link.step(PrimaryEvent::Link(lost), &mut world).unwrap();
    assert_eq!(marks(&world), [Did::Claim(1)], "the other side's copy is the newest");
}

#[test]
fn a_clean_end_finishes_the_private_disks_marks_them_and_is_noted_last() {
    let mut world = Recorder::new();
    world.private = vec![1];
    let mut link = started(&mut world);
    let request = Output {
        emission: Emission::PrivateDisk(write(1, 3)),
        ..console(110, 0)
    };
    link.step(batch(110, vec![request]), &mut world).unwrap();
    let ended = FromGuest::Ended(Ok(EndReason::Stopped));
    link.step(PrimaryEvent::Guest(ended), &mut world).unwrap();
    assert!(link.over().is_some() && link.ends_cleanly());
    world.deeds();
    link.leave(&mut world);
    let hands = link.end(&mut world).hands;
    assert!(hands.is_none(), "they have done their last");
    assert_eq!(
        world.deeds(),
        [
            Did::FinishPrivate(vec![3]),
            Did::Mark(1),
            Did::GiveDisksBack,
            Did::NoteEnd
        ]
    );
}

#[test]
fn a_side_whose_write_a_device_refuses_ends_and_leaves_everything_as_it_is() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    link.step(batch(110, vec![console(110, 0)]), &mut world).unwrap();
    world.deeds();
    link.step(PrimaryEvent::Superseded, &mut world).unwrap();
    assert_eq!(
        link.over().map(|(code, _)| code),
        Some(crate::exit_code::ExitCode::Lost)
    );
    link.leave(&mut world);
    link.end(&mut world);
    assert_eq!(world.deeds(), [Did::Close(1)]);
}

#[test]
fn what_was_said_before_the_state_leaves_before_the_grant() {
    let mut world = Recorder::new();
    let mut link = started(&mut world);
    joining(&mut link, 1, &mut world);
    for pages in [vec![], vec![1]] {
        link.step(PrimaryEvent::Guest(FromGuest::Dirty(pages)), &mut world)
            .unwrap();
        let sent = LinkEvent::PagesSent {
            to: PEER,
            pages: 1,
            bytes: 100,
        };
        link.step(PrimaryEvent::Link(sent), &mut world).unwrap();
    }
    world.deeds();
    world.call = (Call::UnderWay, 0);
    link.step(batch(99, vec![console(99, 0), console(99, 1)]), &mut world)
        .unwrap();
    link.call_over(&mut world).unwrap();
    link.call_over(&mut world).unwrap();
    assert_eq!(world.deeds(), [Did::LetOut(0), Did::LetOut(1)]);
    link.step(batch(100, vec![console(100, 2)]), &mut world).unwrap();
    assert_eq!(world.deeds(), [Did::LetOut(2)]);
    assert!(!link.takes_more(&world), "a system call is under way");
    link.call_over(&mut world).unwrap();
    link.step(state(100), &mut world).unwrap();
    assert_eq!(
        world.deeds(),
        [Did::Send(1, "State"), Did::Send(1, "Grant"), Did::Send(1, "Log")]
    );
}

#[test]
fn evidence_that_waits_comes_before_the_verdict() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    link.step(batch(110, vec![]), &mut world).unwrap();
    // The process sleeps; the ack is there when it wakes up.
    world.later(D / 2);
    link.step(PrimaryEvent::Tick, &mut world).unwrap();
    world.later(D / 2 + D / 8);
    world.waiting.push_back(LinkEvent::Message {
        connection: ConnectionId(1),
        generation: G,
        message: ack(2, 110, NOW),
    });
    link.step(PrimaryEvent::Tick, &mut world).unwrap();
    assert_eq!(link.core().protection(), Protection::Protected);
}

#[test]
fn a_failure_that_is_withheld_is_told_when_the_guest_stays() {
    let mut world = Recorder::new();
    let mut link = protected(&mut world);
    let whole = Health {
        disks: vec![true, true],
        nics: vec![],
    };
    link.step(from_peer(1, Message::Health(whole)), &mut world).unwrap();
    let failure = HostEvent::Entropy(vec![1]); // any event will do
    let lost = PrimaryEvent::DiskLost {
        disk: 0,
        what: "EIO".to_owned(),
        failure: failure.clone(),
    };
    link.step(lost, &mut world).unwrap();
    let stand = Did::Tell(HostEvent::Control(Control::StandStill));
    assert_eq!(world.deeds(), [stand], "the guest is handed over instead");
    link.step(PrimaryEvent::Link(closed(1)), &mut world).unwrap();
    let go = Did::Tell(HostEvent::Control(Control::GoOn));
    assert_eq!(world.deeds(), [go, Did::Tell(failure), Did::Claim(1)]);
}
