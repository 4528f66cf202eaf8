//! A backup's turns: what is taken in, and what is acked.

use logging_channel::chunk;
use logging_channel::message::{Grant, Heartbeat};
use shared_disk::arbiter::ClaimOutcome;

use super::*;
use crate::exit_code::ExitCode;
use crate::following::{FollowReport, Progress};
use crate::link::backup::{BackupEvent, BackupLink, Followed};

const BOUND: usize = 10_000;

fn link_event(message: Message) -> LinkEvent {
    LinkEvent::Message {
        connection: ConnectionId(5),
        generation: G,
        message,
    }
}

/// A frame of the log with so many bytes of data.
fn frame(number: u64, exit: u64, bytes: usize) -> LinkEvent {
    let input = ftvm_schema::entry::Input::Entropy { bytes: vec![0; bytes] };
    let entries = vec![
        LogEntry::Input {
            at: ExitSeq(exit),
            input,
        },
        LogEntry::Mark(Mark {
            sent_ns: NOW,
            at: Position {
                exit: ExitSeq(exit),
                k: 1,
            },
            ..mark(exit)
        }),
    ];
    link_event(Message::Log { number, entries })
}

fn executed(exit: u64) -> BackupEvent {
    let at = Position {
        exit: ExitSeq(exit),
        k: 1,
    };
    BackupEvent::Followed(FollowReport::Progress(Progress::Executed(at)))
}

/// A backup that has been granted, at exit 100.
fn following(world: &mut Recorder) -> BackupLink {
    let terms = Terms { me: PEER, ..terms() };
    let mut link = BackupLink::begin(terms, ME, ConnectionId(5), world).with_bound(BOUND);
    for chunk in chunk::split(b"the state") {
        link.step(BackupEvent::Link(link_event(Message::State(chunk))), world);
    }
    let grant = Grant {
        generation: G,
        incarnation: PEER,
        at: at(100),
        digest: Digest::default(),
        outputs: OutputSeq(0),
    };
    link.step(BackupEvent::Link(link_event(Message::Grant(grant))), world);
    let loaded = FollowReport::Progress(Progress::Executed(at(100)));
    link.step(BackupEvent::Followed(loaded), world);
    assert_eq!(link.core().protection(), Protection::Protected);
    world.taken(|_| false);
    link
}

fn is_suspicion(did: &Did) -> bool {
    matches!(did, Did::Report(Event::Suspected { .. }))
}

#[test]
fn a_backup_takes_nothing_in_while_it_has_too_much_to_execute() {
    let mut world = Recorder::new();
    let mut link = following(&mut world);
    assert!(link.takes_more());
    link.step(BackupEvent::Link(frame(1, 101, BOUND / 2)), &mut world);
    assert!(link.takes_more());
    // The second exceeds the bound; the third has come already and is left where it is.
    world.waiting.push_back(frame(3, 103, 1));
    link.step(BackupEvent::Link(frame(2, 102, BOUND / 2)), &mut world);
    assert!(!link.takes_more());
    link.step(BackupEvent::Tick, &mut world);
    assert_eq!(world.waiting.len(), 1, "not for a tick either");
    let orders = |world: &Recorder| world.taken(|did| !matches!(did, Did::Order(_))).len();
    assert_eq!(orders(&world), 2);

    link.step(executed(101), &mut world);
    assert!(link.takes_more());
    link.step(BackupEvent::Tick, &mut world);
    assert_eq!((world.waiting.len(), orders(&world)), (0, 1));
    for exit in [102, 103] {
        link.step(executed(exit), &mut world);
    }
    assert!(link.takes_more());
}

#[test]
fn one_turn_takes_in_no_more_than_the_bound_either() {
    let mut world = Recorder::new();
    let mut link = following(&mut world);
    world.waiting.extend((2..20).map(|n| frame(n, 100 + n, BOUND / 4)));
    link.step(BackupEvent::Link(frame(1, 101, BOUND / 4)), &mut world);
    assert!(world.waiting.len() >= 15, "{} are left", world.waiting.len());
    assert!(!link.takes_more());
}

