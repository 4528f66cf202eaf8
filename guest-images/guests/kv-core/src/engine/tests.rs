use super::*;
use crate::resp::{Parsed, Parser};

const SETTINGS: Settings = Settings {
    max_memory: 1 << 20,
    max_reply: 4096,
    max_clients: 10,
    port: 6379,
    append_fsync: Some(FlushPolicy::Always),
};
const NOW: u64 = 1_000_000;

struct Fixture {
    engine: Engine,
    client: Client,
    outcome: Outcome,
}

fn execute(engine: &mut Engine, client: &mut Client, words: &[&[u8]]) -> (Vec<u8>, Outcome) {
    let mut request = Vec::new();
    crate::journal::append(&mut request, words.iter().copied());
    let mut parser = Parser::default();
    assert_eq!(parser.parse(&mut request), Ok(Parsed::Request { len: request.len() }));
    let mut output = Vec::new();
    let outcome = engine.execute(parser.arguments(&request), client, &mut output);
    (output, outcome)
}

impl Fixture {
    fn new() -> Self {
        let mut engine = Engine::new(SETTINGS);
        engine.start(NOW);
        Self {
            engine,
            client: Client {
                id: 3,
                name: Vec::new(),
            },
            outcome: Outcome::Done,
        }
    }

    /// The reply to words separated by spaces, escaped.
    fn run(&mut self, words: &str) -> String {
        let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        let (output, outcome) = execute(&mut self.engine, &mut self.client, &words);
        self.outcome = outcome;
        output
            .escape_ascii()
            .to_string()
            .replace("\\r\\n", " ")
            .replace("\\'", "'")
            .trim_end()
            .to_owned()
    }

    fn expect(&mut self, cases: &[(&str, &str)]) {
        for (words, reply) in cases {
            assert_eq!(self.run(words), *reply, "{words}");
        }
    }

    fn journal(&mut self) -> String {
        let text = self
            .engine
            .journal()
            .pending()
            .escape_ascii()
            .to_string()
            .replace("\\r\\n", " ");
        self.engine.journal().clear();
        text.split(' ')
            .filter(|word| !word.starts_with(['$', '*']))
            .collect::<Vec<_>>()
            .join(" ")
            .trim_end()
            .to_owned()
    }

    /// Whether a second engine that replays the journal so far holds the same.
    fn replayed(&mut self) -> Engine {
        let mut journal = self.engine.journal().pending().to_vec();
        let mut engine = Engine::new(SETTINGS);
        let mut rest = &mut journal[..];
        while !rest.is_empty() {
            let mut parser = Parser::default();
            let Ok(Parsed::Request { len }) = parser.parse(rest) else {
                panic!("journal")
            };
            engine.replay(parser.arguments(rest)).unwrap();
            rest = &mut rest[len..];
        }
        engine.start(self.engine.now);
        engine
    }
}

#[test]
fn strings() {
    let mut fixture = Fixture::new();
    fixture.expect(&[
        ("GET k", "$-1"),
        ("SET k v", "+OK"),
        ("get k", "$1 v"),
        ("SET k w NX", "$-1"),
        ("SET k w XX", "+OK"),
        ("SET other w XX", "$-1"),
        ("SET k x GET", "$1 w"),
        ("SET none x NX GET", "$-1"),
        ("SET k x NX XX", "-ERR syntax error"),
        ("SET k x EX", "-ERR syntax error"),
        ("SET k x EX 0", "-ERR invalid expire time in set"),
        ("SET k x PX 9223372036854775807", "-ERR invalid expire time in set"),
        ("SET k x EX ten", "-ERR value is not an integer or out of range"),
        ("SETNX k 1", ":0"),
        ("SETNX n 1", ":1"),
        ("GETSET n 2", "$1 1"),
        ("GETDEL n", "$1 2"),
        ("APPEND n abc", ":3"),
        ("APPEND n d", ":4"),
        ("STRLEN n", ":4"),
        ("STRLEN none?", ":0"),
        ("MSET a 1 b 2", "+OK"),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
        ("MGET a none? b", "*3 $1 1 $-1 $1 2"),
    ]);
}

