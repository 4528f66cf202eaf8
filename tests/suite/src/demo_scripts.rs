//! The demo scripts in `demo/` do what they say.

use std::process::{Command, Stdio};

use ftvm_lab::{kvm_test, time_factor};

/// Runs a script to its end; detection and lease are those of a slow machine where this is one.
fn passes(script: &str, settings: &[(&str, u32)]) {
    let slow = time_factor() > 1;
    let (detection, lease) = if slow { (3000, 1500) } else { (500, 300) };
    let ftvm = ftvm_lab::ftvm().unwrap_or_else(|e| panic!("{e}"));
    let mut command = Command::new("sh");
    command
        .arg(script)
        .stdin(Stdio::null())
        .env("FTVM", ftvm)
        .env_remove("TMUX");
    for (name, value) in [("D", detection), ("L", lease), ("LIMIT", 150)].iter().chain(settings) {
        command.env(name, value.to_string());
    }
    let status = command.status().expect("sh");
    assert!(status.success(), "{script}: {status}");
}

kvm_test! {
    // This machine's sh: busybox's would call its own ip, not the program.
    programs = ["sh", "ip", "redis-cli", "redis-benchmark"],
    files = [concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/netns-redis.sh")];
    /// A benchmark on a network of namespaces does not notice that a host dies. Needs root.
    fn kvm_script_netns_redis() {
        let requests = if time_factor() > 1 { 2000 } else { 100_000 };
        passes(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/netns-redis.sh"), &[("N", requests)]);
    }
}

kvm_test! {
    files = [concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/two-terminals.sh")];
    /// Every line of a guest is on its console once, though its host dies.
    fn kvm_script_two_terminals() {
        // The guest must not be at its end before there is a backup.
        let ticks = if time_factor() > 1 { 3000 } else { 600 };
        let settings = [("TICKS", ticks), ("KILL_AT", 100)];
        passes(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/two-terminals.sh"), &settings);
    }
}
