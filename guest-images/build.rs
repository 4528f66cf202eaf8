//! Builds the bare-metal guests: an inner cargo build of the separate workspace in `guests/`.
//!
//! The guests need code generation flags of their own (no SSE, static, linked at 2 MiB), so they cannot be members of
//! the main workspace. What the outer cargo, clippy or the user put into the environment for *host* code must not reach
//! them, so it is cleared. The inner target folder is shared by all outer profiles and by clippy: one build serves all.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests, as binaries of the inner workspace. `src/lib.rs` embeds the same list.
const GUESTS: [&str; 7] = ["pulse", "exits", "mix", "spin", "scribble", "dirty", "kv"];
/// The host target that stable toolchains carry; nothing of its operating system is linked.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Environment variables, by prefix, that steer the compilation of host code.
const HOST_ONLY: [&str; 8] = [
    "RUSTC",
    "RUSTFLAGS",
    "RUSTDOC",
    "CLIPPY",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
];

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let guests = manifest_dir.join("guests");
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    rerun_if_sources_change(&guests);

    let target_dir = target_dir(&out_dir);
    fs::create_dir_all(&target_dir).unwrap_or_else(|error| panic!("create {}: {error}", target_dir.display()));
    // Another outer profile may build at the same time: the images are copied before it may replace them.
    let lock_path = target_dir.join("images.lock");
    let lock = File::create(&lock_path).unwrap_or_else(|error| panic!("create {}: {error}", lock_path.display()));
    lock.lock()
        .unwrap_or_else(|error| panic!("lock {}: {error}", lock_path.display()));

    build(&guests, &target_dir);
    for name in GUESTS {
        let built = target_dir.join(TARGET).join("release").join(name);
        let copy = out_dir.join(format!("{name}.elf"));
        fs::copy(&built, &copy)
            .unwrap_or_else(|error| panic!("copy {} to {}: {error}", built.display(), copy.display()));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name} from cargo: {error}"))
}

/// `target/guest-images` beside the folder that holds all build scripts' output; the script's own where cargo's layout is
/// another one.
fn target_dir(out_dir: &Path) -> PathBuf {
    let build_dir = out_dir
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "build"));
    build_dir
        .and_then(|dir| dir.parent()?.parent())
        .unwrap_or(out_dir)
        .join("guest-images")
}

fn build(guests: &Path, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| HOST_ONLY.iter().any(|prefix| name.starts_with(prefix)))
        {
            cargo.env_remove(name);
        }
    }
    let flags = [
        // Guests run at CPL0 on a software KVM whose emulator has no SSE. rustc warns that -sse2 becomes an error on
        // this target some day; x86_64-unknown-none is the way out then, where it can be installed.
        "-Ctarget-feature=-sse,-sse2".to_owned(),
        "-Crelocation-model=static".to_owned(),
        "-Cforce-unwind-tables=no".to_owned(),
        "-Clink-arg=-nostartfiles".to_owned(),
        "-Clink-arg=-nostdlib".to_owned(),
        "-Clink-arg=-static".to_owned(),
        "-Clink-arg=-no-pie".to_owned(),
        "-Clink-arg=-Wl,-z,max-page-size=4096,--build-id=none".to_owned(),
        format!("-Clink-arg=-T{}", guests.join("rt/guest.ld").display()),
        // Panic messages name source files: they should not depend on where the sources lie.
        format!("--remap-path-prefix={}=guests", guests.display()),
    ];
    cargo
        .current_dir(guests)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    for name in GUESTS {
        cargo.args(["--bin", name]);
    }
    let output = cargo.output().unwrap_or_else(|error| panic!("run {cargo:?}: {error}"));
    assert!(
        output.status.success(),
        "building the guests failed ({}); the command was {cargo:?} and said:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Names all sources one by one: a folder as a whole would include a `target` folder that developers have in it.
fn rerun_if_sources_change(guests: &Path) {
    let entries = fs::read_dir(guests).unwrap_or_else(|error| panic!("read {}: {error}", guests.display()));
    for entry in entries {
        let path = entry
            .unwrap_or_else(|error| panic!("read {}: {error}", guests.display()))
            .path();
        if path.file_name().is_some_and(|name| name != "target") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
}