#[test]
fn counters() {
    let mut fixture = Fixture::new();
    fixture.expect(&[
        ("INCR n", ":1"),
        ("INCRBY n 10", ":11"),
        ("DECR n", ":10"),
        ("DECRBY n 20", ":-10"),
        ("GET n", "$3 -10"),
        ("SET n 9223372036854775807", "+OK"),
        ("INCR n", "-ERR increment or decrement would overflow"),
        (
            "DECRBY n -9223372036854775808",
            "-ERR increment or decrement would overflow",
        ),
        ("SET n 01", "+OK"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("SET n -0", "+OK"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("SET n -9223372036854775808", "+OK"),
        ("INCR n", ":-9223372036854775807"),
    ]);
}

#[test]
fn connection_and_server_commands() {
    let mut fixture = Fixture::new();
    fixture.expect(&[
        ("PING", "+PONG"),
        ("PING hello", "$5 hello"),
        ("ECHO hi", "$2 hi"),
        ("SELECT 0", "+OK"),
        ("SELECT 1", "-ERR DB index is out of range"),
        (
            "HELLO 3",
            "-ERR unknown command `HELLO`, with args beginning with: `3`,",
        ),
        ("GET", "-ERR wrong number of arguments for 'get' command"),
        ("GET a b", "-ERR wrong number of arguments for 'get' command"),
        ("COMMAND", "*0"),
        ("COMMAND DOCS", "*0"),
        ("CONFIG GET save", "*2 $4 save $0"),
        ("CONFIG GET appendonly", "*2 $10 appendonly $3 yes"),
        ("CONFIG GET APPENDFSYNC", "*2 $11 appendfsync $6 always"),
        ("CONFIG GET none", "*0"),
        (
            "CONFIG NONE x",
            "-ERR Unknown subcommand or wrong number of arguments for 'CONFIG'",
        ),
        ("CLIENT GETNAME", "$-1"),
        ("CLIENT SETNAME me", "+OK"),
        ("CLIENT GETNAME", "$2 me"),
        ("CLIENT ID", ":3"),
        ("CLIENT SETINFO lib-name x", "+OK"),
        ("TIME", "*2 $4 1000 $1 0"),
        ("DBSIZE", ":0"),
        ("SET k v", "+OK"),
        ("DBSIZE", ":1"),
        ("FLUSHDB maybe", "-ERR syntax error"),
        ("FLUSHALL ASYNC", "+OK"),
        ("DBSIZE", ":0"),
        ("SHUTDOWN maybe", "-ERR syntax error"),
    ]);
    assert!(fixture.run("INFO").contains("aof_enabled:1"));
    let outcomes = [
        ("PING", Outcome::Done),
        ("QUIT", Outcome::Quit),
        ("SAVE", Outcome::Save),
        ("BGREWRITEAOF", Outcome::Rewrite),
        ("SHUTDOWN NOSAVE", Outcome::Shutdown),
    ];
    for (words, outcome) in outcomes {
        fixture.run(words);
        assert_eq!(fixture.outcome, outcome, "{words}");
    }
}

#[test]
fn without_a_disk_nothing_is_journalled() {
    let mut engine = Engine::new(Settings {
        append_fsync: None,
        ..SETTINGS
    });
    engine.start(NOW);
    let mut client = Client::default();
    execute(&mut engine, &mut client, &[b"SET", b"k", b"v"]);
    assert_eq!((engine.journalled(), engine.journal().pending()), (0, &b""[..]));
    assert_eq!(
        execute(&mut engine, &mut client, &[b"SAVE"]),
        (b"-ERR this server has no disk to save to\r\n".to_vec(), Outcome::Done)
    );
}

#[test]
fn deadlines_count_by_the_guests_clock() {
    let mut fixture = Fixture::new();
    fixture.expect(&[
        ("SET a 1 PX 100", "+OK"),
        ("SET b 1 EX 10", "+OK"),
        ("TTL b", ":10"),
        ("PTTL a", ":100"),
        ("TTL none", ":-2"),
        ("SET c 1", "+OK"),
        ("TTL c", ":-1"),
        ("EXPIRE c 5", ":1"),
        ("EXPIRE none 5", ":0"),
        ("PERSIST c", ":1"),
        ("PERSIST c", ":0"),
        ("SET b 2 KEEPTTL", "+OK"),
    ]);
    fixture.engine.advance(NOW + 99);
    fixture.expect(&[("GET a", "$1 1"), ("PTTL a", ":1")]);
    fixture.engine.advance(NOW + 100);
    fixture.expect(&[
        ("GET a", "$-1"),
        ("GET b", "$1 2"),
        ("EXPIRE b -1", ":1"),
        ("GET b", "$-1"),
        ("EXISTS c", ":1"),
    ]);
    fixture.engine.advance(NOW);
    fixture.expect(&[
        ("TIME", "*2 $4 1000 $6 100000"),
        ("SET c 2 PXAT 5", "+OK"),
        ("GET c", "$-1"),
    ]);
}

#[test]
fn time_waits_for_keys_that_end_in_great_numbers() {
    let mut fixture = Fixture::new();
    for key in 0..=EXPIRE_AT_ONCE {
        fixture.run(&format!("SET k{key} v PX {}", 10 + key));
    }
    fixture.engine.advance(NOW + 1_000_000);
    assert_eq!(fixture.engine.now, NOW + 10 + EXPIRE_AT_ONCE as u64 - 1);
    fixture.expect(&[("DBSIZE", ":1"), (&format!("PTTL k{EXPIRE_AT_ONCE}"), ":1")]);
    fixture.engine.advance(NOW + 1_000_000);
    fixture.expect(&[("DBSIZE", ":0")]);
    assert_eq!(fixture.engine.now, NOW + 1_000_000);
}

#[test]
fn writes_that_grow_are_refused_when_memory_is_used_up() {
    let mut fixture = Fixture::new();
    let value = "x".repeat(100_000);
    let mut reply = String::new();
    for key in 0..20 {
        reply = fixture.run(&format!("SET k{key} {value}"));
    }
    assert_eq!(reply, "-OOM command not allowed when used memory > 'maxmemory'.");
    assert_eq!(fixture.run("APPEND k0 x"), reply);
    fixture.expect(&[
        ("DBSIZE", ":11"),
        ("DEL k0", ":1"),
        ("DEL k1", ":1"),
        ("SET k v", "+OK"),
    ]);
}

#[test]
fn replies_and_keys_have_a_greatest_length() {
    let mut fixture = Fixture::new();
    fixture.run(&format!("SET k {}", "x".repeat(SETTINGS.max_reply / 4)));
    let too_long = "-OOM the reply would take more memory than this server has for replies";
    fixture.expect(&[
        ("MGET k k k k", too_long),
        ("MGET none none none", "*3 $-1 $-1 $-1"),
        ("STRLEN k", ":1024"),
    ]);
    assert!(fixture.run("MGET k k k").starts_with("*3 "));
    let key = "k".repeat(MAX_KEY);
    assert_eq!(fixture.run(&format!("SET {key} v")), "+OK");
    assert_eq!(
        fixture.run(&format!("SET {key}k v")),
        "-ERR key exceeds maximum allowed size (64kB)"
    );
}

#[test]
fn the_journal_does_not_depend_on_time() {
    let mut fixture = Fixture::new();
    let cases = [
        ("SET k v", "SET k v"),
        ("SET k v PX 5", "SET k v PXAT 1000005"),
        ("SETEX k 1 v", "SET k v PXAT 1001000"),
        ("EXPIRE k 7", "PEXPIREAT k 1007000"),
        ("PERSIST k", "PERSIST k"),
        ("GETSET k w", "SET k w"),
        ("SETNX k w", ""),
        ("GET k", ""),
        ("INCR n", "INCR n"),
        ("INCR k", ""),
        ("DEL none", ""),
        ("DEL k none", "DEL k none"),
        ("FLUSHALL", "FLUSHALL"),
        ("FLUSHALL", ""),
    ];
    for (words, journalled) in cases {
        fixture.run(words);
        assert_eq!(fixture.journal(), journalled, "{words}");
    }
    fixture.run("SET k v PX 5");
    fixture.journal();
    fixture.engine.advance(NOW + 5);
    assert_eq!(fixture.journal(), "DEL k");
}

#[test]
fn replaying_the_journal_later_restores_the_store() {
    let mut fixture = Fixture::new();
    for words in [
        "SET a 1 PX 10",
        "INCR a",
        "SET b x",
        "APPEND b y",
        "MSET c 1 d 2",
        "GETDEL d",
    ] {
        fixture.run(words);
    }
    fixture.engine.advance(NOW + 50);
    fixture.run("INCR a");
    let mut engine = fixture.replayed();
    let mut client = Client::default();
    for words in ["GET a", "PTTL a", "GET b", "MGET c d", "DBSIZE"] {
        let split: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        let reply = execute(&mut engine, &mut client, &split).0;
        assert_eq!(
            reply,
            execute(&mut fixture.engine, &mut fixture.client, &split).0,
            "{words}"
        );
    }
    assert_eq!(engine.store().used(), fixture.engine.store().used());
}

#[test]
fn only_commands_that_change_something_are_replayed() {
    let mut engine = Engine::new(SETTINGS);
    for words in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"*1\r\n$3\r\nSET\r\n",
        b"*1\r\n$4\r\nNONE\r\n",
    ] {
        let mut words = words.to_vec();
        let mut parser = Parser::default();
        parser.parse(&mut words).unwrap();
        assert!(engine.replay(parser.arguments(&words)).is_err());
    }
}
