use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::queue::{EventQueue, event_queue};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::host_event::MAX_EVENTS;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

const NEVER_FORGET: Duration = Duration::from_secs(3600);

fn dgram(local: &Path, remote: &Path) -> NetBackend {
    let config = NetConfig::Dgram {
        local: local.to_owned(),
        remote: remote.to_owned(),
    };
    NetBackend::open(&config).expect("opens")
}

fn frame(number: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0x5A; len];
    frame[..2].copy_from_slice(&number.to_be_bytes());
    frame
}

fn next_frame(queue: &EventQueue) -> Vec<u8> {
    match queue.recv_deadline(Some(Instant::now() + PATIENCE)) {
        Some(HostEvent::Frame { nic: 3, bytes }) => bytes,
        other => panic!("a frame for card 3 was expected, found {other:?}"),
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn two_backends_are_a_cable() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = dgram(&a, &b);
    let right = dgram(&b, &a);
    assert_eq!(left.send(&frame(1, MAX_FRAME)).expect("sends"), Sent::Done);
    assert_eq!(right.send(&frame(2, MIN_FRAME)).expect("sends"), Sent::Done);
    let mut buffer = [0; 2000];
    assert_eq!(right.recv(&mut buffer).expect("receives"), Some(MAX_FRAME));
    assert_eq!(left.recv(&mut buffer).expect("receives"), Some(MIN_FRAME));
    assert_eq!(buffer[..MIN_FRAME], frame(2, MIN_FRAME));
    assert_eq!(left.recv(&mut buffer).expect("nothing there"), None);
}

#[test]
fn a_missing_or_dead_peer_is_an_unplugged_cable() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = dgram(&a, &b);
    assert_eq!(left.send(&frame(1, 60)).expect("no file"), Sent::Dropped);
    drop(UnixDatagram::bind(&b).expect("bind"));
    assert_eq!(left.send(&frame(1, 60)).expect("nobody there"), Sent::Dropped);
    let right = dgram(&b, &a);
    assert_eq!(left.send(&frame(7, 60)).expect("plugged in"), Sent::Done);
    assert_eq!(right.recv(&mut [0; 2000]).expect("receives"), Some(60));
}

#[test]
fn a_peer_that_does_not_read_costs_one_wait() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = dgram(&a, &b);
    let right = UnixDatagram::bind(&b).expect("bind");
    // More than any sysctl lets a queue grow: the first one that finds it full waits, the others do not.
    let begun = Instant::now();
    let dropped = (0..20_000)
        .filter(|_| left.send(&frame(1, 60)).expect("no error") == Sent::Dropped)
        .count();
    assert!(dropped > 1000, "the queue never filled: {dropped}");
    assert!(begun.elapsed() < PATIENCE, "each frame waited: {:?}", begun.elapsed());
    right.recv(&mut [0; 2000]).expect("receives");
    assert_eq!(left.send(&frame(2, 60)).expect("room again"), Sent::Done);
}

#[test]
fn frames_of_impossible_size_are_not_sent() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = dgram(&a, &b);
    let right = UnixDatagram::bind(&b).expect("bind");
    right.set_nonblocking(true).expect("set");
    for len in [MIN_FRAME - 1, MAX_FRAME + 1] {
        assert_eq!(left.send(&frame(1, len)).expect("no error"), Sent::Dropped, "{len}");
        assert!(right.recv(&mut [0; 2000]).is_err(), "{len} bytes arrived");
    }
}

#[test]
fn a_cable_from_a_socket_to_itself_is_refused() {
    let config = NetConfig::Dgram {
        local: "/tmp/x".into(),
        remote: "/tmp/x".into(),
    };
    assert!(matches!(NetBackend::open(&config), Err(NetError::Loop(_))));
}

#[test]
fn a_live_reader_forwards_and_counts() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let peer = UnixDatagram::bind(&a).expect("bind");
    let (sender, queue) = event_queue();
    let backend = Arc::new(dgram(&b, &a));
    let reader = spawn_reader(backend, 3, Inbound::Forward, NEVER_FORGET, sender).expect("starts");
    for bad in [0, MIN_FRAME - 1, MAX_FRAME + 1, 5000] {
        peer.send_to(&vec![0; bad], &b).expect("sends");
    }
    for number in 0..50 {
        peer.send_to(&frame(number, 60), &b).expect("sends");
    }
    for number in 0..50 {
        assert_eq!(next_frame(&queue), frame(number, 60));
    }
    // A frame is counted just after it is queued.
    wait_until("all frames counted", || reader.counts().forwarded == 50);
    let expected = NetCounts {
        forwarded: 50,
        dropped_size: 4,
        ..NetCounts::default()
    };
    assert_eq!(reader.counts(), expected);
}

#[test]
fn a_full_queue_drops_frames_and_counts_them() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let peer = UnixDatagram::bind(&a).expect("bind");
    let (sender, queue) = event_queue();
    let reader = spawn_reader(Arc::new(dgram(&b, &a)), 3, Inbound::Forward, NEVER_FORGET, sender).expect("starts");
    let count = u16::try_from(MAX_EVENTS).expect("small") + 10;
    for number in 0..count {
        peer.send_to(&frame(number, 60), &b).expect("sends");
    }
    wait_until("all frames counted", || reader.counts().dropped_full == 10);
    assert_eq!(reader.counts().forwarded, u64::from(count) - 10);
    assert_eq!(next_frame(&queue), frame(0, 60));
}

