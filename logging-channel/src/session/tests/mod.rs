use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::message::{DiskReads, Join, PROTOCOL_VERSION, Standby, Welcome};
use crate::transport::{Backoff, FrameStream, TcpFrames, connect};
use ftvm_schema::entry::Generation;

const PRIMARY: Incarnation = Incarnation(1);
const BACKUP: Incarnation = Incarnation(2);
const G: Generation = Generation(4);
const SOON: Duration = Duration::from_secs(5);
/// How long a peer is waited for that says nothing.
const BRIEF: Duration = Duration::from_millis(100);

fn offer() -> Offer {
    Offer {
        welcome: Welcome {
            version: PROTOCOL_VERSION,
            guest: 9,
            generation: G,
            owner: PRIMARY,
            nonce_name: "nonce-1".into(),
            config: vec![1, 2],
            detection_ns: 60_000_000,
            lease_ns: 40_000_000,
            patience_ns: 5_000_000,
            disk_reads: DiskReads::Log,
        },
        delivery_mode: "window".into(),
        nonce: vec![7; 16],
        host: "host-a".into(),
        site: "east".into(),
        unprotected: Duration::from_millis(1500),
    }
}

fn hello() -> Join {
    Join {
        version: PROTOCOL_VERSION,
        incarnation: BACKUP,
        delivery_modes: vec!["none".into(), "window".into()],
        host: "host-b".into(),
        standby: None,
    }
}

fn proof() -> Message {
    Message::Proof { nonce: vec![7; 16] }
}

fn refuse(reason: &str) -> Message {
    Message::Refuse { reason: reason.into() }
}

fn client() -> JoinClient {
    JoinClient::new(hello())
}

/// A client that has its answer.
fn welcomed() -> JoinClient {
    let mut client = client();
    client.on_message(Message::Welcome(offer().welcome)).unwrap();
    client
}

mod primary;

mod backup;

mod connected;
