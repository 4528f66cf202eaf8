//! The texts that users see, word for word: a change here is a change of what they read.

use crate::{ApplyError, BadState, ConfigError, RestoreError};

#[test]
fn what_is_wrong_with_a_configuration_reads_as_it_always_did() {
    let what = "disks";
    let serial = "a\nb".to_owned();
    let mac = [3, 0, 0, 0, 0, 1];
    let texts = [
        ConfigError::TooMany { what, max: 8, found: 9 },
        ConfigError::NotUnicast { nic: 0, mac },
        ConfigError::DuplicateMac { nic: 1, mac },
        ConfigError::DiskSize { disk: 0, sectors: 0 },
        ConfigError::Serial { disk: 0, serial },
    ]
    .map(|error| error.to_string());
    let expected = [
        "9 disks configured; this platform has room for 8",
        "network card 0: 03:00:00:00:00:01 is no unicast address; use one whose first byte is even, such as 02:…",
        "network card 1: address 03:00:00:00:00:01 is used twice",
        "disk 0: 0 sectors of 512 bytes; there must be 1 to 18014398509481984",
        "disk 0: serial \"a\\nb\" must be at most 20 printable ASCII characters",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_an_input_or_a_state_is_refused_reads_as_it_always_did() {
    let (device, disk, id) = ("disk", 1, 7);
    let bad = BadState::new("a virtqueue's maximal size", "what the device offers", 3);
    let texts = [
        ApplyError::ClockDiffers { input: 1, now: 2 }.to_string(),
        ApplyError::ClockWentBack { input: 1, last: 2 }.to_string(),
        ApplyError::NoSuchDevice { device, index: 2 }.to_string(),
        ApplyError::NoSuchRequest { disk, id }.to_string(),
        ApplyError::WithoutData { disk, id }.to_string(),
        ApplyError::DataLength {
            disk,
            id,
            expected: 512,
            found: 1,
        }
        .to_string(),
        RestoreError::Version { found: 9 }.to_string(),
        RestoreError::OtherPlatform.to_string(),
        RestoreError::Damaged(bad).to_string(),
    ];
    let expected = [
        "clock input says 1 ns but the environment says 2 ns; they must be the same",
        "clock input says 1 ns, earlier than 2 ns handed out before; the log is damaged or misplaced",
        "the input is for disk 2, which this machine does not have; was it started with other devices?",
        "request 7 of disk 1 is not outstanding, so it cannot complete",
        "what request 7 read from disk 1 is not in the log",
        "request 7 of disk 1 must bring 512 bytes, not 1",
        "device state has version 9, this program reads version 1; use the same ftvm on both sides",
        "device state belongs to a machine with other devices; start both sides with the same configuration",
        "device state is damaged: a virtqueue's maximal size must be what the device offers, found 3",
    ];
    assert_eq!(texts, expected);
}
