use std::sync::mpsc;

use super::*;

fn served(sink: Sink, data: &[u8]) -> Vec<Event> {
    let dir = tempfile::tempdir().unwrap();
    let (sender, events) = mpsc::sync_channel(MAX_EVENTS);
    let thread = serve(dir.path(), Channel::Stdout, sink, sender).unwrap();
    let mut stream = UnixStream::connect(dir.path().join("stdout")).unwrap();
    stream.write_all(data).unwrap();
    drop(stream);
    thread.join().unwrap();
    events.into_iter().collect()
}

fn received(events: &[Event]) -> u64 {
    events
        .iter()
        .map(|event| {
            if let Event::Received(Channel::Stdout, count) = event {
                *count
            } else {
                0
            }
        })
        .sum()
}

#[test]
fn a_writer_gets_every_byte() {
    let capture = Capture::new(1 << 20);
    let events = served(Sink::Writer(Box::new(capture.clone())), b"one\0two\r\n");
    assert_eq!(capture.text(), "one\0two\r\n");
    assert_eq!(received(&events), 9);
}

#[test]
fn lines_come_one_by_one_and_bounded() {
    let long = "x".repeat(1025);
    let events = served(Sink::Lines, format!("ready\n{long}\nlast").as_bytes());
    let lines: Vec<&str> = events
        .iter()
        .filter_map(|event| {
            if let Event::Control(line) = event {
                Some(&line[..])
            } else {
                None
            }
        })
        .collect();
    assert_eq!(lines, ["ready", &long[1..], "x", "last"]);
}

#[test]
fn a_writer_that_fails_is_reported_and_the_channel_still_runs_dry() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = vec![0; CHUNK * 3];
    let events = served(Sink::Writer(Box::new(Full)), &data);
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Failed(Channel::Stdout, _)))
            .count(),
        1
    );
    assert_eq!(received(&events), data.len() as u64);
}

#[test]
fn what_is_no_archive_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let data = [b'x'; 200];
    let events = served(Sink::Unpack(dir.path().to_owned()), &data);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Failed(_, reason) if reason.contains("magic")))
    );
    assert_eq!(received(&events), 200);
}

#[test]
fn a_channel_that_nobody_connects_to_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, events) = mpsc::sync_channel(MAX_EVENTS);
    let threads: Vec<_> = Channel::ALL
        .map(|channel| serve(dir.path(), channel, Sink::Lines, sender.clone()).unwrap())
        .into();
    drop(sender);
    release(dir.path());
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(events.into_iter().count(), 0);
}

#[test]
fn a_folder_deeper_than_a_socket_name_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let (sender, _events) = mpsc::sync_channel(MAX_EVENTS);
    let thread = serve(&deep, Channel::Out, Sink::Lines, sender).unwrap();
    release(&deep);
    thread.join().unwrap();
}

#[test]
fn a_capture_keeps_the_end_and_says_what_it_dropped() {
    let mut capture = Capture::new(4);
    capture.write_all(b"abcd").unwrap();
    assert_eq!(capture.text(), "abcd");
    capture.write_all(b"e").unwrap();
    assert_eq!(capture.text(), "[1 bytes before these were dropped]\nbcde");
    capture.write_all(b"fghijk").unwrap();
    assert_eq!(capture.text(), "[7 bytes before these were dropped]\nhijk");
    let mut lines = Capture::new(100);
    lines.write_all(b"one\r\n\ntwo\nthree\n").unwrap();
    assert_eq!(lines.last_lines(2), "two\nthree");
    assert_eq!(lines.last_lines(9), "one\ntwo\nthree");
}
