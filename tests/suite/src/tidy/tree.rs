//! Which Rust files there are for the compiler: from the crates' roots along `mod`.

use std::collections::{BTreeMap, BTreeSet};

use super::Files;
use super::text::{parts, test_attributes, words};

/// Files that the compiler comes to, and whether only for tests.
pub(super) struct Tree {
    pub(super) reached: BTreeMap<String, Part>,
}

/// What a file is part of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Tests,
    Program,
}

/// Whether cargo takes the file for a crate's root, and of what: Cargo.toml's standard layout, and the fuzz targets, which
/// theirs names.
pub(super) fn root_of(path: &str, packages: &BTreeSet<&str>) -> Option<Part> {
    let package = packages
        .iter()
        .filter(|package| path.starts_with(**package))
        .max_by_key(|package| package.len())?;
    let within = &path[package.len()..];
    let parts: Vec<&str> = within.split('/').collect();
    match parts[..] {
        ["src", "lib.rs" | "main.rs"] | ["src", "bin", _] | ["src", "bin", _, "main.rs"] | ["build.rs"] => {
            Some(Part::Program)
        }
        ["fuzz_targets", _] => Some(Part::Program),
        ["tests" | "benches" | "examples", _] => Some(Part::Tests),
        _ => None,
    }
}

/// Folders of packages, each with a slash at its end; the root's is empty, and has none.
pub(super) fn packages(files: &Files) -> BTreeSet<&str> {
    let manifests = files.keys().filter_map(|path| path.strip_suffix("Cargo.toml"));
    manifests.filter(|folder| folder.ends_with('/')).collect()
}

/// Files that `mod` in `text` names, as places to look at; and whether only for tests.
fn children(path: &str, text: &str, is_root: bool) -> Vec<(Vec<String>, bool)> {
    let code = parts(text).code;
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let own = is_root || name == "mod.rs";
    let folder_of_children = if own {
        folder.to_owned()
    } else {
        path.trim_end_matches(".rs").to_owned()
    };
    let all: Vec<(usize, &str)> = words(&code).collect();
    let mut found = Vec::new();
    for pair in all.windows(2) {
        let [(at, "mod"), (name_at, child)] = pair else {
            continue;
        };
        let end = name_at + child.len();
        if !code[end..].trim_start().starts_with(';') || !code[at + 3..*name_at].trim().is_empty() {
            continue;
        }
        // Attributes stand between the item before and this one; the path's literal is blank in `code`.
        let begin = code[..*at].rfind([';', '{', '}']).map_or(0, |at| at + 1);
        let tests = !test_attributes(&code[begin..*at]).is_empty();
        let given = text[begin..*at]
            .split_once("#[path = \"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let places = match given {
            Some((given, _)) => vec![format!("{folder}/{given}")],
            None => vec![
                format!("{folder_of_children}/{child}.rs"),
                format!("{folder_of_children}/{child}/mod.rs"),
            ],
        };
        found.push((places, tests));
    }
    found
}

/// Walks the modules of every crate.
pub(super) fn tree(files: &Files) -> Tree {
    let packages = packages(files);
    let mut reached: BTreeMap<String, Part> = BTreeMap::new();
    let rust = files.keys().filter(|path| path.ends_with(".rs"));
    let mut open: Vec<(String, Part, bool)> = rust
        .filter_map(|path| Some((path.clone(), root_of(path, &packages)?, true)))
        .collect();
    while let Some((path, part, is_root)) = open.pop() {
        let before = reached.get(&path).copied();
        if before.is_some_and(|before| before >= part) {
            continue;
        }
        reached.insert(path.clone(), part);
        let whole = parts(&files[&path]).code;
        let part = if whole.contains("#![cfg(test)]") {
            Part::Tests
        } else {
            part
        };
        if part == Part::Tests {
            reached.insert(path.clone(), before.unwrap_or(part));
        }
        for (places, tests) in children(&path, &files[&path], is_root) {
            let part = if tests { Part::Tests } else { part };
            open.extend(
                places
                    .into_iter()
                    .filter(|place| files.contains_key(place))
                    .map(|place| (place, part, false)),
            );
        }
    }
    Tree { reached }
}

#[test]
fn modules_are_followed_and_tests_are_known() {
    let files = super::planted(&[
        ("a/Cargo.toml", ""),
        ("a/src/lib.rs", "mod b;\n#[cfg(test)]\nmod t;\n// mod no;\n"),
        (
            "a/src/b.rs",
            "pub mod c;\n#[path = \"d_tests.rs\"]\n#[cfg(test)]\nmod tests;\n",
        ),
        ("a/src/b/c.rs", ""),
        ("a/src/d_tests.rs", ""),
        ("a/src/t/mod.rs", "mod u;"),
        ("a/src/t/u.rs", ""),
        ("a/src/no.rs", ""),
    ]);
    let reached = tree(&files).reached;
    let program: Vec<&str> = reached
        .iter()
        .filter(|(_, part)| **part == Part::Program)
        .map(|(p, _)| p.as_str())
        .collect();
    assert_eq!(program, ["a/src/b.rs", "a/src/b/c.rs", "a/src/lib.rs"]);
    assert!(reached.len() == 6 && !reached.contains_key("a/src/no.rs"));
}
