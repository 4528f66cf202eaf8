//! One message of each kind and one entry of each kind, for the golden frames and other tests.

use crate::message::{Ack, DiskReads, Grant, Health, Heartbeat, Join, Message, PROTOCOL_VERSION, Standby, Welcome};
use ftvm_schema::entry::{
    Chunk, ConsolePort, Digest, DiskStatus, EndReason, ExitSeq, Generation, Incarnation, Input, Intervention, LogEntry,
    Mark, OutputSeq, Position,
};

pub(crate) const GENERATION: Generation = Generation(0x0102_0304_0506_0708);

pub(crate) fn position(exit: u64, k: u32) -> Position {
    Position { exit: ExitSeq(exit), k }
}

fn chunk() -> Chunk {
    Chunk {
        total: 1000,
        offset: 300,
        crc: 0xDEAD_BEEF,
        bytes: vec![1, 2, 3],
    }
}

fn input(exit: u64, input: Input) -> LogEntry {
    LogEntry::Input {
        at: ExitSeq(exit),
        input,
    }
}

fn mark(parts: bool) -> Mark {
    Mark {
        at: position(1500, 3),
        digest: Digest(0x1122_3344_5566_7788),
        outputs: OutputSeq(40),
        sent_ns: 5_000_000_000,
        registers: parts.then(|| Box::new(std::array::from_fn(|n| 0xFFFF_8000_0000_0000 + n as u64))),
        memory_hash: parts.then_some(77),
    }
}

fn end(reason: EndReason) -> LogEntry {
    LogEntry::End {
        at: position(1700, 2),
        reason,
    }
}

/// Every kind of entry, by name, positions growing.
pub(crate) fn entries() -> Vec<(&'static str, LogEntry)> {
    vec![
        // In a frame of its own, an entry's distances are these numbers.
        ("near-clock", input(63, Input::Clock(10_000_001))),
        ("near-clock-in-steps", input(63, Input::Clock(300 * 1024))),
        ("clock", input(1000, Input::Clock(10_000_000))),
        (
            "net-rx",
            input(
                1000,
                Input::NetRx {
                    nic: 1,
                    frame: vec![0xAA; 20],
                },
            ),
        ),
        (
            "disk-done",
            input(
                1200,
                Input::DiskDone {
                    disk: 2,
                    id: 300,
                    status: DiskStatus::Ok,
                    data: vec![5; 8],
                },
            ),
        ),
        (
            "disk-read",
            input(
                1200,
                Input::DiskRead {
                    disk: 1,
                    id: 300,
                    digest: Digest(0x0123_4567_89AB_CDEF),
                },
            ),
        ),
        (
            "disk-error",
            input(
                1200,
                Input::DiskDone {
                    disk: 0,
                    id: 301,
                    status: DiskStatus::IoError,
                    data: vec![],
                },
            ),
        ),
        (
            "disk-unsupported",
            input(
                1200,
                Input::DiskDone {
                    disk: 0,
                    id: 302,
                    status: DiskStatus::Unsupported,
                    data: vec![],
                },
            ),
        ),
        (
            "console-serial",
            input(
                1300,
                Input::ConsoleRx {
                    port: ConsolePort::Serial,
                    bytes: b"ls\n".to_vec(),
                },
            ),
        ),
        (
            "console-virtio",
            input(
                1300,
                Input::ConsoleRx {
                    port: ConsolePort::Virtio,
                    bytes: b"x".to_vec(),
                },
            ),
        ),
        ("entropy", input(1400, Input::Entropy { bytes: vec![9; 16] })),
        ("pause", input(1450, Input::Control(Intervention::Pause))),
        ("resume", input(1450, Input::Control(Intervention::Resume))),
        ("reset", input(1450, Input::Control(Intervention::Reset))),
        ("mark", LogEntry::Mark(mark(false))),
        ("mark-with-parts", LogEntry::Mark(mark(true))),
        ("released", LogEntry::Released { through: OutputSeq(39) }),
        (
            "checkpoint",
            LogEntry::Checkpoint {
                at: position(1600, 1),
                chunk: chunk(),
            },
        ),
        (
            "checks",
            LogEntry::Checks {
                from: ExitSeq(1001),
                bytes: vec![0x42; 5],
            },
        ),
        ("end-power-off", end(EndReason::PowerOff { status: 33 })),
        ("end-reset", end(EndReason::Reset)),
        (
            "end-guest-failure",
            end(EndReason::GuestFailure {
                what: "triple fault".into(),
            }),
        ),
        ("end-stopped", end(EndReason::Stopped)),
        ("end-limit", end(EndReason::Limit)),
    ]
}

/// Every kind of message, by name.
pub(crate) fn messages() -> Vec<(&'static str, Message)> {
    vec![
        (
            "join",
            Message::Join(Join {
                version: PROTOCOL_VERSION,
                incarnation: Incarnation(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF),
                delivery_modes: vec!["none".into(), "window".into()],
                host: "host-a".into(),
                standby: Some(Standby {
                    priority: 1,
                    site: "east".into(),
                    same_host: true,
                    same_site: true,
                }),
            }),
        ),
        (
            "welcome",
            Message::Welcome(Welcome {
                version: PROTOCOL_VERSION,
                guest: 99,
                generation: Generation(4),
                owner: Incarnation(7),
                nonce_name: "nonce-1".into(),
                config: vec![1, 2, 3, 250, 251],
                detection_ns: 60_000_000,
                lease_ns: 40_000_000,
                patience_ns: 5_000_000,
                disk_reads: DiskReads::Backup,
            }),
        ),
        ("proof", Message::Proof { nonce: vec![1; 16] }),
        (
            "refuse",
            Message::Refuse {
                reason: "delivery mode".into(),
            },
        ),
        ("state", Message::State(chunk())),
        (
            "pages",
            Message::Pages {
                numbers: vec![5, 6, 70_000],
                content: vec![1, 2, 3],
            },
        ),
        (
            "blocks",
            Message::Blocks {
                disk: 3,
                numbers: vec![0, 7, 70_000],
                content: vec![1, 2, 3],
            },
        ),
        ("flush-blocks", Message::FlushBlocks),
        (
            "blocks-written",
            Message::BlocksWritten {
                incarnation: Incarnation(8),
                messages: 300,
            },
        ),
        (
            "grant",
            Message::Grant(Grant {
                generation: Generation(4),
                incarnation: Incarnation(8),
                at: position(100, 2),
                digest: Digest(55),
                outputs: OutputSeq(6),
            }),
        ),
        (
            "log",
            Message::Log {
                number: 300,
                entries: entries().into_iter().map(|(_, entry)| entry).collect(),
            },
        ),
        (
            "ack",
            Message::Ack(Ack {
                incarnation: Incarnation(8),
                frame: 300,
                received: position(1700, 2),
                executed: position(1500, 3),
                echo_ns: 5_000_000_000,
            }),
        ),
        (
            "diverged",
            Message::Diverged {
                at: position(1500, 3),
                what: "digest".into(),
            },
        ),
        ("bye", Message::Bye),
        ("dismiss", Message::Dismiss),
        ("handover", Message::Handover),
        (
            "health",
            Message::Health(Health {
                disks: vec![true, false],
                nics: vec![true],
            }),
        ),
        ("boot", Message::Boot(chunk())),
    ]
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        guest: 99,
        generation: GENERATION,
        incarnation: Incarnation(8),
        number: 1000,
        sent_ns: 6_000_000_000,
        echo_ns: 5_900_000_000,
    }
}
