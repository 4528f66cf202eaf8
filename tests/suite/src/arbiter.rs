//! The three arbiters under one contract, and what is particular to etcd: silence, restarts, and servers that talk nonsense.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_lab::arbiter::check;
use ftvm_lab::arbiter::planted::{FAULTS, Fault, Memory};
use ftvm_lab::etcd::EtcdServer;
use ftvm_lab::pair::free_address;
use shared_disk::arbiter::{Arbiter, ArbiterError, ClaimOutcome, Claimant, SharedDirectory, SharedStorage};

fn etcd(endpoints: &[&str], guest: &str) -> Arc<dyn Arbiter> {
    let storage: SharedStorage = format!("etcd:{}", endpoints.join(",")).parse().expect("endpoints");
    storage.open(guest).expect("a name")
}

fn won(generation: u64) -> Result<ClaimOutcome, ArbiterError> {
    Ok(ClaimOutcome::Won { generation })
}

#[test]
fn the_contract_is_kept_by_a_variable_and_broken_by_each_fault() {
    let right = Memory::new(Fault::None);
    check(20, |guest| right.host(guest));
    for fault in FAULTS {
        let wrong = Memory::new(fault);
        let broken = catch_unwind(AssertUnwindSafe(|| check(20, |guest| wrong.host(guest))));
        assert!(broken.is_err(), "{fault:?} passes the suite");
    }
}

#[test]
fn the_shared_directory_keeps_the_contract() {
    let root = tempfile::tempdir().unwrap();
    check(50, |guest| Arc::new(SharedDirectory::new(root.path(), guest).unwrap()));
}

#[test]
fn etcd_keeps_the_contract() {
    let server = EtcdServer::start();
    let endpoint = server.endpoint();
    check(20, |guest| etcd(&[&endpoint], guest));
}

#[test]
fn etcd_that_is_silent_is_no_loss_and_a_late_win_is_a_win() {
    let server = EtcdServer::start();
    let arbiter = etcd(&[&server.endpoint()], "guest");
    assert_eq!(arbiter.start(1), Ok(1));
    server.signal("STOP");
    let mut claimant = Claimant::new(arbiter.clone(), 1, 1, 2);
    let begun = Instant::now();
    let silent = claimant.claim_with_timeout(Duration::from_millis(200)).unwrap_err();
    assert!(
        silent.is_retryable() && begun.elapsed() < Duration::from_secs(2),
        "{silent}"
    );
    // The call itself gives up too.
    let error = claimant.claim_with_timeout(Duration::from_secs(20)).unwrap_err();
    assert!(error.to_string().contains("http://"), "{error}");
    server.signal("CONT");
    // The first claim may still land. Whoever asks, there is one winner, and it stays the winner.
    let rival = etcd(&[&server.endpoint()], "guest").claim(1, 1, 3).unwrap();
    let answer = claimant.claim_with_timeout(Duration::from_secs(20)).unwrap();
    let own = ClaimOutcome::Won { generation: 2 };
    assert!((answer == own) != (rival == own), "{answer:?} {rival:?}");
    assert_eq!(arbiter.claim(1, 1, 2), Ok(answer));
}

#[test]
fn etcd_that_is_killed_remembers() {
    let mut server = EtcdServer::start();
    let arbiter = etcd(&[&server.endpoint()], "guest");
    assert_eq!(arbiter.start(1), Ok(1));
    assert_eq!(arbiter.claim(1, 1, 2), won(2));
    server.kill();
    let error = arbiter.claim(1, 1, 2).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    server.restart();
    let mut claimant = Claimant::new(arbiter.clone(), 1, 1, 2);
    let begun = Instant::now();
    let answer = loop {
        // It elects itself first.
        match claimant.claim_with_timeout(Duration::from_secs(5)) {
            Err(error) => assert!(
                error.is_retryable() && begun.elapsed() < Duration::from_secs(60),
                "{error}"
            ),
            answer => break answer,
        }
    };
    assert_eq!(answer, won(2));
    assert_eq!(
        arbiter.claim(1, 1, 3),
        Ok(ClaimOutcome::Lost {
            generation: 2,
            owner: 2
        })
    );
}

#[test]
fn etcds_members_are_tried_in_turn_and_must_be_of_one_cluster() {
    let (server, other) = (EtcdServer::start(), EtcdServer::start());
    let (endpoint, nobody) = (server.endpoint(), format!("http://{}", free_address()));
    let arbiter = etcd(&[&nobody, &endpoint], "guest");
    assert_eq!(arbiter.start(1), Ok(1));
    assert_eq!(arbiter.claim(1, 1, 2), won(2));
    let both = etcd(&[&endpoint, &other.endpoint()], "guest");
    assert_eq!(both.claim(1, 1, 2), won(2));
    drop(server);
    let error = both.claim(1, 1, 2).unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("belongs to cluster"),
        "{error}"
    );
}

/// A server that answers every request so.
fn liar(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&answer);
        }
    });
    format!("http://{address}")
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn nonsense_is_an_error_that_says_so_and_never_an_outcome() {
    let header = r#""header":{"cluster_id":"7","revision":"3"}"#;
    let record = "bm8gcmVjb3Jk"; // "no record"
    let held = format!(
        r#"{{{header},"kvs":[{{"key":"ZnR2bS9ndWVzdC9nZW5lcmF0aW9u","mod_revision":"2","value":"{record}"}}]}}"#
    );
    let long = [http("200 OK", "").as_slice(), &vec![b'x'; 1 << 20]].concat();
    let endless = b"HTTP/1.1 200 OK\r\n"
        .iter()
        .copied()
        .chain(b"a: b\r\n".iter().copied().cycle().take(1 << 20))
        .collect();
    let too_long = format!("{{{header},\"x\":\"{}\"}}", "y".repeat(70_000));
    for (name, answer) in [
        ("an empty object", http("200 OK", "{}")),
        ("no JSON", http("200 OK", "<html>")),
        ("nothing", Vec::new()),
        ("no HTTP", b"\x00\xff\x00\xff\r\n\r\n".to_vec()),
        ("cut short", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec()),
        ("a body after the body", long),
        ("an endless header", endless),
        ("a long body", http("200 OK", &too_long)),
        (
            "a redirection",
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        (
            "a refusal",
            http("403 Forbidden", r#"{"error":"etcdserver: permission denied","code":7}"#),
        ),
        ("another service", http("404 Not Found", "no such page")),
        (
            "no leader",
            http(
                "503 Service Unavailable",
                r#"{"error":"etcdserver: no leader","code":14}"#,
            ),
        ),
        ("no record", http("200 OK", &held)),
        ("no key", http("200 OK", &format!("{{{header}}}"))),
    ] {
        let endpoint = liar(answer);
        let arbiter = etcd(&[&endpoint], "guest");
        for answer in [
            arbiter.claim(1, 1, 2).map(drop),
            arbiter.start(1).map(drop),
            arbiter.end(1),
        ] {
            let error = answer.expect_err(name);
            assert_eq!(
                error.is_retryable(),
                ["nothing", "cut short", "no leader", "no key"].contains(&name),
                "{name}: {error}"
            );
            assert!(error.to_string().len() < 600, "{name}: {error}");
        }
        assert!(
            arbiter.read_nonce("n").is_err() && arbiter.check_access().is_err(),
            "{name}"
        );
    }
    let text = etcd(
        &[&liar(http(
            "503 Service Unavailable",
            r#"{"error":"etcdserver: no leader"}"#,
        ))],
        "g",
    );
    let text = text.claim(1, 1, 2).unwrap_err().to_string();
    assert!(text.contains("no leader"), "{text}");
}