#[test]
fn a_backup_keeps_frames_and_delivers_them_at_go_live_in_order() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let peer = UnixDatagram::bind(&a).expect("bind");
    let (sender, queue) = event_queue();
    let reader = spawn_reader(Arc::new(dgram(&b, &a)), 3, Inbound::Keep, NEVER_FORGET, sender).expect("starts");
    // A blocking send returns once the reader has made room, so all but the last queue length have been kept.
    let sent = u16::try_from(MAX_KEPT_FRAMES).expect("small") + 100;
    for number in 0..sent {
        peer.send_to(&frame(number, 60), &b).expect("sends");
    }
    wait_until("all frames kept", || reader.counts().forgotten == 100);
    assert_eq!(queue.try_recv(), None, "a backup forwards nothing");
    reader.go_live();
    reader.go_live();
    for number in 100..sent {
        assert_eq!(next_frame(&queue), frame(number, 60));
    }
    peer.send_to(&frame(9999, 60), &b).expect("sends");
    assert_eq!(next_frame(&queue), frame(9999, 60), "and then what arrives");
    drop(reader);
    assert_eq!(queue.try_recv(), None, "nothing twice");
}

#[test]
fn a_backup_forgets_what_is_old() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let peer = UnixDatagram::bind(&a).expect("bind");
    let (sender, queue) = event_queue();
    let keep = Duration::from_millis(1);
    let reader = spawn_reader(Arc::new(dgram(&b, &a)), 3, Inbound::Keep, keep, sender).expect("starts");
    peer.send_to(&frame(1, 60), &b).expect("sends");
    wait_until("the old frame is forgotten", || {
        peer.send_to(&frame(2, 60), &b).expect("sends");
        std::thread::sleep(Duration::from_millis(5));
        reader.counts().forgotten >= 1
    });
    reader.go_live();
    drop(reader);
    // Later frames may have grown old too by now; the first one must have.
    assert!(queue.try_recv().is_none_or(|event| event
        != HostEvent::Frame {
            nic: 3,
            bytes: frame(1, 60)
        }));
}

#[test]
fn dropping_a_reader_ends_its_thread() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let backend = Arc::new(dgram(&b, &a));
    let (sender, _queue) = event_queue();
    let reader = spawn_reader(Arc::clone(&backend), 3, Inbound::Keep, NEVER_FORGET, sender).expect("starts");
    assert_eq!(Arc::strong_count(&backend), 2);
    drop(reader);
    assert_eq!(Arc::strong_count(&backend), 1, "the thread still holds the backend");
}

/// Needs root and /dev/net/tun, and says so where it lacks them.
mod tap {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;

    /// RFC 5737's and 2544's ranges are nobody's network; each test has its own /30 of the latter.
    const HOST: &str = "198.18.77.1";
    const GUEST: [u8; 4] = [198, 18, 77, 2];
    const GUEST_MAC: [u8; 6] = [0x02, 0x46, 0x54, 0, 0, 1];

    fn ip(arguments: &str) {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("the `ip` command (iproute2)");
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn open(name: &str) -> Result<NetBackend, NetError> {
        NetBackend::open(&NetConfig::Tap { name: name.to_owned() })
    }

    fn arp_reply(request: &[u8]) -> Vec<u8> {
        let mut reply = request[..42].to_vec();
        reply[0..6].copy_from_slice(&request[6..12]);
        reply[6..12].copy_from_slice(&GUEST_MAC);
        reply[21] = 2;
        reply[22..28].copy_from_slice(&GUEST_MAC);
        reply[28..32].copy_from_slice(&GUEST);
        reply[32..42].copy_from_slice(&request[22..32]);
        reply
    }

    #[test]
    fn the_host_and_a_guest_exchange_frames() {
        let name = format!("ftvm{}", std::process::id() % 100_000);
        let backend = Arc::new(open(&name).expect("this test needs root and /dev/net/tun"));
        assert_eq!(backend.send(&[0; 60]).expect("the interface is down"), Sent::Dropped);
        ip(&format!("address add {HOST}/30 dev {name}"));
        ip(&format!("link set {name} up"));
        assert!(matches!(open(&name), Err(NetError::Busy(_))), "a TAP has one user");

        let (sender, queue) = event_queue();
        let _reader = spawn_reader(Arc::clone(&backend), 3, Inbound::Forward, NEVER_FORGET, sender).expect("starts");
        let host = UdpSocket::bind((HOST, 0)).expect("bind");
        host.send_to(b"hello guest", (std::net::Ipv4Addr::from(GUEST), 7))
            .expect("sends");
        let arrived = loop {
            let frame = next_frame(&queue);
            match frame[12..14] {
                [0x08, 0x06] if frame[38..42] == GUEST => {
                    assert_eq!(backend.send(&arp_reply(&frame)).expect("sends"), Sent::Done);
                }
                [0x08, 0x00] if frame[0..6] == GUEST_MAC => break frame,
                _ => {}
            }
        };
        // Ethernet, IPv4 and UDP headers: with packet information or a virtio header the payload would be elsewhere.
        assert_eq!(arrived[42..], *b"hello guest");
    }

    #[test]
    fn a_tun_is_not_a_tap() {
        let name = format!("ftun{}", std::process::id() % 100_000);
        ip(&format!("tuntap add {name} mode tun"));
        let result = open(&name);
        ip(&format!("tuntap del {name} mode tun"));
        assert!(matches!(result, Err(NetError::WrongKind(_))), "{result:?}");
    }

    #[test]
    fn the_errors_say_what_to_do() {
        let error = NetError::NotPermitted {
            name: "tap0".into(),
            user: "alice".into(),
        };
        assert!(error.to_string().contains("ip tuntap add tap0 mode tap user alice"));
        assert!(NetError::NoTun.to_string().contains("modprobe tun"));
    }
}
