//! A source of blocks and a backup's copies, over a connection.

use std::path::Path;

use logging_channel::message::DiskReads;
use logging_channel::transport::TcpFrames;
use shared_disk::image::{Caching, ImageAccess};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::link::connection::{Connection, connection_id, link_events};
use crate::outside::copies::PrivateDisks;
use ftvm_devices::{DiskAccess, DiskConfig, DiskSharing, PlatformConfig};
use ftvm_roles::copies::Copies as _;

const BACKUP: Incarnation = Incarnation(9);
const G: Generation = Generation(3);
/// More messages than may be under way, and a short extent at the end.
const SIZE: u64 = (BLOCKS_UNDER_WAY + 3) * MAX_BLOCKS as u64 * EXTENT + 512;

fn image(path: &Path, content: &[u8]) -> DiskImage {
    std::fs::write(path, content).unwrap();
    DiskImage::open(path, ImageAccess::ReadWrite, Caching::Buffered).unwrap()
}

fn copies(path: &Path) -> PrivateDisks {
    let disk = DiskConfig {
        sectors: SIZE / 512,
        access: DiskAccess::ReadWrite,
        sharing: DiskSharing::Private,
        serial: String::new(),
    };
    let platform = PlatformConfig {
        disks: vec![disk],
        ..PlatformConfig::default()
    };
    let option = format!("path={},direct=off,private=on", path.display())
        .parse()
        .unwrap();
    PrivateDisks::open(&[option], &platform, DiskReads::Log, G, Incarnation(1)).unwrap()
}

/// Two ends of a connection.
async fn frames() -> (TcpFrames, TcpFrames) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (
        TcpFrames::tcp(ours.unwrap()).unwrap(),
        TcpFrames::tcp(theirs.unwrap().0).unwrap(),
    )
}

/// Takes `count` messages, or all of a round.
async fn take(frames: &mut TcpFrames, copies: &mut PrivateDisks, count: u64) -> (u64, u64) {
    let (mut messages, mut extents) = (0, 0);
    while messages < count {
        messages += 1;
        match frames.recv().await.unwrap().1 {
            Message::Blocks { disk, numbers, content } => {
                extents += numbers.len() as u64;
                copies.put(disk, &numbers, &content).unwrap();
            }
            Message::FlushBlocks => {
                copies.flush().unwrap();
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    (messages, extents)
}

async fn play() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let bytes = usize::try_from(SIZE).unwrap();
    let content: Vec<u8> = (0..bytes).map(|n| (n / 1000 % 251).to_le_bytes()[0]).collect();
    let original = Arc::new(image(&path("a"), &content));
    std::fs::write(path("b"), vec![0xee; bytes]).unwrap();
    let mut copies = copies(&path("b"));
    let mut source = BlockSource::new(BTreeMap::from([(0, Arc::clone(&original))]));
    let (ours, mut theirs) = frames().await;
    let (events, mut heard) = link_events();
    let connection = Connection::start(connection_id(), ours, &events);

    source.send(Blocks::All, BACKUP, G, connection.outbox(), events.clone());
    assert_eq!(
        take(&mut theirs, &mut copies, BLOCKS_UNDER_WAY).await.0,
        BLOCKS_UNDER_WAY
    );
    let more = tokio::time::timeout(Duration::from_millis(100), theirs.recv()).await;
    assert!(more.is_err(), "nothing goes ahead of what is written: {more:?}");
    assert!(matches!(source.progress(), Some(Event::Mirroring { of, .. }) if of > SIZE));
    source.confirmed(Incarnation(8), 1000);
    let more = tokio::time::timeout(Duration::from_millis(50), theirs.recv()).await;
    assert!(more.is_err(), "another backup's word counts for nothing: {more:?}");
    source.confirmed(BACKUP, BLOCKS_UNDER_WAY);
    let (messages, _) = take(&mut theirs, &mut copies, u64::MAX).await;
    let early = tokio::time::timeout(Duration::from_millis(50), heard.recv()).await;
    assert!(
        early.is_err(),
        "the round is not over before all of it is written: {early:?}"
    );
    source.confirmed(BACKUP, BLOCKS_UNDER_WAY + messages);
    let over = heard.recv().await;
    assert!(
        matches!(
            over,
            Some(LinkEvent::BlocksSent {
                to: BACKUP,
                bytes: SIZE
            })
        ),
        "{over:?}"
    );
    assert!(std::fs::read(path("b")).unwrap() == content);

    // What is written meanwhile, and nothing else, is the next round's.
    original.write_at(3 * EXTENT, &[1; 512]).unwrap();
    let written = source.written();
    written.lock().begins();
    assert_eq!(source.writes(), 1);
    written.lock().over(0, 3 * EXTENT, 512);
    source.send(Blocks::Written, BACKUP, G, connection.outbox(), events.clone());
    assert_eq!(take(&mut theirs, &mut copies, u64::MAX).await, (2, 1));
    source.confirmed(BACKUP, BLOCKS_UNDER_WAY + messages + 2);
    let over = heard.recv().await;
    assert!(
        matches!(
            over,
            Some(LinkEvent::BlocksSent {
                to: BACKUP,
                bytes: EXTENT
            })
        ),
        "{over:?}"
    );
    assert!(std::fs::read(path("a")).unwrap() == std::fs::read(path("b")).unwrap());
}

#[test]
fn rounds_reach_the_copy_no_faster_than_it_is_written() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(play());
}
