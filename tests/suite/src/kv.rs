//! The key-value guest under load, with a disk and a network card, recorded and replayed in a new process.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ftvm_demo::client::resp::{Reply, read_reply, write_command};
use ftvm_lab::kv::{GUEST_IP, GUEST_MAC, Network, PORT, blank_disk, cmdline};
use ftvm_lab::nested::Turn;
use ftvm_lab::pair::{ftvm, wait};
use ftvm_lab::tun::Tap;
use ftvm_lab::{kvm_test, scaled, time_factor};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use serde_json::Value;

/// Acknowledged writes that the client makes.
const WRITES: u64 = 1500;
/// The least that kv takes is 17 MiB.
const DISK_MIB: u64 = 32;

/// A recording under way. It dies with its test.
struct Recording(Child);

impl Recording {
    /// `ftvm record` of `kv`; stdout and stderr go to files of `dir`.
    fn start(dir: &Path, verify: &str, cmdline: &str, net: &str) -> Self {
        let file = |name: &str| File::create(dir.join(name)).expect("a file");
        let child = Command::new(ftvm_lab::ftvm().unwrap_or_else(|e| panic!("{e}")))
            .args([
                "record",
                "--log",
                "log",
                "--kernel",
                "builtin:kv",
                "--json",
                "--verify",
                verify,
            ])
            .args(["--cmdline", cmdline, "--disk", &blank_disk(&dir.join("disk"), DISK_MIB)])
            .args(["--net", &format!("{net},mac={GUEST_MAC}"), "--console", "file=console"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .expect("ftvm starts");
        let mut recording = Recording(child);
        let begun = Instant::now();
        while !read(dir, "console").contains("kv ready") {
            let said = || format!("{}{}", read(dir, "err"), read(dir, "console"));
            assert!(
                recording.0.try_wait().expect("a child").is_none(),
                "it has ended: {}",
                said()
            );
            assert!(
                begun.elapsed() < scaled(Duration::from_secs(10)),
                "kv is not ready: {}",
                said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        recording
    }

    /// Waits for its end and returns its figures.
    fn figures(&mut self, dir: &Path) -> Value {
        let begun = Instant::now();
        let status = loop {
            match self.0.try_wait().expect("a child") {
                Some(status) => break status,
                None => assert!(begun.elapsed() < scaled(Duration::from_secs(10)), "still recording"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let (out, err) = (read(dir, "out"), read(dir, "err"));
        assert!(status.success(), "{status}: {err}{}", read(dir, "console"));
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

/// The log says all: neither disk nor network is there any more.
fn assert_replays(dir: &Path, recorded: &Value) {
    let blank = std::fs::read(dir.join("disk")).unwrap().iter().all(|&byte| byte == 0);
    assert!(!blank, "kv has written to its disk");
    std::fs::remove_file(dir.join("disk")).unwrap();
    let (code, out, err) = ftvm(dir, &["replay", "log", "--json"]);
    let replayed: Value = serde_json::from_str(out.trim()).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, &replayed["diverged"]), (0, &Value::Bool(false)), "{replayed}");
    for field in ["exits", "inputs", "checkpoints", "log_bytes", "memory_hash", "outcome"] {
        assert_eq!(recorded[field], replayed[field], "{field}");
    }
    println!("recorded {recorded}\nreplayed {replayed}");
}

kvm_test! {
    turn = Turn::Shared;
    /// A client writes, reads everything back, and the recording is ended from outside; once for each kind of check.
    fn kvm_kv_under_load_replays_exactly() {
        for verify in ["marks", "exit"] {
            let dir = tempfile::tempdir().unwrap();
            let network = Network::new(dir.path());
            let (guest, _) = (network.plug("guest"), network.plug("client"));
            let mut recording = Recording::start(dir.path(), verify, &cmdline(), &guest);
            let client = network.client("client", 1 << 20, 8, Duration::ZERO);
            wait("writes", scaled(Duration::from_secs(12)), || {
                let progress = client.progress();
                assert!(!progress.ended, "the client ended: {progress:?}");
                (progress.acked_writes >= WRITES).then_some(())
            });
            let report = client.finish().unwrap();
            assert!(report.connection_survived(), "{:?}", report.ending);
            assert_eq!(report.tally.lost_writes, 0);
            let killed = Command::new("kill").args(["-TERM", &recording.0.id().to_string()]).status();
            assert!(killed.expect("kill").success());
            let recorded = recording.figures(dir.path());
            assert_eq!(recorded["outcome"], "stopped by the operator");
            assert!(recorded["inputs"].as_u64().unwrap() > WRITES / 8, "{recorded}");
            assert_replays(dir.path(), &recorded);
        }
    }
}

kvm_test! {
    turn = Turn::Shared;
    /// A guest that refuses what it is given is heard of even where its console is off.
    fn kvm_kv_says_why_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let disk = blank_disk(&dir.path().join("small"), 16);
        let line = ["record", "--log", "log", "--kernel", "builtin:kv", "--console", "off", "--disk", &disk];
        let net = Network::new(dir.path()).plug("guest");
        let (code, _, err) = ftvm(dir.path(), &[&line[..], &["--net", &net]].concat());
        assert!(code == 3 && err.contains("status 2") && err.contains("replay --console"), "{code}: {err}");
        let (code, out, err) = ftvm(dir.path(), &["replay", "log", "--console"]);
        assert!(code == 0 && (out + &err).contains("17 MiB"), "{code}: {err}");
    }
}

kvm_test! {
    turn = Turn::Shared, programs = ["ip", "redis-cli", "redis-benchmark"];
    /// The same with a TAP, stock tools and a clean end from inside. Needs root.
    fn kvm_kv_under_redis_benchmark_replays_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let tap = Tap::new("ftvm-kv0");
        run("ip", &["addr", "add", "192.168.7.1/24", "dev", tap.name()]);
        let mut recording = Recording::start(dir.path(), "exit", &cmdline(), &format!("tap={}", tap.name()));
        let (host, port) = (GUEST_IP.to_string(), PORT.to_string());
        let requests = if time_factor() > 1 { "1000" } else { "20000" };
        let load = ["-h", &host, "-p", &port, "-t", "set,get,incr", "-c", "5", "-P", "4", "-n", requests, "-q"];
        run("redis-benchmark", &load);
        run("redis-cli", &["-h", &host, "-p", &port, "SHUTDOWN"]);
        let recorded = recording.figures(dir.path());
        assert_eq!(recorded["outcome"], "power-off");
        assert_replays(dir.path(), &recorded);
    }
}

/// Clients that come at once, far more than kv has room for.
const CROWD: usize = 500;
/// Clients that take their handshake back: more than kv serves at a time.
const TAKEN_BACK: usize = 200;
/// Where kv is for them: a network that no other test's TAP is in.
const CROWDED_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 8, 2);
/// For how long kv keeps the connection of a client that it has refused and that does not go, in seconds.
const PATIENCE: u64 = 10;

kvm_test! {
    turn = Turn::Shared, programs = ["ip"];
    /// Of a crowd as many are served as there is room for, and all others are told so. Those who have been told stay as
    /// long as they like, and some take their handshake back; yet the next crowd finds all the room again. Needs root.
    fn kvm_kv_gives_back_every_place_that_a_crowd_took() {
        let dir = tempfile::tempdir().unwrap();
        let tap = Tap::new("ftvm-kv1");
        run("ip", &["addr", "add", "192.168.8.1/24", "dev", tap.name()]);
        let cmdline = format!("ip={CROWDED_IP}/24 gw=192.168.8.1 port={PORT}");
        let mut recording = Recording::start(dir.path(), "marks", &cmdline, &format!("tap={}", tap.name()));
        // It keeps its place throughout, so that one less is there for the crowd.
        let mut witness = Caller::connect().expect("the first client");
        let room = witness.info("maxclients") - 1;

        let first = Crowd::gather();
        println!("room for {room}: {first}");
        first.assert_received(room);
        drop(first.served);
        wait("the places of those who have left", scaled(Duration::from_secs(10)), || {
            (witness.info("connected_clients") == 1).then_some(())
        });
        // Those who have been told do not go: kv has to end their connections without them.
        let until = witness.info("uptime_in_seconds") + PATIENCE + 2;
        wait("the end of kv's patience", scaled(Duration::from_secs(30)), || {
            (witness.info("uptime_in_seconds") >= until).then_some(())
        });

        let begun = witness.info("uptime_in_seconds");
        (0..TAKEN_BACK).for_each(|_| take_handshake_back());
        wait("the places of handshakes that were taken back", scaled(Duration::from_secs(10)), || {
            (witness.info("connected_clients") == 1).then_some(())
        });
        let took = witness.info("uptime_in_seconds") - begun;
        assert!(took < PATIENCE / 2, "kv took {took} s to notice that they were taken back");
        // One that came after another had taken its handshake back may have found its socket, and does not count.
        let received = witness.info("total_connections_received");
        assert!(received > 1 + CROWD as u64, "none of them was heard: {received}");

        let second = Crowd::gather();
        println!("room for {room}: {second}");
        second.assert_received(room);
        drop((second, first.told, witness));
        let killed = Command::new("kill").args(["-TERM", &recording.0.id().to_string()]).status();
        assert!(killed.expect("kill").success());
        assert_replays(dir.path(), &recording.figures(dir.path()));
    }
}

/// A client with the stack of this machine.
struct Caller {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Caller {
    fn connect() -> std::io::Result<Caller> {
        let address = SocketAddr::from((CROWDED_IP, PORT));
        let patience = scaled(Duration::from_secs(20));
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Caller {
            stream,
            unread: Vec::new(),
        })
    }

    fn ask(&mut self, words: &[&str]) -> Reply {
        let mut request = Vec::new();
        write_command(&mut request, words);
        self.stream.write_all(&request).expect("an open connection");
        loop {
            if let Some((reply, used)) = read_reply(&self.unread).expect("RESP") {
                self.unread.drain(..used);
                return reply;
            }
            let mut buffer = [0; 1024];
            let len = self.stream.read(&mut buffer).expect("an answer");
            assert!(len > 0, "the connection ended without an answer");
            self.unread.extend_from_slice(&buffer[..len]);
        }
    }

    /// A number that kv says of itself.
    fn info(&mut self, field: &str) -> u64 {
        let Reply::BulkString(text) = self.ask(&["INFO"]) else {
            panic!("INFO is a text")
        };
        let text = String::from_utf8(text).expect("text");
        let value = text
            .lines()
            .find_map(|line| line.split_once(':').filter(|(name, _)| *name == field));
        value
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or_else(|| panic!("{field} in {text}"))
    }
}

/// Asks for a connection and is gone before the answer: this machine's stack resets the connection within its handshake.
fn take_handshake_back() {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    let begun = socket::connect(
        socket.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(CROWDED_IP, PORT)),
    );
    assert_eq!(begun, Err(Errno::EINPROGRESS), "nobody can have answered yet");
}

/// How kv received the clients that came at once. They stay until this is dropped.
#[derive(Default)]
struct Crowd {
    served: Vec<Caller>,
    /// Got the error that there are too many, and the end of the connection.
    told: Vec<Caller>,
    /// Found nobody who listens.
    turned_away: usize,
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (served, told) = (self.served.len(), self.told.len());
        write!(f, "{served} served, {told} told, {} turned away", self.turned_away)
    }
}

impl Crowd {
    /// Lets all of them come and say something at once.
    ///
    /// # Panics
    /// If one is received in any other way.
    fn gather() -> Crowd {
        let all: Vec<_> = (0..CROWD).map(|_| std::thread::spawn(Received::one)).collect();
        let mut crowd = Crowd::default();
        for one in all {
            match one.join().expect("a client that was received") {
                Received::Served(caller) => crowd.served.push(caller),
                Received::Told(caller) => crowd.told.push(caller),
                Received::TurnedAway => crowd.turned_away += 1,
            }
        }
        crowd
    }

    /// As many were served as there was room for, and every other one heard why it was not.
    fn assert_received(&self, room: u64) {
        let room = usize::try_from(room).expect("a number of clients");
        let received = (self.served.len(), self.told.len(), self.turned_away);
        assert_eq!(received, (room, CROWD - room, 0), "served, told, turned away");
    }
}

enum Received {
    Served(Caller),
    Told(Caller),
    TurnedAway,
}

impl Received {
    fn one() -> Received {
        let mut caller = match Caller::connect() {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Received::TurnedAway,
            connected => connected.expect("a connection, or nobody who listens"),
        };
        match caller.ask(&["PING"]) {
            Reply::SimpleString(text) if text == b"PONG" => Received::Served(caller),
            Reply::Error(text) if text == "ERR max number of clients reached" => {
                let more = caller.stream.read(&mut [0; 16]).expect("the end of the connection");
                assert_eq!(more, 0, "the error is the last word");
                Received::Told(caller)
            }
            reply => panic!("a PING was answered with {reply:?}"),
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{program}: {}", said(&output.stdout).replace('\r', "\n"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}
