//! Files that were cut off, changed, or never were logs.

use proptest::prelude::*;

use super::*;

#[test]
fn truncation_at_any_byte_yields_all_whole_frames_and_says_how_far() {
    let log = sample_log();
    let mut bytes = Vec::new();
    // One frame per entry; what is whole is then a matter of counting.
    let mut ends = vec![];
    let mut writer = LogWriter::new(&mut bytes, name(), &header()).unwrap();
    for entry in &log {
        ends.push(writer.offset_for_test());
        writer.append(std::slice::from_ref(entry)).unwrap();
        writer.flush().unwrap();
    }
    let last = writer.offset_for_test();
    writer.finish(ending()).unwrap();
    let header_end = ends.remove(0);
    ends.push(last);
    for cut in 0..bytes.len() {
        let (found, end) = read(&bytes[..cut]);
        let whole = ends.iter().filter(|end| **end <= cut as u64).count();
        assert_eq!(found, log[..whole], "cut at {cut}");
        let LogError::Truncated { offset, last_good, .. } = end.unwrap_err() else {
            panic!("cut at {cut}")
        };
        let expected = if (cut as u64) < header_end {
            0
        } else {
            [&[header_end], &ends[..]].concat()[whole]
        };
        assert_eq!(offset, expected);
        assert_eq!(last_good.is_some(), whole > 0);
    }
    let cut = usize::try_from(last).unwrap();
    let text = read(&bytes[..cut]).1.unwrap_err().to_string();
    assert!(text.ends_with("everything up to exit 1700 can be replayed"), "{text}");
}

#[test]
fn any_flipped_bit_is_damage_after_all_that_stood_before() {
    let log = sample_log();
    let bytes = written(&header(), &log);
    let mut writer = LogWriter::new(Vec::new(), name(), &header()).unwrap();
    let log_start = usize::try_from(writer.offset_for_test()).unwrap();
    writer.append(&log).unwrap();
    writer.flush().unwrap();
    let log_end = usize::try_from(writer.offset_for_test()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (found, end) = read(&damaged);
        if bit / 8 < log_end {
            assert!(found.is_empty(), "bit {bit}");
        } else {
            assert_eq!(found, log, "bit {bit}");
        }
        let error = end.unwrap_err();
        match &error {
            LogError::Damaged { source, .. } => {
                let start = if bit / 8 < log_start {
                    0
                } else if bit / 8 < log_end {
                    log_start
                } else {
                    log_end
                };
                assert_eq!(source.offset, start as u64, "bit {bit}: {error}");
            }
            LogError::NotALog { .. } => assert!(bit / 8 < 3),
            other => panic!("bit {bit}: {other}"),
        }
    }
}

#[test]
fn damage_in_the_middle_of_a_long_log_names_frame_and_exit() {
    let log = long_log();
    let mut bytes = written(&header(), &log);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let (found, end) = read(&bytes);
    assert!(found.len() > 10_000 && found.len() < 50_000);
    assert!(found == log[..found.len()]);
    let LogError::Damaged { source, last_good, .. } = end.unwrap_err() else {
        panic!("no damage")
    };
    assert_eq!(last_good, Some(position(found.len() as u64, 1)));
    assert!(source.offset <= middle as u64 && source.offset + FRAME_TARGET as u64 + 100 > middle as u64);
    assert!(matches!(source.fault, FrameFault::PayloadChecksum { .. }));
}

#[test]
fn a_missing_a_repeated_and_a_stray_frame_are_noticed() {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, name(), &header()).unwrap();
    let mut ends = vec![writer.offset_for_test()];
    for exit in 1..=3 {
        writer.append(&[tick(exit)]).unwrap();
        writer.flush().unwrap();
        ends.push(writer.offset_for_test());
    }
    writer.finish(ending()).unwrap();
    let ends: Vec<usize> = ends.into_iter().map(|end| usize::try_from(end).unwrap()).collect();
    let (first, second) = (&bytes[ends[0]..ends[1]], &bytes[ends[1]..ends[2]]);

    let lacking = [&bytes[..ends[1]], &bytes[ends[2]..]].concat();
    assert!(matches!(
        read(&lacking).1,
        Err(LogError::Missing {
            expected: 2,
            found: 3,
            ..
        })
    ));
    let last_lacking = [&bytes[..ends[2]], &bytes[ends[3]..]].concat();
    assert!(matches!(
        read(&last_lacking).1,
        Err(LogError::Miscounted {
            what: "entries",
            expected: 3,
            found: 2,
            ..
        })
    ));
    let twice = [&bytes[..ends[2]], second, &bytes[ends[2]..]].concat();
    assert!(matches!(
        read(&twice).1,
        Err(LogError::Missing {
            expected: 3,
            found: 2,
            ..
        })
    ));
    let header_again = [&bytes[..ends[2]], &bytes[..ends[0]], &bytes[ends[2]..]].concat();
    assert!(matches!(read(&header_again).1, Err(LogError::Damaged { .. })));
    for trailing in [first, &first[..5], b"x"] {
        let (found, end) = read(&[&bytes, trailing].concat());
        assert_eq!(found.len(), 3);
        assert!(matches!(end, Err(LogError::Damaged { .. })), "{end:?}");
    }
}

#[test]
fn what_is_no_log_is_said_to_be_none() {
    for bytes in [&b"\x7fELF and so on, for more than a header"[..], &[0; 100]] {
        assert!(matches!(read(bytes).1, Err(LogError::NotALog { .. })));
    }
    assert!(matches!(read(b"").1, Err(LogError::Truncated { .. })));
    let version = PROTOCOL_VERSION + 1;
    let other = FileHeader { version, ..header() };
    assert!(matches!(
        read(&written(&other, &[])).1,
        Err(LogError::OtherVersion { found, .. }) if found == version
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_never_passes_and_never_panics(at: prop::sample::Index, with: Vec<u8>, cut: prop::sample::Index) {
        let log = sample_log();
        let mut bytes = written(&header(), &log);
        let at = at.index(bytes.len());
        let end = (at + cut.index(40)).min(bytes.len());
        let before = bytes.clone();
        bytes.splice(at..end, with);
        let (found, result) = read(&bytes);
        prop_assert_eq!(&found, &log[..found.len()]);
        prop_assert_eq!(result.is_ok(), bytes == before);
    }
}
