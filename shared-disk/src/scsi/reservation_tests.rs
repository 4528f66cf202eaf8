use std::cell::RefCell;

use super::*;

/// A device with two initiators, of which this is the first; keys by initiator, and the holder's initiator.
#[derive(Default)]
struct Fake {
    state: RefCell<State>,
}

#[derive(Default, Clone, Debug, PartialEq)]
struct State {
    keys: [Option<u64>; 3],
    holder: Option<usize>,
    kind: Option<ReservationType>,
    changes: Vec<Change>,
    /// The other side registers again, this often.
    stubborn: u32,
}

const OURS: usize = 0;
const WERO: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;

fn conflict() -> ScsiError {
    ScsiError::Command {
        path: "/dev/fake".into(),
        command: "PERSISTENT RESERVE OUT",
        fault: CommandFault::ReservationConflict,
    }
}

impl ReservationTarget for Fake {
    fn path(&self) -> &Path {
        Path::new("/dev/fake")
    }

    fn keys(&self) -> Result<Vec<u64>, ScsiError> {
        Ok(self.state.borrow().keys.iter().flatten().copied().collect())
    }

    fn holder(&self) -> Result<Option<Holder>, ScsiError> {
        let state = self.state.borrow();
        let key = state.holder.and_then(|holder| state.keys[holder]);
        Ok(key.zip(state.kind).map(|(key, kind)| Holder { key, kind }))
    }

    fn change(&self, _: &'static str, change: Change) -> Result<(), ScsiError> {
        let mut state = self.state.borrow_mut();
        state.changes.push(change);
        match change {
            Change::Register { key } => state.keys[OURS] = Some(key),
            Change::Unregister { key } => {
                if state.keys[OURS] != Some(key) {
                    return Err(conflict());
                }
                state.keys[OURS] = None;
                state.holder = state.holder.filter(|holder| *holder != OURS);
            }
            Change::Reserve { key } => {
                if state.keys[OURS] != Some(key) || state.holder.is_some_and(|holder| holder != OURS) {
                    return Err(conflict());
                }
                (state.holder, state.kind) = (Some(OURS), Some(WERO));
            }
            Change::PreemptAndAbort { key, victim } => {
                if state.keys[OURS] != Some(key) || !state.keys.contains(&Some(victim)) {
                    return Err(conflict());
                }
                let held = state.holder.and_then(|holder| state.keys[holder]);
                for initiator in 1..state.keys.len() {
                    if state.keys[initiator] == Some(victim) {
                        state.keys[initiator] = None;
                    }
                }
                if held == Some(victim) {
                    (state.holder, state.kind) = (Some(OURS), Some(WERO));
                }
                if state.stubborn > 0 {
                    state.stubborn -= 1;
                    state.keys[1] = Some(victim);
                }
            }
        }
        Ok(())
    }
}

fn fake(state: State) -> Reservation<Fake> {
    let state = RefCell::new(state);
    Reservation { device: Fake { state } }
}

fn state(reservation: &Reservation<Fake>) -> State {
    reservation.device.state.borrow().clone()
}

fn key(incarnation: u128) -> u64 {
    ReservationKey::of(incarnation).number()
}

/// Initiators 1 and 2 registered, 1 holding.
fn of_others() -> State {
    State {
        keys: [None, Some(key(1)), Some(key(2))],
        holder: Some(1),
        kind: Some(WERO),
        ..State::default()
    }
}

#[test]
fn keys_bear_the_mark() {
    assert_eq!(key(0x1234_5678_9abc_def0_1122_3344_5566_7788), 0x4654_3344_5566_7788);
    assert!(ReservationKey::is_ours(key(u128::MAX)) && ReservationKey::is_ours(key(0)));
    assert!(!ReservationKey::is_ours(0x4653_ffff_ffff_ffff) && !ReservationKey::is_ours(0x4655_0000_0000_0000));
}

#[test]
fn a_primary_takes_a_free_disk_and_gives_it_back() {
    let disk = fake(State::default());
    disk.take(ReservationKey::of(9)).unwrap();
    let taken = state(&disk);
    assert_eq!((taken.keys, taken.holder), ([Some(key(9)), None, None], Some(OURS)));
    disk.take(ReservationKey::of(9)).unwrap();
    assert_eq!(state(&disk).keys, taken.keys, "again");
    disk.release(ReservationKey::of(9)).unwrap();
    disk.release(ReservationKey::of(9)).unwrap();
    assert_eq!((state(&disk).keys, state(&disk).holder), ([None; 3], None));
}

#[test]
fn a_winner_throws_everyone_else_out_the_holder_first() {
    let disk = fake(of_others());
    disk.take(ReservationKey::of(9)).unwrap();
    let taken = state(&disk);
    assert_eq!((taken.keys, taken.holder), ([Some(key(9)), None, None], Some(OURS)));
    let preempted = taken.changes.iter().filter_map(|change| match change {
        Change::PreemptAndAbort { victim, .. } => Some(*victim),
        _ => None,
    });
    let preempted: Vec<u64> = preempted.collect();
    assert_eq!(preempted, [key(1), key(2)]);
}

#[test]
fn one_who_is_registered_without_a_reservation_loses_that() {
    let disk = fake(State {
        holder: None,
        kind: None,
        ..of_others()
    });
    disk.take(ReservationKey::of(9)).unwrap();
    assert_eq!(state(&disk).keys, [Some(key(9)), None, None]);
}

#[test]
fn another_programs_reservation_is_left_alone() {
    for holder in [None, Some(1)] {
        let disk = fake(State {
            keys: [None, Some(0x123), None],
            holder,
            ..of_others()
        });
        let text = disk.take(ReservationKey::of(9)).unwrap_err().to_string();
        assert!(
            text.contains("0x0000000000000123") && text.contains("not ftvm's"),
            "{text}"
        );
        assert_eq!(state(&disk).changes, [], "nothing was changed");
    }
}

#[test]
fn another_type_of_reservation_does_not_serve() {
    let disk = fake(State {
        keys: [Some(key(9)), None, None],
        holder: Some(OURS),
        kind: Some(ReservationType::Other(1)),
        ..State::default()
    });
    let error = disk.take(ReservationKey::of(9)).unwrap_err();
    assert!(matches!(error, ScsiError::NotHeld { .. }), "{error}");
}

#[test]
fn what_never_holds_is_an_error_and_not_a_loop() {
    let disk = fake(State {
        stubborn: LOOKS - 1,
        ..of_others()
    });
    let error = disk.take(ReservationKey::of(9)).unwrap_err();
    assert!(
        error.is_retryable() && matches!(error, ScsiError::NotHeld { .. }),
        "{error}"
    );
    let disk = fake(State {
        keys: [None, Some(key(1)), None],
        stubborn: LOOKS - 2,
        ..of_others()
    });
    disk.take(ReservationKey::of(9)).unwrap();
}

#[test]
fn who_was_thrown_out_has_nothing_to_give_back() {
    let disk = fake(of_others());
    disk.release(ReservationKey::of(9)).unwrap();
    assert_eq!(state(&disk).holder, Some(1));
}
