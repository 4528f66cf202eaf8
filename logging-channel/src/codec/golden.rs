//! Tests of the bytes themselves: golden frames, truncation, bit flips, random bytes.

use proptest::prelude::*;

use super::samples::{GENERATION, entries, heartbeat, messages};
use super::*;
use crate::message::Message;
use ftvm_schema::entry::{ExitSeq, Generation, Input, LogEntry};

/// Every sample as a named frame: all messages, each entry alone in a log frame, the heartbeat.
fn frames() -> Vec<(String, Vec<u8>)> {
    let mut encoder = FrameEncoder::new();
    let mut frames = Vec::new();
    for (name, message) in messages() {
        frames.push((
            format!("message {name}"),
            encoder.message(GENERATION, &message).unwrap().to_vec(),
        ));
    }
    for (name, entry) in entries() {
        frames.push((
            format!("entry {name}"),
            encoder.log(GENERATION, 1, &[entry]).unwrap().to_vec(),
        ));
    }
    frames.push(("heartbeat".into(), encoder.heartbeat(&heartbeat()).unwrap().to_vec()));
    frames
}

fn decode_all(bytes: &[u8]) -> (Vec<DecodedFrame>, Result<(), FrameError>) {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    let mut result = decoder.push(bytes);
    while result.is_ok() {
        match decoder.next_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, decoder.finish()),
            Err(error) => result = Err(error),
        }
    }
    (frames, result)
}

#[test]
fn the_bytes_are_the_pinned_ones() {
    let lines: Vec<String> = frames()
        .iter()
        .map(|(name, bytes)| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name}: {hex}\n")
        })
        .collect();
    // Shown only when the test fails: what to pin.
    print!("{}", lines.concat());
    let pinned = include_str!("golden.txt");
    for (now, before) in lines.iter().zip(pinned.lines()) {
        assert_eq!(
            now.trim_end(),
            before,
            "the format has changed: raise FRAME_VERSION, then pin the new bytes"
        );
    }
    assert_eq!(
        lines.concat(),
        pinned,
        "a kind without a golden frame, or a golden frame without a kind"
    );
}

#[test]
fn what_goes_in_comes_out() {
    let mut encoder = FrameEncoder::new();
    let mut stream = Vec::new();
    for (_, message) in messages() {
        stream.extend_from_slice(encoder.message(GENERATION, &message).unwrap());
    }
    let mut decoder = FrameDecoder::new();
    let mut found = Vec::new();
    for byte in stream {
        decoder.push_all(&[byte]);
        while let Some(frame) = decoder.next_frame().unwrap() {
            assert_eq!(frame.generation, GENERATION);
            found.push(frame.message);
        }
    }
    decoder.finish().unwrap();
    let expected: Vec<Message> = messages().into_iter().map(|(_, message)| message).collect();
    assert_eq!(found, expected);
    let datagram = encoder.heartbeat(&heartbeat()).unwrap();
    assert_eq!(decode_heartbeat(datagram).unwrap(), heartbeat());
}

#[test]
fn truncation_at_any_byte_is_an_error_and_yields_only_whole_frames() {
    let all = frames();
    let (first, second) = (&all[0].1, &all[6].1);
    let stream = [first.clone(), second.clone()].concat();
    for cut in 0..stream.len() {
        let (frames, end) = decode_all(&stream[..cut]);
        assert_eq!(frames.len(), usize::from(cut >= first.len()));
        assert_eq!(end.is_ok(), cut == 0 || cut == first.len(), "cut at {cut}");
        if let Err(error) = end {
            let whole = if cut < first.len() { 0 } else { first.len() };
            assert!(
                matches!(error.fault, FrameFault::Truncated { have, .. } if have == cut - whole),
                "{error}"
            );
        }
    }
    let datagram = &all.last().unwrap().1;
    for cut in 0..datagram.len() {
        assert!(decode_heartbeat(&datagram[..cut]).is_err());
    }
    assert!(decode_heartbeat(&[datagram.as_slice(), b"x"].concat()).is_err());
}

#[test]
fn any_flipped_bit_is_known_as_damage() {
    for (name, frame) in frames() {
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if name == "heartbeat" {
                assert!(decode_heartbeat(&damaged).is_err(), "bit {bit} of the heartbeat");
                continue;
            }
            // More frames follow, so that a longer length would find bytes to eat.
            damaged.extend_from_slice(&frame);
            let (frames, end) = decode_all(&damaged);
            assert!(frames.is_empty(), "{name}, bit {bit}: {frames:?}");
            let fault = end.unwrap_err().fault;
            let damage = matches!(
                fault,
                FrameFault::NotAFrame { .. }
                    | FrameFault::WrongVersion { .. }
                    | FrameFault::HeaderChecksum { .. }
                    | FrameFault::PayloadChecksum { .. }
            );
            assert!(damage, "{name}, bit {bit}: {fault}");
        }
    }
}

