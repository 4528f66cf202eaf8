//! Which package may know which (ARCHITECTURE, "Map"): every arrow points down, and some things are out of reach from below.
//!
//! Cargo says what there is; the layers are said here. A package without a layer is a finding too.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Packages by layer, lowest first. One knows only what stands in a lower layer; in the last, where programs and tests are, they
/// may know each other.
const LAYERS: [&[&str]; 7] = [
    &["ftvm-schema", "guest-abi", "guest-images"],
    &["fault-detector", "ftvm-hypervisor", "logging-channel", "shared-disk"],
    &["ftvm-devices", "ftvm-kvm"],
    &["ftvm-machine"],
    &["ftvm-roles"],
    &["ftvm-host"],
    &[
        "ftvm-bench",
        "ftvm-chaos",
        "ftvm-demo",
        "ftvm-lab",
        "ftvm-sim",
        "ftvm-suite",
        "vmm",
    ],
];

/// What a package reaches by no way, and why.
const OUT_OF_REACH: [(&str, &[&str], &str); 4] = [
    (
        "ftvm-devices",
        &["tokio", "kvm-bindings", "kvm-ioctls"],
        "devices are pure state",
    ),
    (
        "ftvm-machine",
        &["tokio", "kvm-bindings", "kvm-ioctls"],
        "a machine is a function of its inputs",
    ),
    (
        "ftvm-roles",
        &["kvm-bindings", "kvm-ioctls", "clap"],
        "decisions are the same over any CPU",
    ),
    (
        "ftvm-sim",
        &["kvm-bindings", "kvm-ioctls", "clap"],
        "a simulation runs anywhere",
    ),
];

/// Packages, each with those that its programs and libraries are built with; what only tests or builds need is left out.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn layer(package: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&package))
}

fn wrong_arrows(graph: &Graph) -> Vec<String> {
    let last = LAYERS.len() - 1;
    let mut wrong = Vec::new();
    for (package, known) in graph {
        let Some(own) = layer(package) else {
            wrong.push(format!("{package} stands in no layer: give it one"));
            continue;
        };
        let upward = known.iter().filter(|other| {
            let other = layer(other);
            other.is_some_and(|other| other > own || other == own && own != last)
        });
        wrong.extend(upward.map(|other| format!("{package} knows {other}, which stands no lower")));
    }
    let named = LAYERS.iter().copied().flatten();
    let gone = named.filter(|package| !graph.contains_key(**package));
    wrong.extend(gone.map(|package| format!("{package} has a layer and is no package any more")));
    wrong
}

/// The way from `package` to something out of its reach.
fn forbidden_way(graph: &Graph, package: &str, forbidden: &[&str]) -> Option<String> {
    let mut ways = vec![vec![package]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let end = way[way.len() - 1];
        if forbidden.contains(&end) {
            return Some(way.join(" -> "));
        }
        if !seen.insert(end) {
            continue;
        }
        for next in graph.get(end).into_iter().flatten() {
            ways.push([way.as_slice(), &[next]].concat());
        }
    }
    None
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {complaint}");
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The workspace's own packages, with what their manifests say.
fn manifests() -> Graph {
    let packages = metadata(&["--no-deps"]);
    let known = |package: &Value| {
        let normal = list(&package["dependencies"]).filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| text(&dependency["name"])).collect()
    };
    list(&packages["packages"])
        .map(|package| (text(&package["name"]), known(package)))
        .collect()
}

/// All packages, with what the lock file resolves them to on this kind of host.
fn resolved() -> Graph {
    let all = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let names: BTreeMap<String, String> = list(&all["packages"])
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut graph = Graph::new();
    for node in list(&all["resolve"]["nodes"]) {
        let normal =
            list(&node["deps"]).filter(|dependency| list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null()));
        let known = normal.map(|dependency| names[&text(&dependency["pkg"])].clone());
        // Two versions of a package count as one: what either reaches is reached.
        graph
            .entry(names[&text(&node["id"])].clone())
            .or_default()
            .extend(known);
    }
    graph
}

#[test]
fn every_arrow_between_packages_points_down() {
    let wrong = wrong_arrows(&manifests());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_reach_no_runtime_no_hypervisor_and_no_command_line() {
    let graph = resolved();
    for (package, forbidden, why) in OUT_OF_REACH {
        assert!(graph.contains_key(package), "{package} is a package");
        let way = forbidden_way(&graph, package, forbidden);
        assert_eq!(way, None, "{why}");
    }
}

fn graph(arrows: &[(&str, &[&str])]) -> Graph {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut graph: Graph = LAYERS
        .iter()
        .copied()
        .flatten()
        .map(|package| ((*package).to_owned(), BTreeSet::new()))
        .collect();
    graph.extend(arrows.iter().map(|(from, to)| ((*from).to_owned(), owned(to))));
    graph
}

#[test]
fn an_arrow_up_or_aside_and_a_package_without_layer_are_named() {
    let fine = graph(&[("ftvm-kvm", &["ftvm-hypervisor", "libc"]), ("vmm", &["ftvm-demo"])]);
    assert_eq!(wrong_arrows(&fine), [""; 0]);
    let wrong = graph(&[
        ("ftvm-devices", &["ftvm-machine", "ftvm-kvm", "ftvm-schema"]),
        ("new-one", &[]),
    ]);
    let expected = [
        "ftvm-devices knows ftvm-kvm, which stands no lower",
        "ftvm-devices knows ftvm-machine, which stands no lower",
        "new-one stands in no layer: give it one",
    ];
    assert_eq!(wrong_arrows(&wrong), expected);
}

#[test]
fn the_way_to_what_is_out_of_reach_is_named() {
    let graph = graph(&[("ftvm-roles", &["a", "b"]), ("a", &["b"]), ("b", &["a", "clap"])]);
    let way = forbidden_way(&graph, "ftvm-roles", &["clap"]);
    assert_eq!(way.as_deref(), Some("ftvm-roles -> b -> clap"));
    assert_eq!(forbidden_way(&graph, "ftvm-roles", &["tokio"]), None);
}
