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

const EXCEPTIONS: Exceptions = &[];

fn dead(files: &Files) -> Vec<(String, String)> {
    let reached = tree(files).reached;
    let mut dead = Vec::new();
    for path in files.keys() {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.ends_with(".rs") {
            if !reached.contains_key(path) {
                dead.push((path.clone(), "no `mod` leads to it".to_owned()));
            }
            continue;
        }
        let looked_at = [".sh", ".txt", ".toml"].iter().any(|end| name.ends_with(end));
        if !looked_at || KNOWN_TO_TOOLS.contains(&name) {
            continue;
        }
        // By its name, or with all that is in its folder.
        let folder: Vec<&str> = folder.rsplit('/').take(2).collect();
        let folder = folder.into_iter().rev().collect::<Vec<_>>().join("/");
        let mentioned = files
            .iter()
            .any(|(other, text)| other != path && (text.contains(name) || text.contains(&folder)));
        if !mentioned {
            dead.push((path.clone(), "no other file mentions it or its folder".to_owned()));
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
