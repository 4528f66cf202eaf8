use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Cabinet, Cable, Way};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for what should not come to have come.
const QUIET: Duration = Duration::from_millis(100);

struct Tcp {
    _cabinet: Cabinet,
    cable: Cable,
    client: TcpStream,
    server: TcpStream,
}

fn connect() -> Tcp {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let cabinet = Cabinet::new().expect("a cabinet");
    let cable = cabinet.cable(listener.local_addr().expect("address")).expect("a cable");
    let client = TcpStream::connect(cable.address()).expect("connects");
    let (server, _) = listener.accept().expect("the cable connects");
    Tcp {
        _cabinet: cabinet,
        cable,
        client,
        server,
    }
}

fn arrives(stream: &mut TcpStream, expected: &[u8]) {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).expect("arrives");
    assert_eq!(read, expected);
}

fn nothing_arrives(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).expect("set");
    assert!(stream.read(&mut [0; 16]).is_err(), "something arrived, or it ended");
}

fn ends(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    // An end, or a reset.
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
}

#[test]
fn a_cut_is_of_one_way_and_nothing_is_lost() {
    let Tcp {
        cable,
        mut client,
        mut server,
        _cabinet: _running,
    } = connect();
    cable.set(Way::Cut, Way::Pass);
    client.write_all(b"there").expect("nobody is told");
    nothing_arrives(&mut server);
    server.write_all(b"back").expect("sends");
    arrives(&mut client, b"back");
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("its end is not told either");
    nothing_arrives(&mut server);
    cable.set(Way::Pass, Way::Pass);
    arrives(&mut server, b"there");
    ends(&mut server);
}

#[test]
fn a_delay_is_of_one_way() {
    let Tcp {
        cable,
        mut client,
        mut server,
        _cabinet: _running,
    } = connect();
    let delay = Duration::from_millis(80);
    cable.set(Way::Pass, Way::Delay(delay));
    let begun = Instant::now();
    server.write_all(b"late").expect("sends");
    arrives(&mut client, b"late");
    assert!(begun.elapsed() >= delay);
}

#[test]
fn hanging_up_ends_connections_and_allows_new_ones() {
    let Tcp {
        cable,
        mut client,
        mut server,
        _cabinet: _running,
    } = connect();
    cable.hang_up();
    ends(&mut client);
    ends(&mut server);
    let again = TcpStream::connect(cable.address());
    assert!(again.is_ok(), "the cable still takes connections");
}

#[test]
fn datagrams_are_lost_in_a_cut() {
    let target = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let cabinet = Cabinet::new().expect("a cabinet");
    let cable = cabinet.cable(target.local_addr().expect("address")).expect("a cable");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for socket in [&client, &target] {
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
    }
    let mut buffer = [0; 16];
    client.send_to(b"first", cable.address()).expect("sends");
    let (len, from) = target.recv_from(&mut buffer).expect("arrives");
    assert_eq!(&buffer[..len], b"first");
    cable.set(Way::Pass, Way::Cut);
    target.send_to(b"lost", from).expect("sends");
    std::thread::sleep(QUIET);
    cable.set(Way::Pass, Way::Pass);
    target.send_to(b"found", from).expect("sends");
    let (len, from) = client.recv_from(&mut buffer).expect("arrives");
    assert_eq!((&buffer[..len], from), (&b"found"[..], cable.address()));
}
