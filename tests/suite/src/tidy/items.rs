//! Names: public items that nobody uses, and types that share one.

use std::collections::BTreeMap;

use super::text::{definitions, item_end, line, parts, without_tests, words};
use super::tree::{Part, tree};
use super::{Exceptions, Files, OLD, is_product, judge};

const UNUSED: Exceptions = &[];

const SHARED_NAMES: Exceptions = &[
    ("Action", OLD),
    ("Ended", OLD),
    ("Failure", OLD),
    ("Horizon", OLD),
    ("Stage", OLD),
];

/// Code of the program and of what tests it from outside, without what crates have for their own tests.
fn code(files: &Files) -> BTreeMap<String, String> {
    let reached = tree(files).reached;
    let outside = |path: &str| path.starts_with("tests/");
    let seen = reached
        .into_iter()
        .filter(|(path, part)| outside(path) || *part == Part::Program);
    let texts = seen.map(|(path, _)| {
        let code = parts(&files[&path]).code;
        let code = if outside(&path) { code } else { without_tests(&code) };
        (path, code)
    });
    texts.collect()
}

/// Blanks what names an item without using it: `use`, and whom an `impl` is for.
fn uses_only(code: &str) -> String {
    let mut left = code.to_owned();
    let all: Vec<(usize, String)> = words(code).map(|(at, word)| (at, word.to_owned())).collect();
    for (at, word) in all {
        let end = match word.as_str() {
            "use" => item_end(code, at),
            // `impl Trait` in a signature, which stands in a line, names what is used; so does a trait that is implemented.
            "impl" if at == 0 || code[..at].ends_with('\n') => {
                code[at..].find('{').map_or(code.len(), |brace| at + brace)
            }
            _ => continue,
        };
        let begin = code[at..end].rfind(" for ").map_or(at, |trait_end| at + trait_end);
        left.replace_range(begin..end, &" ".repeat(end - begin));
    }
    left
}

fn unused(files: &Files) -> Vec<(String, String)> {
    let code = code(files);
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    let used: Vec<String> = code.values().map(|code| uses_only(code)).collect();
    for text in &used {
        for (_, word) in words(text) {
            *counts.entry(word).or_default() += 1;
        }
        for definition in definitions(text) {
            *counts.entry(definition.name).or_default() -= 1;
        }
    }
    let mut unused = Vec::new();
    for (path, text) in code.iter().filter(|(path, _)| is_product(path)) {
        for definition in definitions(text).iter().filter(|definition| definition.public) {
            let name = definition.name;
            if counts.get(name).is_none_or(|count| *count <= 0) && name != "main" {
                let line = line(text, definition.at);
                unused.push((
                    name.to_owned(),
                    format!("{path}:{line}: public, and only tests of its own crate use it"),
                ));
            }
        }
    }
    unused
}

fn shared_names(files: &Files) -> Vec<(String, String)> {
    let code = code(files);
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (path, text) in code.iter().filter(|(path, _)| is_product(path)) {
        for definition in definitions(text) {
            let is_type = ["struct", "enum", "trait", "type"].contains(&definition.kind);
            if is_type && definition.outermost && text[..definition.at].ends_with(' ') {
                let place = format!("{path}:{}", line(text, definition.at));
                places.entry(definition.name).or_default().push(place);
            }
        }
    }
    let shared = places.into_iter().filter(|(_, places)| places.len() > 1);
    shared
        .map(|(name, places)| {
            (
                name.to_owned(),
                format!("one name for several types: {}", places.join(", ")),
            )
        })
        .collect()
}

#[test]
fn every_public_item_has_a_user() {
    super::nothing_is_wrong(&judge(unused(&super::repository()), UNUSED));
}

/// Of the product: packages of tests are not read together, and many have a `Settings`.
#[test]
fn no_two_types_share_a_name() {
    super::nothing_is_wrong(&judge(shared_names(&super::repository()), SHARED_NAMES));
}

#[test]
fn an_item_that_only_its_own_tests_use_is_named() {
    let files = super::planted(&[
        ("vmm/Cargo.toml", ""),
        (
            "vmm/src/lib.rs",
            "pub use a::Never;\npub struct Never;\nimpl Never {}\npub fn used() {}\npub fn unused() {}\nfn b() { used() }\n\
             pub fn outside() {}\n#[cfg(test)]\nmod tests { fn t() { unused() } }\n// unused()\n",
        ),
        ("tests/x/Cargo.toml", ""),
        ("tests/x/src/lib.rs", "fn f() { vmm::outside() }"),
    ]);
    let found: Vec<String> = unused(&files).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, ["Never", "unused"]);
}

#[test]
fn types_that_share_a_name_are_named() {
    let files = super::planted(&[
        ("vmm/Cargo.toml", ""),
        (
            "vmm/src/lib.rs",
            "pub mod a;\npub(crate) struct Life;\nstruct Own;\nimpl X for Y {\n    type Err = u8;\n}\n",
        ),
        (
            "vmm/src/a.rs",
            "pub enum Life {}\nimpl X for Z {\n    type Err = u8;\n}\n#[cfg(test)]\nmod t { struct Own; }\n",
        ),
    ]);
    let found: Vec<String> = shared_names(&files).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, ["Life"]);
}
