use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough for what should not come to have come.
const QUIET: Duration = Duration::from_millis(100);

struct Tcp {
    relay: Relay,
    client: TcpStream,
    server: TcpStream,
}

fn connect() -> Tcp {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let relay = Relay::start(listener.local_addr().expect("address")).expect("starts");
    let client = TcpStream::connect(relay.address()).expect("connects");
    let (server, _) = listener.accept().expect("the relay connects");
    Tcp { relay, client, server }
}

fn arrives(stream: &mut TcpStream, expected: &[u8]) {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).expect("arrives");
    assert_eq!(read, expected);
}

fn nothing_arrives(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).expect("set");
    let result = stream.read(&mut [0; 16]);
    assert!(
        matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        "{result:?}"
    );
}

fn ends(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    assert_eq!(stream.read(&mut [0; 16]).expect("an orderly end"), 0);
}

#[test]
fn streams_pass_both_ways_and_so_does_their_end() {
    let Tcp {
        relay: _relay,
        mut client,
        mut server,
    } = connect();
    client.write_all(b"ping").expect("sends");
    arrives(&mut server, b"ping");
    server.write_all(b"pong").expect("sends");
    arrives(&mut client, b"pong");
    drop(client);
    ends(&mut server);
}

#[test]
fn a_megabyte_passes_unchanged() {
    let Tcp {
        relay: _relay,
        mut client,
        mut server,
    } = connect();
    let sent: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || client.write_all(&sent));
    arrives(&mut server, &expected);
    writer.join().expect("no panic").expect("sends");
}

#[test]
fn a_silent_cable_passes_neither_bytes_nor_the_end() {
    let Tcp {
        relay,
        mut client,
        mut server,
    } = connect();
    client.write_all(b"before").expect("sends");
    arrives(&mut server, b"before");
    relay.set_mode(Mode::Silent);
    client.write_all(b"during").expect("the sender is not told");
    server.write_all(b"other way").expect("nor is the other one");
    nothing_arrives(&mut server);
    nothing_arrives(&mut client);
    client.shutdown(std::net::Shutdown::Write).expect("ends");
    nothing_arrives(&mut server);
    relay.set_mode(Mode::Pass);
    arrives(&mut server, b"during");
    ends(&mut server);
    arrives(&mut client, b"other way");
}

#[test]
fn nobody_is_reached_through_a_silent_cable() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("set");
    let relay = Relay::start(listener.local_addr().expect("address")).expect("starts");
    relay.set_mode(Mode::Silent);
    let mut client = TcpStream::connect(relay.address()).expect("the relay answers");
    nothing_arrives(&mut client);
    assert!(listener.accept().is_err(), "the target was connected to");
}

#[test]
fn a_silent_cable_fills_the_senders_buffers() {
    let Tcp {
        relay,
        mut client,
        server: _server,
    } = connect();
    relay.set_mode(Mode::Silent);
    client.set_write_timeout(Some(QUIET)).expect("set");
    let chunk = vec![0; 1 << 20];
    let blocked = (0..64).any(|_| client.write_all(&chunk).is_err());
    assert!(blocked, "64 MiB went into a cut cable");
}

#[test]
fn a_delay_is_each_ways_and_keeps_order() {
    let Tcp {
        relay,
        mut client,
        mut server,
    } = connect();
    let delay = Duration::from_millis(60);
    relay.set_mode(Mode::Delay(delay));
    let begun = Instant::now();
    for byte in 0..10u8 {
        client.write_all(&[byte]).expect("sends");
    }
    arrives(&mut server, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert!(begun.elapsed() >= delay);
    server.write_all(b"back").expect("sends");
    arrives(&mut client, b"back");
    assert!(begun.elapsed() >= 2 * delay);
}

#[test]
fn a_target_that_refuses_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = listener.local_addr().expect("address");
    drop(listener);
    let relay = Relay::start(target).expect("starts");
    let mut client = TcpStream::connect(relay.address()).expect("the relay answers");
    ends(&mut client);
}

#[test]
fn dropping_a_relay_ends_its_connections_even_when_silent() {
    let Tcp {
        relay,
        mut client,
        mut server,
    } = connect();
    relay.set_mode(Mode::Silent);
    drop(relay);
    ends(&mut client);
    ends(&mut server);
}

fn udp(timeout: Duration) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(timeout)).expect("set");
    socket
}

fn datagram(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    (buffer[..len].to_vec(), from)
}

#[test]
fn datagrams_pass_both_ways() {
    let (client, target) = (udp(PATIENCE), udp(PATIENCE));
    let relay = Relay::start(target.local_addr().expect("address")).expect("starts");
    client.send_to(b"ping", relay.address()).expect("sends");
    let (bytes, from) = datagram(&target);
    assert_eq!((&bytes[..], from), (&b"ping"[..], relay.back_address()));
    target.send_to(b"pong", from).expect("sends");
    assert_eq!(datagram(&client), (b"pong".to_vec(), relay.address()));
}

#[test]
fn datagrams_into_a_silent_cable_are_lost() {
    let (client, target) = (udp(PATIENCE), udp(PATIENCE));
    let relay = Relay::start(target.local_addr().expect("address")).expect("starts");
    relay.set_mode(Mode::Silent);
    client.send_to(b"lost", relay.address()).expect("sends");
    std::thread::sleep(QUIET);
    relay.set_mode(Mode::Pass);
    client.send_to(b"found", relay.address()).expect("sends");
    assert_eq!(datagram(&target).0, b"found");
}

#[test]
fn datagrams_are_delayed() {
    let (client, target) = (udp(PATIENCE), udp(PATIENCE));
    let relay = Relay::start(target.local_addr().expect("address")).expect("starts");
    let delay = Duration::from_millis(60);
    relay.set_mode(Mode::Delay(delay));
    let begun = Instant::now();
    client.send_to(b"late", relay.address()).expect("sends");
    assert_eq!(datagram(&target).0, b"late");
    assert!(begun.elapsed() >= delay);
}
