use proptest::prelude::*;

use super::*;

fn write(value: u64, call: u64, ret: u64) -> Op {
    Op {
        key: 1,
        kind: Kind::Write(value),
        call,
        ret: Some(ret),
    }
}

fn read(value: impl Into<Option<u64>>, call: u64, ret: u64) -> Op {
    Op {
        key: 1,
        kind: Kind::Read(value.into()),
        call,
        ret: Some(ret),
    }
}

/// Whether it is linearizable, and how many writes are lost.
fn judged(ops: &[Op]) -> (bool, u64) {
    let verdict = check(ops);
    (verdict.is_linearizable(), verdict.lost_writes)
}

#[test]
fn a_register_is_accepted() {
    assert_eq!(judged(&[]), (true, 0));
    assert_eq!(judged(&[read(None, 1, 2), write(7, 3, 4), read(7, 5, 6)]), (true, 0));
    // Concurrent writes in either order, reads in the midst of a write.
    for last in [7, 8] {
        assert_eq!(
            judged(&[write(7, 1, 10), write(8, 2, 9), read(last, 11, 12)]),
            (true, 0)
        );
    }
    assert_eq!(
        judged(&[write(7, 1, 10), read(None, 2, 3), read(7, 4, 5), read(7, 6, 7)]),
        (true, 0)
    );
}

#[test]
fn an_answer_that_never_came_explains_both() {
    let unanswered = Op {
        ret: None,
        ..write(7, 1, 0)
    };
    assert_eq!(judged(&[unanswered, read(None, 5, 6)]), (true, 0));
    assert_eq!(judged(&[unanswered, read(None, 5, 6), read(7, 7, 8)]), (true, 0));
    assert_eq!(
        judged(&[unanswered, read(7, 5, 6), read(None, 7, 8)]),
        (false, 0),
        "it cannot be taken back"
    );
    assert_eq!(check(&[unanswered]).ambiguous, 1);
}

#[test]
fn a_lost_write_is_found() {
    assert_eq!(judged(&[write(7, 1, 2), read(None, 3, 4)]), (false, 1));
    assert_eq!(
        judged(&[write(7, 1, 2), write(8, 3, 4), read(7, 5, 6)]),
        (false, 1),
        "the later one is"
    );
    assert_eq!(
        judged(&[write(7, 1, 2), write(8, 3, 4), read(7, 5, 6), read(7, 7, 8)]),
        (false, 1),
        "one write is lost once"
    );
    let other = Op {
        key: 2,
        ..read(None, 3, 4)
    };
    assert_eq!(judged(&[write(7, 1, 2), other]), (true, 0), "another key");
}

#[test]
fn a_stale_read_is_found() {
    // 8 has been seen; nobody may see 7 afterwards, although neither write is over.
    let stale = [
        write(7, 1, 20),
        write(8, 2, 20),
        read(7, 3, 4),
        read(8, 5, 6),
        read(7, 7, 8),
    ];
    assert_eq!(judged(&stale), (false, 0));
    assert_eq!(judged(&stale[..4]), (true, 0));
}

#[test]
fn a_value_from_nowhere_is_found() {
    assert!(!check(&[read(9, 1, 2)]).is_linearizable());
    assert!(!check(&[read(7, 1, 2), write(7, 3, 4)]).is_linearizable(), "too early");
    assert!(check(&[read(7, 1, 3), write(7, 3, 4)]).is_linearizable(), "just not");
}

/// By trying every order.
fn explained(ops: &[Op], done: u32, holds: Option<u64>) -> bool {
    let open = |at: usize| done & (1 << at) == 0;
    let answered = |at: usize| open(at) && ops[at].ret.is_some();
    if !(0..ops.len()).any(answered) {
        return true;
    }
    let earliest = (0..ops.len()).filter(|at| open(*at)).filter_map(|at| ops[at].ret).min();
    (0..ops.len()).filter(|at| open(*at)).any(|at| {
        if earliest.is_some_and(|ret| ret < ops[at].call) {
            return false;
        }
        match ops[at].kind {
            Kind::Write(value) => explained(ops, done | 1 << at, Some(value)),
            Kind::Read(value) => value == holds && explained(ops, done | 1 << at, holds),
        }
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (0..5u8, prop::option::weighted(0.8, 1..5u64), 1..12u64, 0..8u64);
    prop::collection::vec(op, 1..8).prop_map(|list| {
        let mut next = 0;
        let ops = list.into_iter().map(|(what, value, call, lasts)| {
            let kind = match what {
                0 | 1 => {
                    next += 1;
                    Kind::Write(next)
                }
                _ => Kind::Read(value),
            };
            let never = what == 1 && lasts == 7;
            Op {
                key: 0,
                kind,
                call,
                ret: (!never).then_some(call + lasts),
            }
        });
        ops.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn the_zones_say_what_trying_every_order_says(ops in ops()) {
        prop_assert_eq!(check(&ops).is_linearizable(), explained(&ops, 0, None));
    }

    #[test]
    fn a_lost_write_is_never_linearizable(ops in ops()) {
        prop_assert!(check(&ops).lost_writes == 0 || !check(&ops).is_linearizable());
    }
}
