//! The documents say what is there: their links lead somewhere, the book has all its chapters, and the files and functions
//! that they name exist.
//!
//! Text is searched, not compiled: "`transmit` in `vmm/devices/src/virtio/net/mod.rs`" holds when that file defines
//! something of that name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most bytes of the README: what a newcomer reads in a few minutes. The rest is the book's.
const README_BYTES: usize = 6000;

/// Documents beside the book's chapters.
const PAGES: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "guest-images/linux/README.md",
];

/// What a path within the repository begins with, so that one that has moved is found, too.
const FOLDERS: [&str; 9] = [
    ".ci",
    ".config",
    "docs",
    "fault-detector",
    "guest-images",
    "logging-channel",
    "shared-disk",
    "tests",
    "vmm",
];

/// The text of a file, nothing for a folder, `None` where there is neither. Paths are relative to the repository.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.expect("the repository has a Cargo.lock").to_owned()
}

fn read(path: &str) -> Option<String> {
    let path = root().join(path);
    if path.is_dir() {
        return Some(String::new());
    }
    fs::read(path)
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The book's files, relative to the repository.
fn chapters() -> Vec<String> {
    let mut folders = vec![root().join("docs/src")];
    let mut chapters = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("docs/src is a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let path = path.strip_prefix(root()).expect("within the repository");
                chapters.push(path.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    chapters.sort();
    chapters
}

fn documents() -> Vec<(String, String)> {
    let names = PAGES.iter().map(|page| (*page).to_owned()).chain(chapters());
    names
        .map(|name| {
            let text = read(&name).unwrap_or_else(|| panic!("{name} is missing"));
            (name, text)
        })
        .collect()
}

/// A document in turns of prose and code spans, without code blocks: prose first, so that odd ones are code.
fn spans(document: &str) -> Vec<String> {
    let mut prose = String::new();
    let (mut in_block, mut blank) = (false, true);
    for line in document.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !(in_block || blank && line.starts_with("    ")) {
            prose.push_str(line);
            prose.push('\n');
            blank = line.trim().is_empty();
        }
    }
    prose.split('`').map(str::to_owned).collect()
}

/// The targets of a document's links.
fn links(document: &str) -> Vec<String> {
    let prose: Vec<String> = spans(document).into_iter().step_by(2).collect();
    // A link's text may hold code, its target may not.
    let prose = prose.join("`");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// What a document's headings are called in links, as GitHub and mdBook have it.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut in_block = false;
    for line in document.lines() {
        in_block ^= line.starts_with("```");
        let text = line.trim_start_matches('#');
        if in_block || text.len() == line.len() || !text.starts_with(' ') {
            continue;
        }
        let kept = text.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone())
            .chain(again)
            .find(|a| !anchors.contains(a));
        anchors.insert(free.expect("numbers do not end"));
    }
    anchors
}

/// `target`, seen from the file `from`.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Links that lead nowhere.
fn broken_links(name: &str, document: &str, read: Read<'_>) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(document) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = if path.is_empty() {
            name.to_owned()
        } else {
            resolve(name, path)
        };
        let text = if path.is_empty() {
            Some(document.to_owned())
        } else {
            read(&target)
        };
        match text {
            None => broken.push(format!("{name}: ({link}): there is no {target}")),
            Some(text) if !anchor.is_empty() && !anchors(&text).contains(anchor) => {
                broken.push(format!("{name}: ({link}): {target} has no heading #{anchor}"));
            }
            Some(_) => {}
        }
    }
    broken
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The path and the name in it (`path::name`) that a code span means, if it means a place in the repository.
fn place(code: &str) -> Option<(&str, Option<&str>)> {
    let (path, name) = match code.split_once("::") {
        Some((path, name)) if path.contains('/') => (path, Some(name)),
        Some(_) => return None,
        None => (code, None),
    };
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let folder = path.split_once('/').map(|(folder, _)| folder);
    let within = folder.is_some_and(|folder| FOLDERS.contains(&folder));
    let beside = folder.is_none() && [".toml", ".md"].iter().any(|end| path.ends_with(end));
    (plain && (within || beside)).then_some((path, name))
}

/// Whether Rust text defines `name`: a function, a type, a constant or a variant.
fn defines(text: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"];
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    kinds.iter().any(|kind| {
        let definition = format!("{kind} {name}");
        text.match_indices(&definition)
            .any(|(at, found)| ends(&text[at + found.len()..]))
    })
}

