use std::sync::mpsc;

use super::*;

fn reports() -> (Reports, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::sync_channel(MAX_EVENTS);
    let reports = Reports {
        events: sender,
        counts: Arc::default(),
    };
    (reports, events)
}

/// What was reported, and the bytes handed on.
fn served(sink: Sink, data: &[u8]) -> (Vec<Event>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (reports, events) = reports();
    let counts = Arc::clone(&reports.counts);
    let thread = serve(dir.path(), Channel::Stdout, sink, reports).unwrap();
    let mut stream = UnixStream::connect(dir.path().join("stdout")).unwrap();
    stream.write_all(data).unwrap();
    drop(stream);
    thread.join().unwrap();
    (events.into_iter().collect(), counts.of(Channel::Stdout))
}

/// A host may run for long before anybody reads what its threads report.
#[test]
fn bytes_are_handed_on_although_nobody_reads_the_reports() {
    let (reports, events) = reports();
    let dir = tempfile::tempdir().unwrap();
    let capture = Capture::new(1 << 20);
    let (sink, counts) = (Sink::Writer(Box::new(capture.clone())), Arc::clone(&reports.counts));
    let thread = serve(dir.path(), Channel::Stderr, sink, reports).unwrap();
    let mut stream = UnixStream::connect(dir.path().join("stderr")).unwrap();
    let begun = std::time::Instant::now();
    for bytes in 1..=2 * MAX_EVENTS {
        stream.write_all(b"x").unwrap();
        while capture.text().len() < bytes {
            assert!(begun.elapsed().as_secs() < 60, "stuck at {bytes} bytes");
            thread::yield_now();
        }
    }
    drop(stream);
    thread.join().unwrap();
    assert_eq!(counts.of(Channel::Stderr), 2 * MAX_EVENTS as u64);
    assert_eq!(events.into_iter().count(), MAX_EVENTS);
}

#[test]
fn a_writer_gets_every_byte() {
    let capture = Capture::new(1 << 20);
    let (_, received) = served(Sink::Writer(Box::new(capture.clone())), b"one\0two\r\n");
    assert_eq!(capture.text(), "one\0two\r\n");
    assert_eq!(received, 9);
}

#[test]
fn lines_come_one_by_one_and_bounded() {
    let long = "x".repeat(1025);
    let (events, _) = served(Sink::Lines, format!("ready\n{long}\nlast").as_bytes());
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
    let (events, received) = served(Sink::Writer(Box::new(Full)), &data);
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Failed(Channel::Stdout, _)))
            .count(),
        1
    );
    assert_eq!(received, data.len() as u64);
}

#[test]
fn what_is_no_archive_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let data = [b'x'; 200];
    let (events, received) = served(Sink::Unpack(dir.path().to_owned()), &data);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Failed(_, reason) if reason.contains("magic")))
    );
    assert_eq!(received, 200);
}

#[test]
fn a_channel_that_nobody_connects_to_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, events) = reports();
    let threads: Vec<_> = Channel::ALL
        .map(|channel| serve(dir.path(), channel, Sink::Lines, reports.clone()).unwrap())
        .into();
    drop(reports);
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
    let (reports, _events) = reports();
    let thread = serve(&deep, Channel::Out, Sink::Lines, reports).unwrap();
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
