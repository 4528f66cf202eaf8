//! What prose says that lints enforce, and whether they do.

use super::text::{parts, words};
use super::tree::{Part, packages, root_of};
use super::{Exceptions, Files, judge};

/// Crates where the host's clock and randomness are denied (`clippy.toml`): what a guest sees comes from there.
const CLOCKLESS: [&str; 4] = ["fault-detector/", "vmm/devices/", "vmm/machine/", "vmm/roles/"];

const WITH_UNSAFE_CODE: Exceptions = &[
    (
        "shared-disk/src/lib.rs",
        "denied; `syscall` has two system calls without a safe wrapper",
    ),
    ("vmm/host/src/lib.rs", "the lease guard's timer and the TAP's ioctl"),
    (
        "vmm/hypervisor/src/lib.rs",
        "denied; the scripted CPU stores past the dirty bitmap, as a vCPU does",
    ),
    ("vmm/hypervisor/kvm/src/lib.rs", "KVM"),
];

const UNSAFE_FILES: Exceptions = &[
    ("shared-disk/src/syscall/sg.rs", "ioctl(SG_IO)"),
    ("shared-disk/src/syscall/statx.rs", "statx(STATX_DIOALIGN)"),
    ("vmm/host/src/lease_guard.rs", "a timer that moves between threads"),
    ("vmm/host/src/net/tap.rs", "ioctl(TUNSETIFF)"),
    (
        "vmm/hypervisor/src/scripted/execute.rs",
        "stores past the dirty bitmap, as a vCPU does",
    ),
    ("vmm/hypervisor/kvm/src/kick.rs", "the signal that interrupts a vCPU"),
    ("vmm/hypervisor/kvm/src/run_page.rs", "the page that the kernel shares"),
    ("vmm/hypervisor/kvm/src/selftest/programs.rs", "programs in assembly"),
    ("vmm/hypervisor/kvm/src/state.rs", "KVM"),
    ("vmm/hypervisor/kvm/src/vcpu/mod.rs", "KVM"),
    ("vmm/hypervisor/kvm/src/vm.rs", "KVM"),
];

/// A crate's root without comments, as what is claimed there is not done.
fn attributes(files: &Files, package: &str) -> Option<String> {
    let root = ["src/lib.rs", "src/main.rs"]
        .iter()
        .find_map(|root| files.get(&format!("{package}{root}")))?;
    Some(parts(root).code)
}

fn denies_clocks(files: &Files, package: &str) -> bool {
    attributes(files, package).is_some_and(|code| code.contains("deny(clippy::disallowed_methods"))
}

fn forbids_unsafe(files: &Files, package: &str) -> bool {
    attributes(files, package).is_some_and(|code| code.contains("#![forbid(unsafe_code)]"))
}

/// The last part of a package's folder, by which prose names it.
fn short(package: &str) -> &str {
    package.trim_end_matches('/').rsplit('/').next().unwrap_or(package)
}

/// Libraries and programs without the attribute that the house has agreed on.
fn missing(files: &Files) -> Vec<(String, String)> {
    let packages = packages(files);
    let hosted = files
        .iter()
        .filter(|(path, _)| !path.starts_with("guest-images/guests/"));
    let roots = hosted.filter(|(path, _)| {
        let is_fuzz_target = path.contains("/fuzz_targets/");
        root_of(path, &packages) == Some(Part::Program) && !path.ends_with("build.rs") && !is_fuzz_target
    });
    roots
        .filter(|(_, text)| !parts(text).code.contains("#![forbid(unsafe_code)]"))
        .map(|(path, _)| (path.clone(), "#![forbid(unsafe_code)] is missing".to_owned()))
        .collect()
}

/// Files with unsafe code.
fn unsafe_files(files: &Files) -> Vec<(String, String)> {
    let rust = files.iter().filter(|(path, _)| path.ends_with(".rs"));
    let hosted = rust.filter(|(path, _)| !path.starts_with("guest-images/guests/"));
    let with = hosted.filter(|(_, text)| words(&parts(text).code).any(|(_, word)| word == "unsafe"));
    with.map(|(path, _)| (path.clone(), "unsafe code has a few places of its own".to_owned()))
        .collect()
}

fn clocks(files: &Files) -> Vec<(String, String)> {
    let without = CLOCKLESS.iter().filter(|package| !denies_clocks(files, package));
    without
        .map(|package| {
            (
                (*package).to_owned(),
                "clippy::disallowed_methods is not denied".to_owned(),
            )
        })
        .collect()
}

/// The sentences of a document or of comments, with the line breaks in them taken out.
fn sentences(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.trim_start().trim_start_matches(['/', '!', '#']).trim());
    let flowing = lines.fold(String::new(), |mut flowing, line| {
        // A row of a table, an item and a paragraph stand for themselves.
        flowing.push(if line.is_empty() || line.starts_with(['|', '-', '*']) {
            '\n'
        } else {
            ' '
        });
        flowing.push_str(line);
        flowing
    });
    flowing
        .split('\n')
        .flat_map(|paragraph| paragraph.split(". "))
        .flat_map(|sentence| sentence.split("; "))
        .map(str::to_owned)
        .collect()
}

