//! The key-value guest under load, with a disk and a network card, recorded and replayed in a new process.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ftvm_lab::kv::{GUEST_IP, GUEST_MAC, Network, PORT, blank_disk, cmdline};
use ftvm_lab::nested::Turn;
use ftvm_lab::pair::{ftvm, wait};
use ftvm_lab::tun::Tap;
use ftvm_lab::{kvm_test, scaled, time_factor};
use serde_json::Value;

/// Acknowledged writes that the client makes.
const WRITES: u64 = 1500;
/// The least that kv takes is 17 MiB.
const DISK_MIB: u64 = 32;

/// A recording under way. It dies with its test.
struct Recording(Child);

impl Recording {
    /// `ftvm record` of `kv`; stdout and stderr go to files of `dir`.
    fn start(dir: &Path, verify: &str, net: &str) -> Self {
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
            .args([
                "--cmdline",
                &cmdline(),
                "--disk",
                &blank_disk(&dir.join("disk"), DISK_MIB),
            ])
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
            let mut recording = Recording::start(dir.path(), verify, &guest);
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
        let mut recording = Recording::start(dir.path(), "exit", &format!("tap={}", tap.name()));
        let (host, port) = (GUEST_IP.to_string(), PORT.to_string());
        let requests = if time_factor() > 1 { "1000" } else { "20000" };
        let load = ["-h", &host, "-p", &port, "-t", "set,get,lpush", "-c", "5", "-P", "4", "-n", requests, "-q"];
        run("redis-benchmark", &load);
        run("redis-cli", &["-h", &host, "-p", &port, "SHUTDOWN"]);
        let recorded = recording.figures(dir.path());
        assert_eq!(recorded["outcome"], "power-off");
        assert_replays(dir.path(), &recorded);
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
