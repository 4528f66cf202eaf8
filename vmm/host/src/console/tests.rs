use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::queue::{EventQueue, event_queue};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::host_event::MAX_EVENTS;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(target: &str, stream: ByteStream) -> Console {
    let target: ConsoleTarget = target.parse().expect("a valid target");
    Console::open(&target, ConsolePort::Serial, stream).expect("opens")
}

fn next_input(queue: &EventQueue) -> Vec<u8> {
    match queue.recv_deadline(Some(Instant::now() + PATIENCE)) {
        Some(HostEvent::Console { port, bytes }) => {
            assert_eq!(port, ConsolePort::Serial);
            bytes
        }
        other => panic!("console input was expected, found {other:?}"),
    }
}

fn input_of(queue: &EventQueue, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend(next_input(queue));
    }
    all
}

#[test]
fn targets_are_parsed() {
    let file = |path: &str, durability| ConsoleTarget::File {
        path: path.into(),
        durability,
    };
    let good = [
        ("off", ConsoleTarget::Off),
        ("stdio", ConsoleTarget::Stdio),
        ("pty", ConsoleTarget::Pty),
        ("file=/a=b", file("/a=b", Durability::Cached)),
        ("file=/a,sync", file("/a", Durability::Synced)),
        ("socket=/s", ConsoleTarget::Socket { path: "/s".into() }),
    ];
    for (text, expected) in good {
        assert_eq!(text.parse::<ConsoleTarget>().expect("parses"), expected);
    }
    for bad in ["", "on", "file", "file=", "file=,sync", "socket=", "off=1", "=x"] {
        assert!(
            matches!(bad.parse::<ConsoleTarget>(), Err(ConsoleError::Target(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn a_file_has_every_byte_once_when_a_survivor_repeats() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("console");
    fs::write(&path, "an older guest's long output").expect("write");
    let target = format!("file={}", path.display());
    let mut primary = open(&target, ByteStream::New);
    assert_eq!(primary.write(0, b"hello ").expect("writes"), Sent::Done);
    assert_eq!(primary.write(6, b"wor").expect("writes"), Sent::Done);
    let mut backup = open(&target, ByteStream::Continued);
    assert_eq!(backup.write(6, b"wor").expect("repeats"), Sent::Done);
    assert_eq!(backup.write(9, b"ld\n").expect("writes"), Sent::Done);
    assert_eq!(fs::read_to_string(&path).expect("read"), "hello world\n");
}

#[test]
fn a_synced_file_is_opened_so() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let target = format!("file={},sync", folder.path().join("console").display());
    let ConsoleSink::File(file) = open(&target, ByteStream::New).sink else {
        panic!("not a file")
    };
    let flags = fcntl(&file, FcntlArg::F_GETFL).expect("flags");
    assert_eq!(flags & libc::O_DSYNC, libc::O_DSYNC);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let target: ConsoleTarget = "file=/no/such/folder/x".parse().expect("parses");
    let error = Console::open(&target, ConsolePort::Serial, ByteStream::New).expect_err("cannot be opened");
    assert!(error.to_string().contains("/no/such/folder/x"));
}

#[test]
fn off_takes_everything() {
    let mut console = open("off", ByteStream::New);
    let (sender, _queue) = event_queue();
    console.listen(sender).expect("nothing to listen to");
    assert_eq!(console.write(0, b"x").expect("discards"), Sent::Done);
}

#[test]
fn a_socket_serves_one_client_after_the_other() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("s");
    let (sender, queue) = event_queue();
    let mut console = open(&format!("socket={}", path.display()), ByteStream::New);
    assert_eq!(console.write(0, b"nobody").expect("no error"), Sent::Dropped);

    let mut client = UnixStream::connect(&path).expect("connects before the guest is live");
    client.write_all(b"early").expect("types");
    assert_eq!(queue.try_recv(), None);
    console.listen(sender).expect("listens");
    assert_eq!(input_of(&queue, 5), b"early");
    assert_eq!(console.write(6, b"hello").expect("no error"), Sent::Done);
    let mut read = [0; 5];
    client.read_exact(&mut read).expect("reads");
    assert_eq!(&read, b"hello");

    drop(client);
    let mut client = UnixStream::connect(&path).expect("connects");
    client.write_all(b"again").expect("types");
    assert_eq!(input_of(&queue, 5), b"again");
    assert_eq!(console.write(11, b"there").expect("no error"), Sent::Done);
    client.read_exact(&mut read).expect("reads");
    assert_eq!(&read, b"there");
}

#[test]
fn a_client_that_does_not_read_costs_one_wait() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("s");
    let (sender, queue) = event_queue();
    let mut console = open(&format!("socket={}", path.display()), ByteStream::New);
    console.listen(sender).expect("listens");
    let mut client = UnixStream::connect(&path).expect("connects");
    client.write_all(b"x").expect("types");
    next_input(&queue);

    let begun = Instant::now();
    let dropped = (0..2000)
        .filter(|_| console.write(0, &[b'.'; 4096]).expect("no error") == Sent::Dropped)
        .count();
    assert!(dropped > 1000, "the socket took {} pieces", 2000 - dropped);
    assert!(begun.elapsed() < PATIENCE, "every piece waited: {:?}", begun.elapsed());
    // Room again: the next piece gets through.
    client.set_nonblocking(true).expect("set");
    while client.read(&mut [0; 65536]).is_ok() {}
    assert_eq!(console.write(0, b"again").expect("no error"), Sent::Done);
}

#[test]
fn a_pty_has_a_name_and_both_directions() {
    let (sender, queue) = event_queue();
    let mut console = open("pty", ByteStream::New);
    let place = console.place().expect("a pty has a name");
    console.listen(sender).expect("listens");
    assert_eq!(console.write(0, b"login: \n").expect("no error"), Sent::Done);
    let mut terminal = OpenOptions::new().read(true).write(true).open(place).expect("opens");
    let mut read = [0; 8];
    terminal.read_exact(&mut read).expect("reads");
    assert_eq!(&read, b"login: \n", "raw: nothing is translated");
    terminal.write_all(b"\x03root\r").expect("types");
    assert_eq!(input_of(&queue, 6), b"\x03root\r");
}

#[test]
fn a_pty_nobody_reads_costs_one_wait() {
    let mut console = open("pty", ByteStream::New);
    let begun = Instant::now();
    let dropped = (0..1000)
        .filter(|_| console.write(0, &[b'.'; 512]).expect("no error") == Sent::Dropped)
        .count();
    assert!(dropped > 500);
    assert!(begun.elapsed() < PATIENCE, "every piece waited: {:?}", begun.elapsed());
}

#[test]
fn input_ends_while_the_guest_takes_none() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("s");
    let (sender, queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        sender.offer(HostEvent::Entropy(Vec::new()));
    }
    let mut console = open(&format!("socket={}", path.display()), ByteStream::New);
    console.listen(sender).expect("listens");
    let mut client = UnixStream::connect(&path).expect("connects");
    client.write_all(b"x").expect("types");
    std::thread::sleep(Duration::from_millis(20));
    drop(console);
    while let Some(event) = queue.try_recv() {
        assert_eq!(event, HostEvent::Entropy(Vec::new()), "the key never got in");
    }
}

#[test]
fn write_in_time_gives_up_at_a_full_pipe() {
    let (_reader, writer) = io::pipe().expect("pipe");
    let begun = Instant::now();
    let wait = Duration::from_millis(30);
    assert_eq!(
        write_in_time(writer.as_fd(), &[0; 1 << 20], wait).expect("no error"),
        Sent::Dropped
    );
    assert!(begun.elapsed() >= wait && begun.elapsed() < PATIENCE);
}

#[test]
fn write_in_time_reports_a_closed_pipe() {
    let (reader, writer) = io::pipe().expect("pipe");
    drop(reader);
    let error = write_in_time(writer.as_fd(), b"x", OUTPUT_WAIT).expect_err("nobody can ever read this");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