/// Claims that a lint denies something in crates that do not have it.
fn untrue(files: &Files) -> Vec<(String, String)> {
    let packages = packages(files);
    let mut untrue = Vec::new();
    for (path, text) in files {
        let prose = match path.rsplit('.').next() {
            Some("md" | "toml") => text.clone(),
            Some("rs") => parts(text).comments,
            _ => continue,
        };
        for sentence in sentences(&prose) {
            let has = |list: &[&str]| words(&sentence).any(|(_, word)| list.contains(&word));
            let denies = has(&["deny", "denies", "denied", "forbid", "forbids", "forbidden"]);
            let (lints, clocks) = (has(&["clippy", "lint", "lints"]), has(&["clock", "clocks", "methods"]));
            let unsafe_code = has(&["unsafe", "unsafe_code"]);
            if !denies || !(lints || clocks || unsafe_code) {
                continue;
            }
            // Only crates that are named as code are meant; a word alone may be any machine or host.
            let named = packages.iter().filter(|package| {
                sentence.contains(&format!("`{}`", short(package)))
                    || sentence.contains(&format!("`{}`", package.trim_end_matches('/')))
            });
            for package in named {
                if unsafe_code && !forbids_unsafe(files, package) {
                    untrue.push((
                        path.clone(),
                        format!("{package} does not forbid unsafe code: \"{}\"", sentence.trim()),
                    ));
                } else if !unsafe_code && !denies_clocks(files, package) {
                    untrue.push((
                        path.clone(),
                        format!("{package} denies no methods: \"{}\"", sentence.trim()),
                    ));
                }
            }
        }
    }
    untrue
}

/// Packages that ARCHITECTURE's table says never read a clock, but that are not in the list above.
fn unlisted(files: &Files) -> Vec<(String, String)> {
    let table = files.get("ARCHITECTURE.md").map_or("", String::as_str);
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("read a clock"));
    let folders = rows
        .filter_map(|row| row.split('`').nth(1))
        .map(|folder| format!("{folder}/"));
    folders
        .filter(|folder| !CLOCKLESS.contains(&folder.as_str()))
        .map(|folder| {
            (
                folder,
                "ARCHITECTURE.md says that it never reads a clock; CLOCKLESS has it not".to_owned(),
            )
        })
        .collect()
}

#[test]
fn unsafe_code_is_forbidden_where_it_can_be() {
    let files = super::repository();
    super::nothing_is_wrong(&judge(missing(&files), WITH_UNSAFE_CODE));
    super::nothing_is_wrong(&judge(unsafe_files(&files), UNSAFE_FILES));
}

#[test]
fn clocks_are_denied_where_they_are_said_to_be() {
    let files = super::repository();
    super::nothing_is_wrong(&judge([clocks(&files), unlisted(&files)].concat(), &[]));
}

#[test]
fn what_prose_says_of_lints_is_so() {
    super::nothing_is_wrong(&judge(untrue(&super::repository()), &[]));
}

#[test]
fn a_missing_attribute_and_an_untrue_claim_are_named() {
    let deny = "#![deny(clippy::disallowed_methods)]\n#![forbid(unsafe_code)]\n";
    let claim = "Clocks are denied by clippy\nin `machine` and `roles`. `roles` forbids unsafe code. The host may.\n";
    let table =
        "| `vmm/roles` | `r` | it decides | read a clock |\n| `vmm/kvm` | `k` | it runs | read a clock, wait |\n";
    let mut planted = vec![
        ("docs/a.md", claim),
        ("ARCHITECTURE.md", table),
        ("vmm/kvm/Cargo.toml", ""),
        (
            "vmm/kvm/src/lib.rs",
            "// #![forbid(unsafe_code)]\nfn f() { unsafe { g() } } // unsafe\n",
        ),
    ];
    for (manifest, root) in [
        ("fault-detector/Cargo.toml", "fault-detector/src/lib.rs"),
        ("vmm/devices/Cargo.toml", "vmm/devices/src/lib.rs"),
        ("vmm/machine/Cargo.toml", "vmm/machine/src/lib.rs"),
        ("vmm/roles/Cargo.toml", "vmm/roles/src/lib.rs"),
    ] {
        planted.extend([(manifest, ""), (root, deny)]);
    }
    let good = super::planted(&planted);
    let subjects = |found: Vec<(String, String)>| found.into_iter().map(|(subject, _)| subject).collect::<Vec<_>>();
    assert_eq!(subjects(missing(&good)), ["vmm/kvm/src/lib.rs"]);
    assert_eq!(subjects(unsafe_files(&good)), ["vmm/kvm/src/lib.rs"]);
    assert_eq!(subjects(unlisted(&good)), ["vmm/kvm/"]);
    assert!(clocks(&good).is_empty() && untrue(&good).is_empty());

    let mut bad = good;
    bad.insert("vmm/roles/src/lib.rs".to_owned(), String::new());
    assert_eq!(subjects(clocks(&bad)), ["vmm/roles/"]);
    assert_eq!(subjects(untrue(&bad)), ["docs/a.md", "docs/a.md"]);
}
