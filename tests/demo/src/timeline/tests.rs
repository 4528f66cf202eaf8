use super::*;

fn event(at_us: i64, who: Who, text: &str) -> Moment {
    let text = text.to_owned();
    Moment { at_us, who, text }
}

fn phase(kind: PhaseKind, from_us: i64, to_us: i64) -> PhaseBar {
    let state = PhaseState::Done;
    PhaseBar {
        kind,
        from_us,
        to_us,
        state,
    }
}

fn figure(value: &str, label: &str, outcome: Rating) -> Figure {
    Figure {
        label: label.to_owned(),
        value: value.to_owned(),
        outcome,
    }
}

/// A failover as the demo measures one.
fn failover() -> Timeline {
    let window = Window::around(108_300);
    let mut columns: Vec<u32> = (0..CHART_COLUMNS)
        .map(|column| [52, 58, 61, 55, 60][column % 5])
        .collect();
    columns[13] = 20;
    columns[14..33].fill(0);
    columns[33] = 9;
    Timeline {
        title: "kv on two hosts: primary killed, backup takes over".into(),
        events: vec![
            event(
                -75_000,
                Who::Client,
                "one connection, 4 writes in flight, 1 204 acknowledged",
            ),
            event(0, Who::Primary, "killed (SIGKILL)"),
            event(
                48_200,
                Who::Backup,
                "logging channel closed and no heartbeat: primary lost",
            ),
            event(
                50_100,
                Who::Storage,
                "test-and-set: generation 1 → 2, won by the backup",
            ),
            event(50_600, Who::Backup, "log drained: 3 entries, at exit 184 467"),
            event(102_900, Who::Backup, "lease of the primary outwaited"),
            event(
                106_100,
                Who::Backup,
                "2 disk writes issued again; live under generation 2",
            ),
            event(108_300, Who::Backup, "first frame on the network"),
            event(109_000, Who::Client, "next acknowledgement, on the same connection"),
        ],
        phases: vec![
            phase(PhaseKind::Detection, 0, 48_200),
            phase(PhaseKind::Lease, 0, 102_900),
            phase(PhaseKind::TestAndSet, 48_200, 50_100),
            phase(PhaseKind::Drain, 48_200, 50_600),
            phase(PhaseKind::Reissue, 102_900, 106_100),
            phase(PhaseKind::FirstFrame, 106_100, 108_300),
        ],
        acks: Some(Acks {
            columns,
            gap: Some(Window {
                from_us: -1_400,
                to_us: 109_000,
            }),
        }),
        window,
        figures: vec![
            figure("5 012", "acknowledged writes", Rating::Neutral),
            figure("0", "lost", Rating::Good),
            figure("same connection", "for the client", Rating::Good),
            figure("108.3 ms", "black-out", Rating::Neutral),
        ],
    }
}

fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain += before;
        rest = after.split_once('m').expect("a colour").1;
    }
    plain + rest
}

#[test]
fn the_picture_is_golden() {
    let drawn = render(&failover(), Style::Plain);
    assert_eq!(drawn, include_str!("golden.txt"), "\n{drawn}");
}

#[test]
fn colours_change_nothing_but_colours() {
    let coloured = render(&failover(), Style::Colour);
    let trimmed: String = without_escapes(&coloured)
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    assert_eq!(trimmed, render(&failover(), Style::Plain));
    assert!(coloured.contains("\x1b[1;31m✖\x1b[0m"), "the kill is red");
    assert!(!render(&failover(), Style::Plain).contains('\x1b'));
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    let mut wide = failover();
    wide.title = "t".repeat(200);
    wide.events.push(event(i64::MAX, Who::Primary, &"x".repeat(200)));
    wide.events.push(event(i64::MIN, Who::Primary, "y\n\x1b[2J"));
    wide.phases.push(phase(PhaseKind::Drain, i64::MIN, i64::MAX));
    wide.figures = vec![figure(&"v".repeat(100), &"l".repeat(100), Rating::Bad); 5];
    for window in [
        wide.window,
        Window::default(),
        Window {
            from_us: i64::MIN,
            to_us: i64::MAX,
        },
    ] {
        wide.window = window;
        let drawn = render(&wide, Style::Plain);
        assert!(!drawn.contains('\x1b'), "text brought its own escapes");
        for line in drawn.lines().filter(|line| !line.contains("922337203685")) {
            assert!(
                line.chars().count() <= WIDTH,
                "{} columns: {line}",
                line.chars().count()
            );
        }
    }
}

