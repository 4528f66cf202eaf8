//! Files that nothing leads to.

use super::tree::tree;
use super::{Exceptions, Files, judge};

/// What tools look for by name.
const KNOWN_TO_TOOLS: [&str; 8] = [
    "Cargo.toml",
    "book.toml",
    "clippy.toml",
    "deny.toml",
    "nextest.toml",
    "rustfmt.toml",
    "Cargo.lock",
    "SUMMARY.md",
];

/// Folders that go into the Linux guest with all that is in them (`tests/lab/src/linux`).
const TAKEN_WHOLE: [&str; 2] = ["guest-images/linux/root/", "guest-images/linux/workloads/"];

/// What is planted here is no mention.
const HERE: &str = "tests/suite/src/tidy/";

const EXCEPTIONS: Exceptions = &[];

fn dead(files: &Files) -> Vec<(String, String)> {
    let reached = tree(files).reached;
    let mut dead = Vec::new();
    for path in files.keys() {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.ends_with(".rs") {
            if !reached.contains_key(path) {
                dead.push((path.clone(), "no `mod` leads to it".to_owned()));
            }
            continue;
        }
        let looked_at = [".sh", ".txt", ".toml"].iter().any(|end| name.ends_with(end));
        let taken_whole = TAKEN_WHOLE.iter().any(|folder| path.starts_with(folder));
        if !looked_at || taken_whole || KNOWN_TO_TOOLS.contains(&name) {
            continue;
        }
        let mentioned = files
            .iter()
            .any(|(other, text)| other != path && !other.starts_with(HERE) && text.contains(name));
        if !mentioned {
            dead.push((path.clone(), "no other file mentions it".to_owned()));
        }
    }
    dead
}

#[test]
fn no_file_is_dead() {
    super::nothing_is_wrong(&judge(dead(&super::repository()), EXCEPTIONS));
}

#[test]
fn a_dead_file_is_named() {
    let files = super::planted(&[
        ("a/Cargo.toml", ""),
        ("a/src/lib.rs", "mod b; const T: &str = include_str!(\"golden.txt\");"),
        ("a/src/b.rs", ""),
        ("a/src/c.rs", "mod b;"),
        ("a/src/golden.txt", ""),
        ("a/tools/old.sh", ""),
    ]);
    let dead: Vec<String> = dead(&files).into_iter().map(|(path, _)| path).collect();
    assert_eq!(dead, ["a/src/c.rs", "a/tools/old.sh"]);
}
