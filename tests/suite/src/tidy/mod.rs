//! The rules of the house that neither the compiler nor clippy knows: text is searched, nothing is compiled.
//!
//! Each check is a function of texts, with a planted fault that it must name; the repository is one such text. Exceptions
//! stand in lists with a reason each, and one that is no longer needed is a finding, too.

mod claims;
mod files;
mod items;
mod size;
mod text;
mod tree;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of what is delivered; the others are tests, and guests with a workspace of their own.
const PRODUCT: [&str; 4] = ["fault-detector/", "logging-channel/", "shared-disk/", "vmm/"];

/// Folders that no commit holds.
const UNTRACKED: [&str; 4] = [".git", "target", "corpus", "artifacts"];

/// Texts by path; paths are relative to the repository.
type Files = BTreeMap<String, String>;

/// An exception: a path or name, and why.
type Exceptions = &'static [(&'static str, &'static str)];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.expect("the repository has a Cargo.lock").to_owned()
}

/// Every text of the repository.
fn repository() -> Files {
    let root = root();
    let mut folders = vec![root.clone()];
    let mut files = Files::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder that was found") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            if path.is_dir() {
                if !UNTRACKED.contains(&name) {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(&root).expect("within the repository");
                files.insert(path.to_str().expect("UTF-8").to_owned(), text);
            }
        }
    }
    files
}

fn is_product(path: &str) -> bool {
    PRODUCT.iter().any(|folder| path.starts_with(folder))
}

/// What is found, less the exceptions; and the exceptions that nothing needed. Findings are subject and sentence.
fn judge(found: Vec<(String, String)>, exceptions: Exceptions) -> Vec<String> {
    let excepted = |subject: &str| exceptions.iter().any(|(allowed, _)| *allowed == subject);
    let needless = exceptions
        .iter()
        .filter(|(allowed, _)| found.iter().all(|(subject, _)| subject != allowed))
        .map(|(allowed, _)| format!("{allowed} needs no exception any more: take it out of the list"));
    let needless: Vec<String> = needless.collect();
    let left = found.into_iter().filter(|(subject, _)| !excepted(subject));
    left.map(|(subject, what)| format!("{subject}: {what}"))
        .chain(needless)
        .collect()
}

fn nothing_is_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// A repository of a few files, for faults planted in it.
#[cfg(test)]
fn planted(files: &[(&str, &str)]) -> Files {
    let owned = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    owned.collect()
}

#[test]
fn an_exception_is_used_up_by_what_it_excepts() {
    const LIST: Exceptions = &[("a", "because"), ("b", "because")];
    let found = vec![
        ("a".to_owned(), "wrong".to_owned()),
        ("c".to_owned(), "wrong".to_owned()),
    ];
    let judged = judge(found, LIST);
    assert_eq!(judged.len(), 2, "{judged:?}");
    assert!(judged[0] == "c: wrong" && judged[1].starts_with("b needs no exception"));
}
