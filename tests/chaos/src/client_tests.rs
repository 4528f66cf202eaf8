//! The clients against a server of one's own, which keeps what it acknowledges or forgets some of it.

use std::collections::BTreeMap;

use super::*;
use crate::ether::{Ether, Port};
use crate::history::{self, Verdict};

const SERVER: ([u8; 6], Ipv4Addr) = ([2, 0, 0, 0, 0, 9], Ipv4Addr::new(192, 168, 7, 2));
const CLIENT: ([u8; 6], Ipv4Addr) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 168, 7, 3));
const PORT: u16 = 6379;
/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWERS: usize = 300;

/// Answers GET and SET on one connection; of the writes it acknowledges, every `forget`-th is not kept.
fn serve(dgram: Dgram, forget: Option<u64>, ending: &AtomicBool) {
    let mut stack = Stack::new(dgram, SERVER.0, SERVER.1, 24, 1);
    let mut keys: BTreeMap<String, String> = BTreeMap::new();
    let mut writes = 0;
    while !ending.load(Ordering::Acquire) {
        stack.turn();
        let socket = stack.socket();
        if !socket.is_open() {
            socket.listen(PORT).expect("listens");
        }
        let mut buffer = [0; 512];
        let len = socket.recv_slice(&mut buffer).unwrap_or(0);
        let request = String::from_utf8_lossy(&buffer[..len]).into_owned();
        // `*3`, `$3`, `SET`, the key's length, the key, ...: a client has one request at a time.
        let words: Vec<&str> = request.split("\r\n").collect();
        let answer = match words[..] {
            [_, _, "SET", _, key, _, value, ..] => {
                writes += 1;
                if forget.is_none_or(|every| writes % every != 0) {
                    keys.insert(key.to_owned(), value.to_owned());
                }
                "+OK\r\n".to_owned()
            }
            [_, _, "GET", _, key, ..] => keys.get(key).map_or_else(
                || "$-1\r\n".to_owned(),
                |value| format!("${}\r\n{value}\r\n", value.len()),
            ),
            _ => String::new(),
        };
        if !answer.is_empty() {
            stack.socket().send_slice(answer.as_bytes()).expect("sends");
            stack.turn();
        }
        stack.wait(Duration::from_millis(1));
    }
}

/// What the clients' record comes to.
fn judged(forget: Option<u64>) -> (Verdict, u32) {
    let folder = tempfile::tempdir().expect("a folder");
    let port = |name: &str, mac| Port {
        wire: folder.path().join(format!("wire-{name}")),
        peer: folder.path().join(name),
        mac: Some(mac),
    };
    let (server, client) = (port("server", SERVER.0), port("client", CLIENT.0));
    let _ether = Ether::start(vec![server.clone(), client.clone()], SERVER.0).expect("a wire");
    let dgram = open(&server.peer, &server.wire).expect("plugged in");
    let ending = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&ending);
    let thread = std::thread::spawn(move || serve(dgram, forget, &until));
    let place = Place {
        local: client.peer,
        remote: client.wire,
        mac: CLIENT.0,
        ip: CLIENT.1,
        prefix: 24,
        server: (SERVER.1, PORT),
        pace: Duration::ZERO,
        silence: PATIENCE,
    };
    let clients = Clients::start(vec![place], 7).expect("a client");
    let begun = Instant::now();
    while clients.answers() < ANSWERS && begun.elapsed() < PATIENCE {
        std::thread::sleep(LOOK);
    }
    let record = clients.finish(PATIENCE);
    ending.store(true, Ordering::Release);
    thread.join().expect("no panic");
    assert_eq!((record.refused, record.reconnects), (Vec::new(), 0));
    assert!(record.ops.len() >= ANSWERS, "{} answers", record.ops.len());
    (history::check(&record.ops), record.unread)
}

#[test]
fn a_server_that_keeps_everything_is_believed() {
    let (verdict, unread) = judged(None);
    assert_eq!((verdict.is_linearizable(), verdict.lost_writes, unread), (true, 0, 0));
    assert!(verdict.acked_writes > 0 && verdict.reads > 0);
}

#[test]
fn a_server_that_forgets_what_it_acknowledged_is_found() {
    let (verdict, unread) = judged(Some(10));
    assert!(verdict.lost_writes > 0 && !verdict.is_linearizable(), "{verdict:?}");
    assert_eq!(unread, 0);
}