#[test]
fn who_takes_nothing_in_speaks_acks_and_does_not_suspect() {
    let mut world = Recorder::new();
    let mut link = following(&mut world);
    link.step(BackupEvent::Link(frame(1, 101, BOUND)), &mut world);
    world.taken(|_| false);
    assert!(!link.takes_more());
    for number in 1..=8 * 8 {
        world.later(D / 8);
        let heartbeat = Heartbeat {
            guest: 1,
            generation: G,
            incarnation: ME,
            number,
            sent_ns: world.now.get(),
            echo_ns: 0,
        };
        link.step(BackupEvent::Heartbeat(heartbeat), &mut world);
        link.step(BackupEvent::Tick, &mut world);
    }
    let did = world.taken(|_| false);
    assert!(!did.iter().any(is_suspicion), "the silence is its own");
    assert_eq!(did.iter().filter(|did| **did == Did::Heartbeat).count(), 64);
    // It has executed, and says so with the newest echo.
    link.step(executed(101), &mut world);
    world.later(D);
    link.step(BackupEvent::Due, &mut world);
    assert_eq!(world.deeds(), [Did::Send(5, "Ack")]);

    // From here on the primary's silence counts again.
    for _ in 0..10 {
        world.later(D / 8);
        link.step(BackupEvent::Tick, &mut world);
    }
    assert!(world.taken(|_| false).iter().any(is_suspicion));
    assert!(link.takes_more(), "what comes now is thrown away");
}

#[test]
fn pages_count_and_are_given_back_when_they_are_written() {
    let mut world = Recorder::new();
    let terms = Terms { me: PEER, ..terms() };
    let mut link = BackupLink::begin(terms, ME, ConnectionId(5), &mut world).with_bound(BOUND);
    let pages = Message::Pages {
        numbers: vec![1],
        content: vec![0; BOUND],
    };
    link.step(BackupEvent::Link(link_event(pages)), &mut world);
    assert!(!link.takes_more());
    let written = FollowReport::Progress(Progress::Executed(at(0)));
    link.step(BackupEvent::Followed(written), &mut world);
    assert!(link.takes_more());
}

#[test]
fn frames_read_ahead_are_acked_once_and_those_of_another_connection_not_at_all() {
    let mut world = Recorder::new();
    let mut link = following(&mut world);
    world.waiting.extend([frame(2, 102, 1), closed(4), frame(3, 103, 1)]);
    link.step(BackupEvent::Link(frame(1, 101, 1)), &mut world);
    let order = Did::Order("entries");
    assert_eq!(
        world.deeds(),
        [order.clone(), order.clone(), order, Did::Send(5, "Ack")]
    );
    assert_eq!(link.core().protection(), Protection::Protected);
}

#[test]
fn a_backup_that_has_asked_says_so_until_it_has_lost() {
    for (outcome, still) in [
        (None, true),
        (
            Some(ClaimOutcome::Lost {
                generation: 2,
                owner: 7,
            }),
            false,
        ),
    ] {
        let mut world = Recorder::new();
        let mut link = following(&mut world);
        link.step(BackupEvent::Link(closed(5)), &mut world);
        assert_eq!(world.deeds(), [Did::Claim(1), Did::Order("drain")]);
        match outcome {
            Some(outcome) => link.step(BackupEvent::Link(LinkEvent::Claimed(outcome)), &mut world),
            None => link.step(BackupEvent::ThreadGone, &mut world),
        }
        let Some(Followed::Ended { code, claimed, .. }) = link.over() else {
            panic!("{:?}", link.over())
        };
        assert_eq!((*claimed, *code == ExitCode::Lost), (still, !still));
    }
}

#[test]
fn it_goes_live_under_what_it_has_won() {
    let mut world = Recorder::new();
    let mut link = following(&mut world);
    link.step(BackupEvent::Link(frame(1, 101, 1)), &mut world);
    link.step(BackupEvent::Link(closed(5)), &mut world);
    let won = LinkEvent::Claimed(ClaimOutcome::Won { generation: 2 });
    link.step(BackupEvent::Link(won), &mut world);
    link.step(BackupEvent::Followed(FollowReport::Drained), &mut world);
    assert_eq!(link.over(), None, "it has acked, and the lease is not over");
    world.later(2 * L);
    link.step(BackupEvent::Due, &mut world);
    let Some(Followed::GoLive { generation, .. }) = link.over() else {
        panic!("{:?}", link.over())
    };
    assert_eq!(*generation, Generation(2));
}
