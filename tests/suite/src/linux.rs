//! Stock Linux under ftvm, in short. In length: `nested-host soak --runs N`, `nested-host failover --kills N`.

use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs `nested-host` with `--json`; what it printed. It takes its turn among the nested hosts by itself.
fn nested_host(arguments: &[&str]) -> Value {
    let output = Command::new(ftvm_lab::program("nested-host", "ftvm-lab").unwrap())
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("nested-host starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let object: Value = serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{}: {e}: {text}", output.status));
    assert!(output.status.success(), "{object}");
    object
}

/// Debian's kernel boots, loads modules and refuses one, runs programs that read the time stamp counter, and switches
/// itself off; then the same again from the log.
#[test]
fn nested_linux_replays_exactly() {
    let object = nested_host(&["soak", "--runs", "1", "--seed", "1", "--workload", "tsc"]);
    assert_eq!((&object["runs"], &object["wrong"]), (&1.into(), &0.into()), "{object}");
}

/// Redis and nginx work on, on the same connections, when their host loses its power. What that means is checked where the
/// figures come from (`ftvm_lab::failover`); here, that they are about something.
#[test]
fn nested_linux_outlives_its_host() {
    let object = nested_host(&[
        "failover",
        "--kills",
        "1",
        "--seed",
        "1",
        "--detection",
        "12000",
        "--lease",
        "8000",
    ]);
    assert_eq!((&object["kills"], &object["wrong"]), (&1.into(), &0.into()), "{object}");
    let [acked, read_back, on_disk, lost] =
        ["acked_writes", "read_back", "on_disk", "lost_writes"].map(|name| object[name].as_u64());
    assert!(acked >= Some(200) && lost == Some(0), "{object}");
    assert!(read_back == acked && on_disk == acked, "{object}");
}
