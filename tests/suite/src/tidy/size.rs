//! How long files and functions of the product are, and whether errors are types.

use super::text::{closing, definitions, line, parts, without_tests, words};
use super::tree::{Part, tree};
use super::{Exceptions, Files, OLD, is_product, judge};

/// Most lines of a file, with its tests.
const FILE: usize = 450;

/// Most lines of a function, from `fn` to its last brace.
const FUNCTION: usize = 60;

const LONG_FILES: Exceptions = &[
    ("vmm/roles/src/backup/mod.rs", OLD),
    ("vmm/roles/src/live/mod.rs", OLD),
    ("vmm/roles/src/primary/mod.rs", OLD),
    ("vmm/roles/src/replay.rs", OLD),
];

const LONG_FUNCTIONS: Exceptions = &[];

const TEXT_ERRORS: Exceptions = &[
    ("vmm/roles/src/copies.rs", OLD),
    ("vmm/roles/src/following.rs", OLD),
    ("vmm/roles/src/operation.rs", OLD),
    ("vmm/roles/src/primary/mod.rs", OLD),
    ("vmm/roles/src/primary/operating.rs", OLD),
    ("vmm/roles/src/replay.rs", OLD),
    ("vmm/src/outside/copies.rs", OLD),
];

/// Path and code of what is in the program.
fn product(files: &Files) -> Vec<(String, String)> {
    let reached = tree(files).reached;
    let product = reached
        .into_iter()
        .filter(|(path, part)| is_product(path) && *part == Part::Program);
    product
        .map(|(path, _)| {
            let code = without_tests(&parts(&files[&path]).code);
            (path, code)
        })
        .collect()
}

fn long_files(files: &Files) -> Vec<(String, String)> {
    let lengths = product(files)
        .into_iter()
        .map(|(path, code)| (path, code.lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > FILE);
    long.map(|(path, lines)| {
        (
            path,
            format!("{lines} lines, at most {FILE}: split it by what it is about"),
        )
    })
    .collect()
}

fn long_functions(files: &Files) -> Vec<(String, String)> {
    let mut long = Vec::new();
    for (path, code) in product(files) {
        for definition in definitions(&code).iter().filter(|definition| definition.kind == "fn") {
            let from = definition.at;
            let Some(open) = code[from..].find(['{', ';']).map(|at| from + at) else {
                continue;
            };
            if code[open..].starts_with(';') {
                continue;
            }
            let lines = 1 + line(&code, closing(&code, open).min(code.len() - 1)) - line(&code, from);
            if lines > FUNCTION {
                let what = format!("{lines} lines from line {} on, at most {FUNCTION}", line(&code, from));
                long.push((format!("{path}::{}", definition.name), what));
            }
        }
    }
    long
}

/// The arguments between the angle brackets that open at `open`.
fn arguments(code: &str, open: usize) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, open + 1, Vec::new());
    let bytes = code.as_bytes();
    for at in open..code.len() {
        match bytes[at] {
            b'<' | b'(' | b'[' => depth += 1,
            b'>' if bytes[at - 1] == b'-' => {}
            b'>' | b')' | b']' => depth -= 1,
            b',' if depth == 1 => {
                found.push(code[begin..at].trim());
                begin = at + 1;
            }
            b';' | b'{' => break,
            _ => {}
        }
        if depth == 0 {
            found.push(code[begin..at].trim());
            break;
        }
    }
    found
}

fn text_errors(files: &Files) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (path, code) in product(files) {
        let results = words(&code).filter(|(_, word)| *word == "Result");
        let texts = results.filter(|(at, _)| {
            let open = at + "Result".len();
            code[open..].starts_with('<') && arguments(&code, open).get(1) == Some(&"String")
        });
        let lines: Vec<String> = texts.map(|(at, _)| line(&code, at).to_string()).collect();
        if !lines.is_empty() {
            found.push((
                path,
                format!("Result<_, String> in line {}: an error is a type", lines.join(", ")),
            ));
        }
    }
    found
}

#[test]
fn files_are_short() {
    super::nothing_is_wrong(&judge(long_files(&super::repository()), LONG_FILES));
}

#[test]
fn functions_are_short() {
    super::nothing_is_wrong(&judge(long_functions(&super::repository()), LONG_FUNCTIONS));
}

#[test]
fn errors_are_types() {
    super::nothing_is_wrong(&judge(text_errors(&super::repository()), TEXT_ERRORS));
}

#[test]
fn what_is_too_long_or_an_error_of_text_is_named() {
    let body = "    x();\n".repeat(FUNCTION - 2);
    let fits = format!("fn fits() {{\n{body}}}\n");
    let long = format!(
        "fn long(\n) {{\n{body}}}\nfn bad() -> Result<Vec<(u8, u8)>, String> {{}}\nfn good() -> Result<String, E> {{}}\n"
    );
    let lines = "\n".repeat(FILE + 1);
    let files = super::planted(&[
        ("vmm/Cargo.toml", ""),
        ("vmm/src/lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod t;\n"),
        ("vmm/src/a.rs", &[fits, long].concat()),
        ("vmm/src/b.rs", &lines),
        ("vmm/src/t.rs", &lines),
    ]);
    let names = |found: Vec<(String, String)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(long_functions(&files)), ["vmm/src/a.rs::long"]);
    assert_eq!(names(long_files(&files)), ["vmm/src/b.rs"]);
    let text = text_errors(&files);
    assert!(
        text.len() == 1 && text[0].1.contains(&format!("line {}:", 2 * FUNCTION + 2)),
        "{text:?}"
    );
}
