use super::*;

#[derive(Clone, Debug)]
enum Step {
    Send {
        inputs: u64,
        marked: bool,
        checkpoint: bool,
    },
    Deliver,
    Execute,
    Ack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let send =
        (0..4u64, any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(inputs, marked, checkpoint)| Step::Send {
            inputs,
            marked,
            checkpoint,
        });
    proptest::collection::vec(
        prop_oneof![send, Just(Step::Deliver), Just(Step::Execute), Just(Step::Ack)],
        1..120,
    )
}

proptest! {
    /// Both sides against each other: the backup's acks are always possible ones, and what the primary takes for
    /// covered is never beyond what the backup holds.
    #[test]
    fn what_is_covered_is_held(steps in steps()) {
        let (mut tracker, mut inbox) = (tracker(), inbox());
        let mut wire = std::collections::VecDeque::new();
        let mut held_mark = None;
        let (mut exit, mut now, mut number) = (0u64, 0u64, 0u64);
        for step in steps {
            now += 10;
            match step {
                Step::Send { inputs, marked, checkpoint } => {
                    let mut frames = vec![(0..inputs).map(|n| tick(exit + 1 + n)).collect::<Vec<_>>()];
                    exit += inputs + 1;
                    if checkpoint {
                        frames.extend(super::checkpoint(exit, 1, &[1; CHUNK_BYTES + 1]).into_iter().map(|e| vec![e]));
                        exit += 1;
                    }
                    if marked {
                        frames.push(vec![mark(exit, 0, now)]);
                    }
                    for entries in frames {
                        number += 1;
                        tracker.sent(number, 1, &entries, now).unwrap();
                        wire.push_back((number, entries));
                    }
                }
                Step::Deliver => {
                    if let Some((number, entries)) = wire.pop_front() {
                        if let Some(LogEntry::Mark(mark)) = entries.last() {
                            held_mark = Some(mark.at);
                        }
                        inbox.admit(G, number, entries).unwrap();
                    }
                }
                Step::Execute => while let Some(entry) = inbox.take() {
                    if let LogEntry::Mark(mark) = entry { inbox.executed(mark.at) }
                },
                Step::Ack => if let Some(ack) = inbox.ack() {
                    tracker.acked(&ack, now).unwrap();
                },
            }
            if let Some(covered) = tracker.covered() {
                prop_assert!(Some(covered) <= held_mark);
            }
            prop_assert!(tracker.executed() <= inbox.horizon().position());
        }
    }
}
