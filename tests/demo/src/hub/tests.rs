use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::*;
use ftvm_host::net::rarp::rarp_frame;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

const EVERYBODY: u8 = 0xFF;

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "still waiting: {what}");
        std::thread::yield_now();
    }
}

/// Someone plugged into a port.
struct Station {
    socket: UnixDatagram,
    hub: PathBuf,
    mac: u8,
    port: PortId,
}

fn mac(last: u8) -> [u8; 6] {
    match last {
        EVERYBODY => [0xFF; 6],
        _ => [2, 0, 0, 0, 0, last],
    }
}

fn plug(hub: &Hub, folder: &Path, name: u8) -> Station {
    let paths = HubPort {
        hub: folder.join(format!("hub{name}")),
        peer: folder.join(format!("peer{name}")),
    };
    let port = hub.add(&paths).expect("a free port");
    let socket = UnixDatagram::bind(&paths.peer).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    Station {
        socket,
        hub: paths.hub,
        mac: name,
        port,
    }
}

impl Station {
    fn send(&self, to: u8, payload: u8) {
        let mut frame = [payload; 60];
        frame[..6].copy_from_slice(&mac(to));
        frame[6..12].copy_from_slice(&mac(self.mac));
        frame[12..14].copy_from_slice(&[0x88, 0xB5]);
        self.socket.send_to(&frame, &self.hub).expect("the hub is there");
    }

    fn receive(&self) -> u8 {
        let mut frame = [0; 2000];
        let len = self.socket.recv(&mut frame).expect("a frame arrives");
        assert_eq!(len, 60);
        frame[59]
    }

    /// Closes the socket. A process that some other test is just starting may hold it a moment longer.
    fn die(self) {
        let address = self.socket.local_addr().expect("bound");
        let path = address.as_pathname().expect("to a path").to_owned();
        drop(self.socket);
        wait_until("the socket is closed", || {
            UnixDatagram::unbound().expect("socket").connect(&path).is_err()
        });
    }

    /// Nothing else has arrived: a broadcast of `other`, sent now, is the next frame.
    fn expect_nothing_before(&self, other: &Station, payload: u8) {
        other.send(EVERYBODY, payload);
        assert_eq!(self.receive(), payload);
    }
}

#[test]
fn frames_are_flooded_and_then_switched() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let [a, b, c] = [1, 2, 3].map(|name| plug(&hub, folder.path(), name));
    a.send(b.mac, 10);
    assert_eq!(b.receive(), 10);
    assert_eq!(c.receive(), 10, "nobody knows where b is");
    b.send(a.mac, 11);
    assert_eq!(a.receive(), 11);
    a.send(b.mac, 12);
    assert_eq!(b.receive(), 12);
    c.expect_nothing_before(&a, 13);
    assert_eq!(
        hub.counts(a.port),
        PortCounts {
            received: 3,
            sent: 1,
            dropped: 0
        }
    );
}

#[test]
fn what_a_dead_port_no_longer_takes_reaches_the_others_at_once() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let [client, primary, backup] = [1, 2, 3].map(|name| plug(&hub, folder.path(), name));
    primary.send(client.mac, 1);
    assert_eq!((client.receive(), backup.receive()), (1, 1));
    client.send(primary.mac, 2);
    assert_eq!(primary.receive(), 2);
    primary.die();
    client.send(2, 3);
    assert_eq!(backup.receive(), 3, "the very frame that found the port dead");
    client.send(2, 4);
    assert_eq!(backup.receive(), 4);

    // Now the backup lives under the same address.
    backup.socket.send_to(&rarp_frame(mac(2)), &backup.hub).expect("sends");
    assert_eq!(client.receive(), 0);
    client.send(2, 5);
    assert_eq!(backup.receive(), 5);
}

#[test]
fn a_cut_cable_loses_both_directions_silently() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let [a, b, c] = [1, 2, 3].map(|name| plug(&hub, folder.path(), name));
    hub.set_cable(b.port, Cable::Cut);
    b.send(a.mac, 1);
    c.send(EVERYBODY, 2);
    assert_eq!(a.receive(), 2);
    let limit = Instant::now() + PATIENCE;
    while hub.counts(b.port).dropped < 2 {
        assert!(
            Instant::now() < limit,
            "both frames are lost and counted: {:?}",
            hub.counts(b.port)
        );
        std::thread::yield_now();
    }
    hub.set_cable(b.port, Cable::Plugged);
    b.expect_nothing_before(&c, 3);
    assert_eq!(a.receive(), 3);
    let expected = PortCounts {
        received: 0,
        sent: 1,
        dropped: 2,
    };
    wait_until("the frame is counted", || hub.counts(b.port) == expected);
}

#[test]
fn times_of_first_and_last_frames_are_kept() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let [a, b] = [1, 2].map(|name| plug(&hub, folder.path(), name));
    assert_eq!(hub.times(a.port), PortTimes::default());
    let begun = Instant::now();
    a.socket.send_to(&rarp_frame(mac(1)), &a.hub).expect("sends");
    b.receive();
    let announced = hub.times(a.port);
    assert!(announced.first.expect("a first frame") >= begun);
    assert_eq!(announced.first_of_guest, None, "an announcement is not the guest's");
    a.send(b.mac, 1);
    b.receive();
    a.send(b.mac, 2);
    b.receive();
    let times = hub.times(a.port);
    assert_eq!(times.first, announced.first);
    assert!(times.first < times.first_of_guest && times.first_of_guest < times.last);
    assert_eq!(hub.times(b.port), PortTimes::default());
    hub.forget_times(a.port);
    assert_eq!(hub.times(a.port), PortTimes::default());
}

#[test]
fn impossible_frames_are_dropped() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let [a, b] = [1, 2].map(|name| plug(&hub, folder.path(), name));
    for len in [0, MIN_FRAME - 1, MAX_FRAME + 1, 60_000] {
        a.socket.send_to(&vec![0xFF; len], &a.hub).expect("sends");
    }
    b.expect_nothing_before(&a, 7);
    assert_eq!(hub.counts(a.port).dropped, 4);
}

#[test]
fn ports_are_bounded_and_their_errors_named() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let hub = Hub::start().expect("starts");
    let same = HubPort {
        hub: folder.path().join("x"),
        peer: folder.path().join("x"),
    };
    assert!(matches!(hub.add(&same), Err(HubError::Port { port: 0, .. })));
    let stations: Vec<Station> = (0..64).map(|name| plug(&hub, folder.path(), name)).collect();
    assert_eq!(stations.len(), MAX_PORTS);
    let more = HubPort {
        hub: folder.path().join("more"),
        peer: folder.path().join("peer"),
    };
    assert!(matches!(hub.add(&more), Err(HubError::Full)));
    drop(hub);
    assert!(!stations[0].hub.exists(), "a hub that is gone leaves no sockets");
}
