use super::*;
use crate::engine::Settings;
use crate::log::FlushPolicy;

fn engine() -> Engine {
    let mut engine = Engine::new(Settings {
        max_memory: 8 << 20,
        max_reply: 1 << 20,
        max_clients: 10,
        port: 6379,
        append_fsync: Some(FlushPolicy::EverySecond),
    });
    engine.start(1);
    engine
}

fn output(session: &Session) -> String {
    session.output().escape_ascii().to_string()
}

#[test]
fn pipelined_requests_are_answered_in_order_and_in_turns() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    session.receive(b"PING\r\n\r\n*0\r\n*2\r\n$4\r\nECHO\r\n$1\r\na\r\n*2\r\n$4\r\nEC");
    assert_eq!(session.process(&mut engine, 2), Pause::Turn);
    assert_eq!(output(&session), "+PONG\\r\\n");
    assert_eq!(session.process(&mut engine, 100), Pause::NeedsInput);
    assert_eq!(output(&session), "+PONG\\r\\n$1\\r\\na\\r\\n");
    session.sent(3);
    session.receive(b"HO\r\n$1\r\nb\r\n");
    assert_eq!(session.process(&mut engine, 100), Pause::NeedsInput);
    assert_eq!(output(&session), "NG\\r\\n$1\\r\\na\\r\\n$1\\r\\nb\\r\\n");
    assert!(!session.is_closing());
}

#[test]
fn a_protocol_error_is_told_and_ends_the_connection() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    session.receive(b"PING\r\n*1\r\n:1\r\nPING\r\n");
    assert_eq!(session.process(&mut engine, 100), Pause::Closing);
    assert_eq!(
        output(&session),
        "+PONG\\r\\n-ERR Protocol error: expected \\'$\\', got \\':\\'\\r\\n"
    );
    assert!(session.is_closing());
    assert_eq!(session.room(), 0);
    assert_eq!(session.process(&mut engine, 100), Pause::Closing);
}

#[test]
fn quit_ends_after_its_reply_and_nothing_else_is_executed() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    session.receive(b"QUIT\r\nSET k v\r\n");
    assert_eq!(session.process(&mut engine, 100), Pause::Closing);
    assert_eq!(output(&session), "+OK\\r\\n");
    assert!(engine.store().entry(b"k").is_none());
}

#[test]
fn outcomes_stop_the_session_so_that_the_server_can_act() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    session.receive(b"SAVE\r\nPING\r\nSHUTDOWN\r\n");
    assert_eq!(session.process(&mut engine, 100), Pause::Asked(Outcome::Save));
    assert_eq!(output(&session), "+OK\\r\\n");
    assert_eq!(session.process(&mut engine, 100), Pause::Asked(Outcome::Shutdown));
    assert_eq!(output(&session), "+OK\\r\\n+PONG\\r\\n");
}

#[test]
fn a_client_that_does_not_read_is_not_served_further() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    engine.start(1);
    let value = "x".repeat(100 << 10);
    session.receive(format!("SET k \"\"\r\nAPPEND k {}\r\n", &value[..60 << 10]).as_bytes());
    session.receive("GET k\r\n".repeat(100).as_bytes());
    assert_eq!(session.process(&mut engine, 1000), Pause::OutputFull);
    let held = session.output().len();
    assert!((MAX_OUTPUT..MAX_OUTPUT + (61 << 10)).contains(&held), "{held}");
    assert_eq!(session.room(), 0);
    session.sent(held);
    assert!(session.room() > 0);
    assert_eq!(session.process(&mut engine, 1), Pause::Turn);
}

#[test]
fn a_full_journal_stops_all_sessions() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$300000\r\n{}\r\n", "x".repeat(300_000));
    for _ in 0..4 {
        assert_eq!(session.process(&mut engine, 10), Pause::NeedsInput);
        session.receive(set.as_bytes());
    }
    assert_eq!(session.process(&mut engine, 10), Pause::JournalFull);
    engine.journal().clear();
    assert_eq!(session.process(&mut engine, 10), Pause::NeedsInput);
}

#[test]
fn input_is_bounded_and_its_memory_given_back() {
    let (mut engine, mut session) = (engine(), Session::new(1));
    assert_eq!(session.room(), MAX_INPUT);
    session.receive(&vec![b'x'; MAX_INPUT]);
    assert_eq!(session.room(), 0);
    assert_eq!(session.process(&mut engine, 1), Pause::Closing);
    assert!(session.memory() < 1000);

    let mut session = Session::new(2);
    let echo = format!("*2\r\n$4\r\nECHO\r\n$500000\r\n{}\r\n", "x".repeat(500_000));
    session.receive(echo.as_bytes());
    session.process(&mut engine, 10);
    session.sent(session.output().len());
    assert!(session.memory() <= 2 * KEPT_BUFFER, "{}", session.memory());
}

#[test]
fn a_refused_client_is_told_why() {
    let mut session = Session::new(1);
    session.refuse("ERR max number of clients reached");
    assert_eq!(output(&session), "-ERR max number of clients reached\\r\\n");
    assert!(session.is_closing());
}
