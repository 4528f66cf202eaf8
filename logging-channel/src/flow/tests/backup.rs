use super::*;

#[test]
fn an_ack_says_what_is_stored_and_only_when_something_changed() {
    let mut inbox = inbox();
    inbox.admit(G, 1, vec![tick(4), mark(4, 1, 900)]).unwrap();
    assert_eq!(inbox.ack(), Some(ack(1, position(4, 1), position(0, 0), 900)));
    assert_eq!(inbox.ack(), None);
    inbox.executed(position(4, 1));
    assert_eq!(inbox.ack(), Some(ack(1, position(4, 1), position(4, 1), 900)));
    inbox.heard(950);
    inbox.heard(940);
    assert_eq!(inbox.ack().unwrap().echo_ns, 950);
    assert_eq!(
        [inbox.take(), inbox.take(), inbox.take()],
        [Some(tick(4)), Some(mark(4, 1, 900)), None]
    );
}

#[test]
fn a_frame_of_another_number_or_generation_ends_the_session() {
    for (generation, number) in [(Generation(2), 2), (Generation(4), 2), (G, 1), (G, 3), (G, 0)] {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![mark(1, 0, 5)]).unwrap();
        let before = inbox.ack().unwrap();
        let error = inbox.admit(generation, number, vec![mark(9, 0, 6)]).unwrap_err();
        let expected = matches!(error, InboxError::Generation { .. } | InboxError::NotContiguous { .. });
        assert!(expected, "{error}");
        assert_eq!((inbox.ack(), inbox.horizon().position()), (None, before.received));
        assert!(matches!(inbox.admit(G, 2, vec![]), Err(InboxError::Over { number: 2 })));
    }
}

#[test]
fn a_frame_with_one_entry_out_of_place_is_not_stored_at_all() {
    let mut inbox = inbox();
    inbox.admit(G, 1, vec![tick(5)]).unwrap();
    let before = inbox.ack().unwrap();
    let error = inbox.admit(G, 2, vec![tick(6), mark(7, 0, 9), tick(6)]).unwrap_err();
    assert!(matches!(error, InboxError::Order { number: 2, .. }), "{error}");
    assert_eq!((inbox.ack(), inbox.horizon().position()), (None, before.received));
    assert_eq!([inbox.take(), inbox.take()], [Some(tick(5)), None]);
}

#[test]
fn a_checkpoint_is_acked_and_given_only_whole() {
    let record: Vec<u8> = vec![7; 2 * CHUNK_BYTES + 1];
    let chunks = checkpoint(5, 2, &record);
    let mut inbox = inbox();
    inbox.admit(G, 1, vec![tick(5)]).unwrap();
    inbox.take();
    assert_eq!(inbox.ack().unwrap().frame, 1);
    inbox.admit(G, 2, vec![chunks[0].clone()]).unwrap();
    inbox
        .admit(
            G,
            3,
            vec![chunks[1].clone(), LogEntry::Released { through: OutputSeq(1) }],
        )
        .unwrap();
    assert_eq!(inbox.ack(), None, "neither frame nor position may move");
    assert_eq!(inbox.take(), Some(LogEntry::Released { through: OutputSeq(1) }));
    inbox.admit(G, 4, vec![chunks[2].clone()]).unwrap();
    assert_eq!(inbox.ack(), Some(ack(4, position(5, 2), position(0, 0), 0)));
    let Some(LogEntry::Checkpoint { at, chunk }) = inbox.take() else {
        panic!("no checkpoint")
    };
    assert_eq!(
        (at, chunk.total, chunk.offset),
        (position(5, 2), record.len() as u64, 0)
    );
    assert!(chunk.bytes == record);
}

#[test]
fn an_incomplete_checkpoint_is_discarded_at_go_live() {
    let mut inbox = inbox();
    inbox.admit(G, 1, vec![tick(5)]).unwrap();
    inbox
        .admit(G, 2, checkpoint(5, 2, &[7; CHUNK_BYTES + 1])[..1].to_vec())
        .unwrap();
    let discarded = Discarded {
        at: position(5, 2),
        held: CHUNK_BYTES as u64,
        total: CHUNK_BYTES as u64 + 1,
    };
    assert_eq!(inbox.close(), Some(discarded));
    assert_eq!(inbox.horizon().position(), position(5, 1));
    assert_eq!([inbox.take(), inbox.take()], [Some(tick(5)), None]);
    assert!(
        matches!(inbox.admit(G, 3, vec![]), Err(InboxError::Over { .. })),
        "suspicion is final"
    );
}

#[test]
fn damaged_interrupted_and_wandering_checkpoints_are_refused() {
    let record = [7; CHUNK_BYTES + 1];
    let chunks = checkpoint(5, 2, &record);
    let attempt = |rest: LogEntry| {
        let mut inbox = inbox();
        inbox.admit(G, 1, vec![chunks[0].clone()]).unwrap();
        let error = inbox.admit(G, 2, vec![rest]).unwrap_err();
        assert_eq!((inbox.ack().unwrap().frame, inbox.close()), (0, None));
        error
    };
    assert!(matches!(attempt(tick(6)), InboxError::InsideCheckpoint { .. }));
    assert!(matches!(attempt(mark(6, 0, 0)), InboxError::InsideCheckpoint { .. }));
    assert!(matches!(attempt(end(6)), InboxError::InsideCheckpoint { .. }));
    let elsewhere = checkpoint(6, 2, &record)[1].clone();
    assert!(matches!(attempt(elsewhere), InboxError::CheckpointMoved { .. }));
    let mut damaged = chunks[1].clone();
    if let LogEntry::Checkpoint { chunk, .. } = &mut damaged {
        chunk.bytes[0] ^= 1;
    }
    assert!(matches!(attempt(damaged), InboxError::Checkpoint { .. }));

    let mut small = Inbox::new(ME, G, Position::default(), OutputSeq(0), CHUNK_BYTES as u64);
    assert!(matches!(small.admit(G, 1, chunks), Err(InboxError::Checkpoint { .. })));
}

#[test]
fn it_never_claims_to_have_executed_beyond_the_horizon() {
    let mut inbox = inbox();
    inbox.admit(G, 1, vec![tick(5)]).unwrap();
    inbox.executed(position(9, 0));
    assert_eq!(inbox.ack().unwrap().executed, position(5, 1));
}