/// Places named by a document that are not there: paths, and names "`in`" them.
fn wrong_places(name: &str, document: &str, read: Read<'_>) -> Vec<String> {
    let spans = spans(document);
    let mut wrong = Vec::new();
    for at in (1..spans.len()).step_by(2) {
        let Some((path, inner)) = place(&spans[at]) else {
            continue;
        };
        let Some(text) = read(path) else {
            wrong.push(format!("{name}: there is no `{path}`"));
            continue;
        };
        let mut named: Vec<&str> = inner.into_iter().collect();
        // "`one` and `two` in `path`", or "`one` (`path`)".
        let mut before = at;
        while before >= 2 {
            let between = spans[before - 1].trim();
            let joined = if before == at {
                ["in", "("].contains(&between)
            } else {
                ["and", ",", "or"].contains(&between)
            };
            if !joined || !is_word(&spans[before - 2]) {
                break;
            }
            named.push(&spans[before - 2]);
            before -= 2;
        }
        let missing = named.iter().filter(|_| !text.is_empty());
        let missing = missing.filter(|named| !defines(&text, named));
        wrong.extend(missing.map(|named| format!("{name}: `{path}` defines no `{named}`")));
    }
    wrong
}

fn nothing_is_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let wrong: Vec<String> = documents()
        .iter()
        .flat_map(|(name, text)| broken_links(name, text, &read))
        .collect();
    nothing_is_wrong(&wrong);
}

#[test]
fn every_place_that_a_document_names_is_there() {
    let wrong: Vec<String> = documents()
        .iter()
        .flat_map(|(name, text)| wrong_places(name, text, &read))
        .collect();
    nothing_is_wrong(&wrong);
}

#[test]
fn the_summary_has_each_chapter_once() {
    let summary = read("docs/src/SUMMARY.md").expect("the book has a summary");
    let mut listed: Vec<String> = links(&summary)
        .iter()
        .map(|link| resolve("docs/src/SUMMARY.md", link))
        .collect();
    listed.sort();
    let chapters: Vec<String> = chapters()
        .into_iter()
        .filter(|chapter| chapter != "docs/src/SUMMARY.md")
        .collect();
    assert_eq!(listed, chapters);
}

#[test]
fn the_readme_is_short() {
    let bytes = read("README.md").expect("there is a README").len();
    assert!(
        bytes <= README_BYTES,
        "README.md has {bytes} bytes, at most {README_BYTES} fit: move something into docs/src"
    );
}

/// A repository of a few files, for faults planted in it.
fn planted(documents: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let files: BTreeMap<String, String> = documents
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    move |path| files.get(path).cloned()
}

#[test]
fn a_link_a_heading_and_a_place_that_are_wrong_are_each_named() {
    let code = "impl X {\n    pub(super) fn advance_all(&self) {}\n    fn put(&self) {}\n}\npub struct Plan;\n";
    let text = "# A title, *with* `code`\n\n## Twice\n## Twice\n";
    let read = planted(&[("docs/src/a.md", text), ("vmm/src/x.rs", code)]);
    let good = "[a](a.md), [t](a.md#a-title-with-code), [2](a.md#twice-1), [own](#here), [w](https://x.y/#z)\n\n# Here\n\
                `put` and `Plan` in `vmm/src/x.rs`; `Plan` (`vmm/src/x.rs`); `vmm/src/x.rs::put`; `not/ours.rs`\n\n\
                \x20   [no](link.md) in a block, `vmm/src/none.rs`\n";
    assert_eq!(broken_links("docs/src/b.md", good, &read), [""; 0]);
    assert_eq!(wrong_places("docs/src/b.md", good, &read), [""; 0]);

    for (document, said) in [
        ("[a](b/a.md)", "there is no docs/src/b/a.md"),
        ("[`a`](../a.md)", "there is no docs/a.md"),
        ("[a](a.md#thrice)", "docs/src/a.md has no heading #thrice"),
        ("[a](a.md#twice-2)", "docs/src/a.md has no heading #twice-2"),
        ("[a](#there)", "docs/src/b.md"),
    ] {
        let broken = broken_links("docs/src/b.md", document, &read);
        assert!(broken.len() == 1 && broken[0].contains(said), "{document}: {broken:?}");
    }
    for (document, said) in [
        ("`vmm/src/y.rs`", "there is no `vmm/src/y.rs`"),
        ("`nowhere.toml`", "there is no `nowhere.toml`"),
        ("`get` in `vmm/src/x.rs`", "defines no `get`"),
        ("`get` and `put` in `vmm/src/x.rs`", "defines no `get`"),
        ("`advance` in\n`vmm/src/x.rs`", "defines no `advance`"),
        ("`Pla` (`vmm/src/x.rs`)", "defines no `Pla`"),
        ("`vmm/src/x.rs::got`", "defines no `got`"),
    ] {
        let wrong = wrong_places("docs/src/b.md", document, &read);
        assert!(wrong.len() == 1 && wrong[0].contains(said), "{document}: {wrong:?}");
    }
}