#[test]
fn many_events_are_shortened_in_the_middle() {
    let mut many = failover();
    many.events = (0..100)
        .map(|number| event(number * 1000, Who::Backup, &format!("event {number}")))
        .collect();
    let drawn = render(&many, Style::Plain);
    assert!(drawn.contains("event 0\n") && drawn.contains("event 11\n") && !drawn.contains("event 12\n"));
    assert!(drawn.contains("… 77 more …"));
    assert!(!drawn.contains("event 88\n") && drawn.contains("event 89\n") && drawn.contains("event 99\n"));
}

#[test]
fn an_empty_timeline_is_empty() {
    assert_eq!(render(&Timeline::default(), Style::Plain), "");
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    assert_eq!(Style::for_output(true, None), Style::Colour);
    assert_eq!(Style::for_output(true, Some(OsStr::new(""))), Style::Colour);
    assert_eq!(Style::for_output(true, Some(OsStr::new("1"))), Style::Plain);
    assert_eq!(Style::for_output(false, None), Style::Plain);
}

#[test]
fn milliseconds_have_one_decimal() {
    for (us, text) in [
        (0, "0.0"),
        (49, "0.0"),
        (50, "0.1"),
        (-49, "0.0"),
        (-50, "-0.1"),
        (108_349, "108.3"),
    ] {
        assert_eq!(milliseconds(us), text, "{us}");
    }
    assert_eq!(milliseconds(i64::MIN), "-9223372036854775.8");
}

#[test]
fn the_window_does_not_jitter() {
    assert_eq!(Window::around(0), Window::around(50_000));
    assert_eq!(
        Window::around(50_001),
        Window {
            from_us: -50_000,
            to_us: 150_000
        }
    );
    assert!(Window::around(i64::MAX).len_us() > 0);
    assert!(Window::around(i64::MIN).len_us() > 0);
}

#[test]
fn a_running_phase_is_marked() {
    let mut running = failover();
    running.phases[0].state = PhaseState::Running;
    let drawn = render(&running, Style::Plain);
    let line = drawn.lines().find(|line| line.contains("detection")).expect("a line");
    assert!(line.contains("48.2 … "), "{line}");
    let done = render(&failover(), Style::Plain);
    let done = done.lines().find(|line| line.contains("detection")).expect("a line");
    assert_eq!(
        line.find('█').map(|at| line[..at].chars().count()),
        done.find('█').map(|at| done[..at].chars().count())
    );
}

#[test]
fn a_stream_gets_each_event_once_and_the_picture_at_the_end() {
    let whole = failover();
    let mut live = LivePicture::new(false, Style::Plain);
    let part = Timeline {
        events: whole.events[..2].to_vec(),
        ..whole.clone()
    };
    let first = live.update(&part);
    assert_eq!(first.lines().count(), 2);
    assert_eq!(live.update(&part), "");
    assert_eq!(live.update(&whole).lines().count(), 7);
    let rest = live.finish(&whole);
    assert!(!rest.contains("killed (SIGKILL)"), "events are not repeated");
    assert!(rest.contains("detection") && rest.contains("black-out"));
}

#[test]
fn a_terminal_is_redrawn_in_place() {
    let whole = failover();
    let mut live = LivePicture::new(true, Style::Plain);
    let first = live.update(&whole);
    assert!(
        !first.contains("\x1b[A") && first.starts_with('\r'),
        "nothing to go back over"
    );
    let lines = first.lines().filter(|line| *line != "\x1b[J").count();
    assert!(lines <= 23, "{lines} lines do not fit a terminal");
    let second = live.update(&whole);
    assert!(second.starts_with(&format!("\x1b[{lines}A\r")), "{second:?}");
    assert!(second.ends_with("\x1b[K\n\x1b[J"));
    assert!(
        !second.contains("1 204 acknowledged"),
        "the oldest event has scrolled away"
    );
    assert!(
        live.finish(&whole).contains("1 204 acknowledged"),
        "and is back in the end"
    );
}
