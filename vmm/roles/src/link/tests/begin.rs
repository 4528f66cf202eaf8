//! How a primary begins: the same steps for a start and for a go-live.

use super::*;
use crate::following::Horizon;

fn horizon() -> Horizon {
    Horizon {
        requests: vec![write(0, 4)],
        outputs: vec![
            Output {
                emission: Emission::Disk(write(0, 4)),
                ..console(90, 10)
            },
            console(91, 11),
            console(92, 12),
        ],
        entropy: Some(8),
        outputs_made: OutputSeq(13),
        paused: false,
    }
}

fn begun(beginning: Beginning, world: &mut Recorder) -> PrimaryLink<Hands> {
    PrimaryLink::begin(terms(), BootCell::default(), beginning, world).unwrap()
}

fn went_live() -> Beginning {
    Beginning::WentLive(Box::new(horizon()))
}

#[test]
fn private_disks_are_the_newest_once_nobody_else_writes_and_not_before() {
    for beginning in [Beginning::Started, went_live()] {
        let mut world = Recorder::new();
        let mut link = begun(beginning, &mut world);
        assert_eq!(world.deeds(), [Did::OpenDisks, Did::Fence]);
        assert!(link.is_busy() && !link.takes_more(&world));
        // Whatever happens meanwhile has no effect on disks or outputs.
        link.step(PrimaryEvent::Tick, &mut world).unwrap();
        assert_eq!(world.deeds(), [Did::Heartbeat]);
        link.fenced(&mut world).unwrap();
        assert_eq!(world.deeds()[0], Did::Mark(1));
        assert!(!link.is_busy() && link.takes_more(&world));
    }
}

#[test]
fn a_started_guest_hears_and_is_joined_before_anybody_is_told() {
    let mut world = Recorder::new();
    let mut link = begun(Beginning::Started, &mut world);
    world.taken(|_| false);
    link.fenced(&mut world).unwrap();
    let leading = Did::Report(Event::Leading { generation: 1 });
    assert_eq!(
        world.taken(|_| false),
        [
            Did::Mark(1),
            Did::TakeOperations,
            Did::TakeInputs,
            Did::OpenDoor,
            leading,
            Did::Disarm,
        ]
    );
    assert!(!link.announces());
}

#[test]
fn what_the_old_life_left_is_taken_up_before_anything_new() {
    let mut world = Recorder::new();
    let mut link = begun(went_live(), &mut world);
    world.taken(|_| false);
    link.fenced(&mut world).unwrap();
    let live = Did::Report(Event::WentLive {
        generation: 1,
        reissued: 1,
        reemitted: 2,
    });
    let expected = [
        Did::Mark(1),
        Did::TakeOperations,
        Did::Start(0, 4),
        Did::LetOut(10),
        Did::LetOut(11),
        Did::LetOut(12),
        Did::Entropy,
        live,
        Did::Report(Event::FirstOutput),
        Did::TakeInputs,
        Did::OpenDoor,
        Did::Disarm,
    ];
    assert_eq!(world.taken(|_| false), expected);
    assert!(link.announces(), "the switches are told");
}

#[test]
fn outputs_of_the_old_life_leave_one_system_call_after_the_other() {
    let mut world = Recorder::new();
    world.call = (Call::UnderWay, 0);
    let mut link = begun(went_live(), &mut world);
    world.taken(|_| false);
    link.fenced(&mut world).unwrap();
    for seq in [10, 11, 12] {
        assert_eq!(world.deeds().last(), Some(&Did::LetOut(seq)));
        assert!(link.is_busy() && !link.takes_more(&world));
        link.call_over(&mut world).unwrap();
    }
    let live = Event::WentLive {
        generation: 1,
        reissued: 1,
        reemitted: 2,
    };
    assert!(world.taken(|_| false).contains(&Did::Report(live)));
    assert!(!link.is_busy());
}

#[test]
fn what_a_start_fails_for_a_guest_that_lives_goes_without() {
    for fails in [Did::Mark(1), Did::OpenDoor, Did::TakeInputs] {
        for beginning in [Beginning::Started, went_live()] {
            let is_start = matches!(beginning, Beginning::Started);
            let mut world = Recorder::new();
            world.fails = Some(fails.clone());
            let mut link = begun(beginning, &mut world);
            let done = link.fenced(&mut world);
            let needed = is_start || fails == Did::TakeInputs;
            assert_eq!(done.is_err(), needed, "{fails:?}, start: {is_start}");
        }
    }
}
