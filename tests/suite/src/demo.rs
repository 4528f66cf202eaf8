//! The main job: `ftvm demo` on real processes, killed for real.

use std::process::{Command, Stdio};
use std::time::Duration;

use ftvm_lab::{kvm_test, scaled, time_factor};
use serde_json::Value;

/// Kills in CI; the long form is `FTVM_DEMO_KILLS=20 ./test kvm_demo`.
const KILLS: u64 = 3;

kvm_test! {
    timeout = 1800;
    /// No acknowledged write is lost, the connection survives, and the blackout stays below detection (or lease,
    /// whichever is later) and 100 ms, or what that is on a slow host; of the best run it does there too.
    fn kvm_demo_loses_nothing() {
        let kills = std::env::var("FTVM_DEMO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
        let (detection, lease) = if time_factor() > 1 { (2_000, 1_000) } else { (500, 300) };
        let output = Command::new(ftvm_lab::ftvm().unwrap_or_else(|e| panic!("{e}")))
            .args(["demo", "--json", "--kills", &kills.to_string(), "--seed", "1"])
            .args(["--detection", &detection.to_string(), "--lease", &lease.to_string()])
            .stdin(Stdio::null())
            .output()
            .expect("ftvm starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        let figures: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
        println!("{figures}");
        assert_eq!(figures["kills"], kills);
        assert_eq!(figures["lost_writes"], 0);
        assert_eq!(figures["connection_survived"], true);
        assert!(figures["acked_writes"].as_u64().unwrap() >= 100 * kills);
        let beyond = |blackout: &Value| blackout.as_f64().unwrap() - f64::from(detection.max(lease));
        let allowed = scaled(Duration::from_millis(100)).as_secs_f64() * 1000.0;
        assert!(beyond(&figures["blackout_ms"]) < allowed, "{figures}");
        let best = figures["runs"].as_array().unwrap().iter().map(|run| beyond(&run["blackout_ms"]));
        assert!(best.fold(f64::INFINITY, f64::min) < 100.0, "{figures}");
    }
}
