//! The texts that users see, word for word: a change here is a change of what they read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::{ExitSeq, Incarnation, Position};

use crate::chunk::ChunkError;
use crate::codec::EncodeError;
use crate::file::LogError;
use crate::session::SessionError;
use crate::transport::TransportError;

fn refused() -> io::Error {
    io::Error::from_raw_os_error(111)
}

#[test]
fn what_is_wrong_with_a_connection_reads_as_it_always_did() {
    let peer = || "10.0.0.2:7".to_owned();
    let (what, len, limit) = ("a chunk", 9, 8);
    let texts = [
        TransportError::Connect {
            peer: peer(),
            attempts: 3,
            source: refused(),
        },
        TransportError::Closed { peer: peer() },
        TransportError::Encode {
            peer: peer(),
            source: EncodeError::DataTooLong { what, len, limit },
        },
        TransportError::Io {
            doing: "read from",
            peer: peer(),
            source: refused(),
        },
        TransportError::WriteTimeout {
            peer: peer(),
            after: Duration::from_secs(5),
        },
        TransportError::Broken { peer: peer() },
    ]
    .map(|error| error.to_string());
    let encode = format!("to 10.0.0.2:7: {}", EncodeError::DataTooLong { what, len, limit });
    let expected = [
        "cannot connect to 10.0.0.2:7, tried 3 times: Connection refused (os error 111)",
        "10.0.0.2:7 closed the connection",
        &encode,
        "cannot read from 10.0.0.2:7: Connection refused (os error 111)",
        "10.0.0.2:7 took nothing for 5s: it is stuck, or the network is",
        "an earlier frame to 10.0.0.2:7 was cut off: nothing more can be sent on this connection",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_there_is_no_session_reads_as_it_always_did() {
    let name = || "n".to_owned();
    let (lease_ns, detection_ns) = (2, 1);
    let texts = [
        SessionError::Version {
            who: "backup",
            expected: 2,
            found: 1,
        },
        SessionError::DeliveryMode {
            needed: "window".to_owned(),
            offered: vec!["none".to_owned()],
        },
        SessionError::SameHost,
        SessionError::SameSite { site: name() },
        SessionError::NotItsTurn {
            priority: 2,
            left: Duration::from_millis(1500),
        },
        SessionError::SameIncarnation(Incarnation(7)),
        SessionError::WrongNonce { name: name() },
        SessionError::NonceName { name: name() },
        SessionError::Unacceptable("the backup: no room".into()),
        SessionError::Lease { lease_ns, detection_ns },
        SessionError::Unexpected {
            expected: "a Join message",
            found: "Bye",
        },
        SessionError::Refused { reason: name() },
        SessionError::TimedOut {
            what: "the backup did not complete the handshake",
            after: Duration::from_secs(5),
        },
    ]
    .map(|error| error.to_string());
    let expected = [
        "the backup speaks protocol version 1, expected 2: run the same release on both hosts",
        "the guest needs delivery mode `window`, which the backup's host lacks; it can do: none",
        "a standby does not protect a guest on its own host: start it elsewhere, or with --allow-same-host",
        "a standby does not protect a guest at its own site, n: start it elsewhere, or with --allow-same-site",
        "a standby of priority 2 waits for those before it, 1500 ms more",
        "primary and backup have the same incarnation 00000000000000000000000000000007: this is one process talking to itself",
        "the file `n` in the backup's shared directory does not hold what the primary wrote: it is not the same storage; \
         mount the same directory on both hosts",
        "the primary asks for a file called \"n\"; a plain file name was expected",
        "the backup: no room",
        "the primary's lease of 2 ns must be above 0 and at most its detection time of 1 ns",
        "expected a Join message, found a Bye message",
        "the other side refuses: n",
        "the backup did not complete the handshake within 5s",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn what_is_wrong_with_a_log_file_reads_as_it_always_did() {
    let path = || PathBuf::from("a.log");
    let last_good = Some(Position { exit: ExitSeq(9), k: 1 });
    let (total, cap) = (9, 8);
    let state = ChunkError::TooLong { total, cap };
    let texts = [
        LogError::Io {
            doing: "open",
            path: path(),
            source: Arc::new(io::Error::from_raw_os_error(2)),
        }
        .to_string(),
        LogError::Exists { path: path() }.to_string(),
        LogError::Full {
            path: path(),
            offset: 100,
            last_good,
            source: Arc::new(io::Error::from_raw_os_error(28)),
        }
        .to_string(),
        LogError::OtherVersion {
            path: path(),
            expected: 2,
            found: 1,
        }
        .to_string(),
        LogError::Truncated {
            path: path(),
            offset: 100,
            last_good: None,
        }
        .to_string(),
        LogError::Missing {
            path: path(),
            expected: 4,
            found: 5,
            last_good,
        }
        .to_string(),
        state.to_string(),
    ];
    let expected = [
        "cannot open a.log: No such file or directory (os error 2)",
        "a.log exists already: choose another name, or ask for it to be replaced",
        "no room left to write a.log: No space left on device (os error 28); it holds the first 100 bytes of the recording, \
         and everything up to exit 9 can be replayed",
        "a.log was recorded with log version 1, this program reads 2",
        "a.log is cut off at byte 100: nothing of it can be replayed",
        "a.log lacks log frames: expected frame 4, found 5; everything up to exit 9 can be replayed",
        "a record of 9 bytes is longer than the 8 allowed here",
    ];
    assert_eq!(texts, expected);
}
