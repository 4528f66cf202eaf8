//! Links over a world that only writes down what is asked of it: each test reads the order.

mod backup;
mod begin;
mod primary;
mod recorder;

use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::{ConsolePort, Digest, ExitSeq, Generation, Incarnation, LogEntry, Mark, OutputSeq, Position};
use ftvm_schema::request::{DiskOp, DiskRequest};
use logging_channel::message::{Ack, DiskReads, Health, Message};

use super::begin::Beginning;
use super::guest::FromGuest;
use super::primary::{PrimaryEvent, PrimaryLink};
use super::world::{Call, ConnectionId, LinkEvent};
use crate::disks::UnderWay;
use crate::event::{Event, Protection};
use crate::host_event::HostEvent;
use crate::terms::Terms;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::{Emission, Output};
use recorder::{Did, Hands, Recorder};

const MS: u64 = 1_000_000;
const D: u64 = 500 * MS;
const L: u64 = 300 * MS;
const NOW: u64 = 1_000_000 * MS;
const ME: Incarnation = Incarnation(7);
const PEER: Incarnation = Incarnation(9);
const G: Generation = Generation(1);

fn terms() -> Terms {
    Terms {
        me: ME,
        guest: 1,
        generation: G,
        detection_ns: D,
        lease_ns: L,
        patience_ns: 0,
        disk_reads: DiskReads::Log,
    }
}

fn at(exit: u64) -> Position {
    Position {
        exit: ExitSeq(exit),
        k: 0,
    }
}

fn mark(exit: u64) -> Mark {
    Mark {
        at: at(exit),
        digest: Digest::default(),
        outputs: OutputSeq(0),
        sent_ns: 0,
        registers: None,
        memory_hash: None,
    }
}

fn write(disk: u8, id: u64) -> DiskRequest {
    let data = Arc::new(vec![0; 512]);
    let op = DiskOp::Write { offset: 0, data };
    DiskRequest { disk, id, op }
}

fn console(exit: u64, seq: u64) -> Output {
    let emission = Emission::Console {
        port: ConsolePort::Serial,
        position: seq,
        bytes: vec![b'x'],
    };
    let seq = OutputSeq(seq);
    Output {
        at: at(exit),
        seq,
        emission,
    }
}

/// The guest has come to an exit, with outputs on the way.
fn batch(exit: u64, outputs: Vec<Output>) -> PrimaryEvent {
    PrimaryEvent::Guest(FromGuest::Batch {
        entries: vec![LogEntry::Mark(mark(exit))],
        outputs,
        finished: vec![],
    })
}

fn from_peer(connection: u64, message: Message) -> PrimaryEvent {
    PrimaryEvent::Link(LinkEvent::Message {
        connection: ConnectionId(connection),
        generation: G,
        message,
    })
}

fn ack(frame: u64, exit: u64, echo_ns: u64) -> Message {
    Message::Ack(Ack {
        incarnation: PEER,
        frame,
        received: at(exit),
        executed: at(exit),
        echo_ns,
    })
}

fn closed(connection: u64) -> LinkEvent {
    LinkEvent::Closed {
        connection: ConnectionId(connection),
        why: "gone".to_owned(),
    }
}

/// A primary whose guest has just been started.
fn started(world: &mut Recorder) -> PrimaryLink<Hands> {
    let mut link = PrimaryLink::begin(terms(), BootCell::default(), Beginning::Started, world).unwrap();
    link.disks_reserved(world).unwrap();
    world.taken(|_| false);
    link
}

/// And a backup joins it on that connection, up to the state record.
fn joining(link: &mut PrimaryLink<Hands>, connection: u64, world: &mut Recorder) {
    let joined = LinkEvent::Joined {
        connection: ConnectionId(connection),
        backup: PEER,
    };
    link.step(PrimaryEvent::Link(joined), world).unwrap();
}

/// And gets it, and acks it: the guest is protected, at exit 100.
fn protected(world: &mut Recorder) -> PrimaryLink<Hands> {
    let mut link = started(world);
    joining(&mut link, 1, world);
    for pages in [vec![], vec![1]] {
        link.step(PrimaryEvent::Guest(FromGuest::Dirty(pages)), world).unwrap();
        let sent = LinkEvent::PagesSent {
            to: PEER,
            pages: 1,
            bytes: 100,
        };
        link.step(PrimaryEvent::Link(sent), world).unwrap();
    }
    link.step(state(100), world).unwrap();
    link.step(from_peer(1, ack(1, 100, NOW)), world).unwrap();
    assert_eq!(link.core().protection(), Protection::Protected);
    world.taken(|_| false);
    link
}

fn state(exit: u64) -> PrimaryEvent {
    PrimaryEvent::Guest(FromGuest::State {
        record: b"state".to_vec(),
        mark: mark(exit),
        stopped: Duration::ZERO,
    })
}
