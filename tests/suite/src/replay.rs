//! Record, then replay in a new process: no divergence, equal memory; and the planted faults that must be named.

use std::path::Path;

use ftvm_lab::kvm_test;
use ftvm_lab::nested::Turn;
use ftvm_lab::pair::ftvm;
use ftvm_schema::entry::{Input, LogEntry};
use logging_channel::file::{Existing, rewrite};
use serde_json::Value;

/// Exits recorded and replayed at least; the long form is `FTVM_SOAK_EXITS=1000000 ./test kvm_soak`.
const SOAK_EXITS: u64 = 200_000;

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Records `guest` and returns the recording's figures.
fn record(dir: &Path, log: &str, guest: &str, cmdline: &str, more: &[&str]) -> Value {
    let kernel = format!("builtin:{guest}");
    let arguments = [
        "record",
        "--log",
        log,
        "--kernel",
        &kernel,
        "--cmdline",
        cmdline,
        "--console",
        "off",
        "--json",
    ];
    let (code, out, err) = ftvm(dir, &[&arguments, more].concat());
    assert_eq!(code, 0, "{err}");
    json(&out)
}

/// Replays; exit code, figures.
fn replay(dir: &Path, log: &str) -> (i32, Value) {
    let (code, out, err) = ftvm(dir, &["replay", log, "--json"]);
    assert!(!out.is_empty(), "code {code}: {err}");
    (code, json(&out))
}

fn assert_same(recorded: &Value, replayed: &(i32, Value)) {
    assert_eq!(replayed.0, 0, "{}", replayed.1);
    assert_eq!(replayed.1["diverged"], false);
    for field in ["exits", "inputs", "checkpoints", "log_bytes", "memory_hash", "outcome"] {
        assert_eq!(recorded[field], replayed.1[field], "{field}");
    }
}

kvm_test! {
    turn = Turn::Shared;
    /// Timer interrupts, CPL0 and CPL3 work, and a guest that moves only by micro-checkpoints.
    fn kvm_guests_replay_exactly() {
        let dir = tempfile::tempdir().unwrap();
        for (guest, cmdline) in
            [("pulse", "ticks=100"), ("mix", "rounds=60 pages=32 stretch=5000"), ("spin", "ticks=50 pages=8")]
        {
            for verify in ["marks", "exit"] {
                let log = format!("{guest}-{verify}.ftlog");
                let recorded = record(dir.path(), &log, guest, cmdline, &["--verify", verify]);
                assert_eq!(recorded["outcome"], "power-off");
                assert_same(&recorded, &replay(dir.path(), &log));
                let checkpoints = recorded["checkpoints"].as_u64().unwrap();
                assert!(checkpoints > 0 || guest != "spin", "a guest without exits moves by checkpoints only");
            }
        }
    }
}

kvm_test! {
    turn = Turn::Shared, timeout = 900;
    /// Many exits with interrupts at CPL0 and CPL3.
    fn kvm_soak_of_exits() {
        let wanted = crate::soak_exits().unwrap_or(SOAK_EXITS);
        let dir = tempfile::tempdir().unwrap();
        let exits = wanted.to_string();
        let recorded = record(
            dir.path(),
            "soak.ftlog",
            "mix",
            "rounds=100000000 every=1000000 pages=4 stretch=50",
            &["--exits", &exits, "--verify", "exit"],
        );
        assert!(recorded["exits"].as_u64().unwrap() >= wanted);
        assert_same(&recorded, &replay(dir.path(), "soak.ftlog"));
    }
}