/// A frame whose checksums fit its (wrong) payload.
fn sealed(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend_from_slice(payload);
    frame::seal(&mut frame, kind, Generation(1));
    frame
}

#[test]
fn a_good_checksum_over_nonsense_is_an_error_of_its_own() {
    for (kind, payload) in [
        (FrameKind::Log, &[][..]),
        (FrameKind::Log, &[1, 13]),
        (FrameKind::Log, &[1, 12, 1, 3]),
        (FrameKind::Log, &[1, 0]),
        (FrameKind::Log, &[1, 1, 5]),
        (FrameKind::Log, &[1, 3, 1, 0, 0, 3, 0]),
        (FrameKind::Log, &[1, 5, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
        (FrameKind::State, &[0, 0, 0, 0, 0, 0, 0, 1]),
        (FrameKind::Bye, &[0]),
        (FrameKind::Dismiss, &[0]),
        (FrameKind::Handover, &[0]),
        (FrameKind::Health, &[1, 2]),
        (FrameKind::Boot, &[0, 0, 0, 0, 0, 0, 0, 1]),
        (FrameKind::Blocks, &[0, 17]),
        (FrameKind::FlushBlocks, &[0]),
        (FrameKind::Refuse, &[3, b'a']),
        (FrameKind::Ack, &[1]),
    ] {
        let mut decoder = FrameDecoder::new();
        decoder.push_all(&[sealed(kind, payload), sealed(FrameKind::Bye, &[])].concat());
        let error = decoder.next_frame().unwrap_err();
        assert!(
            matches!(&error.fault, FrameFault::Undecodable { kind: found, .. } if *found == kind),
            "{error}"
        );
        assert_eq!(
            decoder.next_frame().unwrap_err(),
            error,
            "what follows is not taken either"
        );
        assert_eq!(decoder.finish().unwrap_err(), error);
    }
    let (_, end) = decode_all(&sealed(FrameKind::FileTrailer, &[]));
    assert!(matches!(end.unwrap_err().fault, FrameFault::OutOfPlace { .. }));
}

#[test]
fn errors_name_the_frame_its_offset_and_the_payload_byte() {
    let good = sealed(FrameKind::Bye, &[]);
    let bytes = [good.clone(), good, sealed(FrameKind::Log, &[1, 200])].concat();
    let (frames, end) = decode_all(&bytes);
    assert_eq!(frames.len(), 2);
    let text = end.unwrap_err().to_string();
    assert!(text.starts_with("frame 2 at byte 48: "), "{text}");
    assert!(
        text.contains("at byte 1: expected a log entry's tag (1 to 12, 64 to 191), found 200"),
        "{text}"
    );
}

#[test]
fn a_limit_is_exact_and_a_decoder_buffers_no_more_than_it_says() {
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(5);
    decoder.push_all(&sealed(FrameKind::Refuse, &[4, b'a', b'b', b'c', b'd']));
    assert!(decoder.next_frame().unwrap().is_some());
    decoder.push_all(&sealed(FrameKind::Refuse, &[5, b'a', b'b', b'c', b'd', b'e']));
    let error = decoder.next_frame().unwrap_err();
    assert_eq!(error.fault, FrameFault::TooLong { len: 6, limit: 5 });
    assert_eq!(decoder.push(&[]).unwrap_err(), error, "a failed decoder stays failed");
    assert_eq!(decoder.next_frame().unwrap_err(), error);

    let mut decoder = FrameDecoder::new();
    decoder.push_all(&vec![0; HEADER_BYTES + MAX_PAYLOAD + READ_CHUNK]);
    assert!(matches!(
        decoder.push(&[0]).unwrap_err().fault,
        FrameFault::Overrun { .. }
    ));
}

#[test]
fn a_log_frame_with_too_many_entries_is_refused() {
    let mut payload = vec![1];
    payload.extend([7, 0].repeat(MAX_ENTRIES + 1));
    let (_, end) = decode_all(&sealed(FrameKind::Log, &payload));
    assert!(matches!(end.unwrap_err().fault, FrameFault::Undecodable { .. }));
    payload.truncate(1 + 2 * MAX_ENTRIES);
    let (frames, end) = decode_all(&sealed(FrameKind::Log, &payload));
    assert_eq!((frames.len(), end), (1, Ok(())));
}

fn any_entry() -> impl Strategy<Value = LogEntry> {
    (0..entries().len(), any::<u64>(), any::<u32>()).prop_map(|(n, exit, k)| {
        let mut entry = entries().swap_remove(n).1;
        match &mut entry {
            LogEntry::Input { at, .. } | LogEntry::Checks { from: at, .. } => at.0 = exit,
            LogEntry::Mark(mark) => {
                (mark.at.exit.0, mark.at.k, mark.sent_ns, mark.outputs.0) = (exit, k, !exit, exit.rotate_left(9));
            }
            LogEntry::Released { through } => through.0 = exit,
            LogEntry::Checkpoint { at, .. } | LogEntry::End { at, .. } => (at.exit.0, at.k) = (exit, k),
        }
        entry
    })
}

proptest! {
    /// Clock readings at every distance that has an encoding of its own, and beside it.
    #[test]
    fn clocks_survive_at_every_distance(
        steps in proptest::collection::vec(
            (0..130u64, prop_oneof![0..3000u64, (0..300u64).prop_map(|n| n << 10), any::<u64>()]),
            0..20,
        ),
    ) {
        let (mut exit, mut clock) = (0u64, 0u64);
        let entries: Vec<LogEntry> = steps.iter().map(|(exits, later)| {
            (exit, clock) = (exit + exits, clock.wrapping_add(*later));
            LogEntry::Input { at: ExitSeq(exit), input: Input::Clock(clock) }
        }).collect();
        let mut encoder = FrameEncoder::new();
        let frame = encoder.log(GENERATION, 1, &entries).unwrap();
        let (frames, end) = decode_all(frame);
        prop_assert!(end.is_ok());
        prop_assert_eq!(&frames[0].message, &Message::Log { number: 1, entries });
    }

    /// Numbers in any order, growing or not, over the whole of u64.
    #[test]
    fn entries_survive_in_any_order(entries in proptest::collection::vec(any_entry(), 0..20), number: u64) {
        let mut encoder = FrameEncoder::new();
        let frame = encoder.log(GENERATION, number, &entries).unwrap();
        let (frames, end) = decode_all(frame);
        prop_assert!(end.is_ok());
        prop_assert_eq!(&frames[0].message, &Message::Log { number, entries });
    }

    #[test]
    fn random_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 1..=17u8) {
        let kinds = [
            FrameKind::Join, FrameKind::Welcome, FrameKind::Proof, FrameKind::Refuse, FrameKind::State,
            FrameKind::Grant, FrameKind::Log, FrameKind::Ack, FrameKind::Diverged, FrameKind::Bye,
            FrameKind::Dismiss, FrameKind::Handover, FrameKind::Health, FrameKind::Boot,
            FrameKind::Blocks, FrameKind::FlushBlocks, FrameKind::BlocksWritten,
        ];
        let _ = decode_all(&sealed(kinds[usize::from(kind) - 1], &bytes));
    }

    /// What decodes by hand-written code has exactly one encoding.
    #[test]
    fn a_log_payload_that_decodes_encodes_to_itself(
        bytes in proptest::collection::vec(prop_oneof![0..14u8, 62..68u8, 126..132u8, 188..194u8], 1..60),
    ) {
        let frame = sealed(FrameKind::Log, &bytes);
        if let (frames, Ok(())) = decode_all(&frame) {
            let again = FrameEncoder::new().message(Generation(1), &frames[0].message).unwrap().to_vec();
            prop_assert_eq!(again, frame);
        }
    }

    #[test]
    fn random_bytes_are_no_frames(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        let (frames, end) = decode_all(&bytes);
        prop_assert!(frames.is_empty() && end.is_err());
        prop_assert!(decode_heartbeat(&bytes).is_err());
    }

    /// However the stream is cut into reads, and wherever damage sits, only what stood before it comes out.
    #[test]
    fn damage_in_a_stream_yields_what_was_before_it(cut in 1usize..500, at in 0usize..2000, flip in 1u8..) {
        let all: Vec<Vec<u8>> = messages().iter()
            .map(|(_, message)| FrameEncoder::new().message(GENERATION, message).unwrap().to_vec()).collect();
        let mut stream = all.concat();
        let at = at % stream.len();
        stream[at] ^= flip;
        let mut whole = 0;
        let mut end = 0;
        for frame in &all {
            end += frame.len();
            if end <= at { whole += 1 } else { break }
        }
        let mut decoder = FrameDecoder::new();
        let mut found = Vec::new();
        'stream: for part in stream.chunks(cut) {
            if decoder.push(part).is_err() { break }
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => found.push(frame.message),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        prop_assert!(decoder.finish().is_err());
        let expected: Vec<Message> = messages().into_iter().take(whole).map(|(_, message)| message).collect();
        prop_assert_eq!(found, expected);
    }
}