kvm_test! {
    turn = Turn::Shared;
    /// One input changed by decoding and encoding anew, so that no checksum helps: replay names the exit. A clock reading
    /// that no guest instruction asked for (a tick) shows nowhere, so several readings are tried, each alone.
    fn kvm_a_changed_input_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _ = record(dir.path(), "good", "mix", "rounds=10 pages=8 stretch=500", &["--verify", "exit"]);
        let mut named = 0;
        // Eight, and more if none of them was asked for.
        for chosen in 20..60 {
            if chosen >= 28 && named > 0 {
                break;
            }
            let (mut clocks, mut changed) = (0, 0);
            rewrite(&dir.path().join("good"), &dir.path().join("bad"), Existing::Replace, |entry| {
                let LogEntry::Input { at, input: Input::Clock(time) } = entry else { return Some(entry) };
                clocks += 1;
                if clocks != chosen {
                    return Some(LogEntry::Input { at, input: Input::Clock(time) });
                }
                changed = at.0;
                // A microsecond is several counts of the PM timer that the guest reads; time still runs forwards.
                Some(LogEntry::Input { at, input: Input::Clock(time + 1_000) })
            })
            .unwrap();
            let (code, figures) = replay(dir.path(), "bad");
            if code == 0 {
                continue;
            }
            assert_eq!((code, &figures["diverged"]), (4, &Value::Bool(true)), "{figures}");
            let at = figures["at_exit"].as_u64().unwrap();
            assert!(at >= changed, "changed at exit {changed}, named exit {at}: {figures}");
            assert!(figures["outcome"].as_str().unwrap().contains("RIP 0x"), "{figures}");
            assert_eq!(figures["divergence"]["exact"], true, "{figures}");
            named += 1;
        }
        assert!(named > 0, "no changed reading was noticed");
        assert_eq!(replay(dir.path(), "good").0, 0, "the original is whole");
    }
}

kvm_test! {
    turn = Turn::Shared;
    /// A flipped bit, a missing end, a missing or foreign file: an error that says so, and everything before it replayed.
    fn kvm_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let whole = record(dir.path(), "log", "mix", "rounds=40 pages=8 stretch=500", &["--verify", "exit"]);
        let bytes = std::fs::read(path("log")).unwrap();
        let mut flipped = bytes.clone();
        let at = bytes.len() * 3 / 4;
        flipped[at] ^= 0x10;
        std::fs::write(path("flipped"), &flipped).unwrap();
        let (code, figures) = replay(dir.path(), "flipped");
        assert_eq!((code, &figures["diverged"]), (5, &Value::Bool(false)), "{figures}");
        assert!(figures["damaged"].as_str().unwrap().contains("flipped"), "{figures}");
        for length in [bytes.len() - 1, bytes.len() * 2 / 3, bytes.len() / 3] {
            std::fs::write(path("cut"), &bytes[..length]).unwrap();
            let (code, figures) = replay(dir.path(), "cut");
            assert_eq!((code, &figures["diverged"]), (5, &Value::Bool(false)), "{length}: {figures}");
            assert!(figures["outcome"].as_str().unwrap().contains("cut off"), "{figures}");
            assert!(figures["exits"].as_u64() <= whole["exits"].as_u64());
        }
        assert!(replay(dir.path(), "log").0 == 0);
        std::fs::write(path("foreign"), [b'x'; 4096]).unwrap();
        for (file, words) in [("foreign", "no ftvm log"), ("absent", "absent")] {
            let (code, _, err) = ftvm(dir.path(), &["replay", file]);
            assert_eq!(code, 1);
            assert!(err.contains(words), "{err}");
        }
    }
}

kvm_test! {
    turn = Turn::Shared;
    /// Mistakes of a user, and a full disk.
    fn kvm_recording_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let said = |arguments: &[&str], code: i32, words: &str| {
            let (found, _, err) = ftvm(dir.path(), arguments);
            assert_eq!(found, code, "{arguments:?}: {err}");
            assert!(err.contains(words), "{arguments:?}: {err}");
        };
        let _ = record(dir.path(), "there", "pulse", "ticks=2", &[]);
        said(&["record", "--log", "there", "--kernel", "builtin:pulse"], 1, "exists already");
        said(&["record", "--log", "x"], 2, "--kernel");
        said(&["record", "--log", "x", "--kernel", "builtin:nothing"], 1, "there are: ");
        said(&["record", "--log", "x", "--kernel", "/dev/null"], 1, "/dev/null");
        said(&["record", "--log", "no/where", "--kernel", "builtin:pulse"], 1, "no/where");
        said(&["record", "--log", "x", "--kernel", "builtin:pulse", "--memory", "3M"], 1, "memory must be");
        said(&["record", "--log", "x", "--kernel", "builtin:pulse", "--disk", "path=absent"], 1, "absent");
        said(&["replay", "there", "--kernel", "builtin:mix"], 1, "give the same image");
        let full = ["record", "--log", "/dev/full", "--overwrite", "--kernel", "builtin:pulse", "--cmdline", "ticks=2"];
        let (code, _, err) = ftvm(dir.path(), &full);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("no room left"), "{err}");
    }
}
