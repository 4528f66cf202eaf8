//! The figures, for people and for `--json`: medians of each kind, and what is not equal.

use serde_json::{Value, json};

use super::super::stats::{median, number};
use super::{Accelerator, Clone, Kind};

const EQUAL: &str = "Equal: image, memory, command line, TCP over a loopback. QEMU's machine has a firmware, which keeps 128 KiB of the \
     memory.";
const KVM: &str =
    "One host, with KVM both; QEMU's interrupt controller and timer are in the kernel, ftvm's are all in its process.";
const EMULATED: &str = "Both guests compute on a processor that QEMU emulates: QEMU's by itself, on this machine; ftvm's on the KVM of a nested \
     host. What sends pages is QEMU's own code on this machine's processor, and ftvm's on the emulated one, which is ten times \
     slower and more: QEMU's figures are better than they would be on one host.";
const DIFFERENCES: [&str; 5] = [
    "ftvm's stop: the state is taken, then the guest goes on at the primary, while its output waits until the backup has the \
     state. QEMU's stop: from STOP at the source to RESUME at the target, so that the last pages' way and their loading are in \
     it; \"own\" is QEMU's figure, which ends when the source has sent everything.",
    "ftvm's total ends when the primary counts as protected, QEMU's with its own figure `total-time`. Afterwards one guest is \
     protected by the other, and follows it; QEMU's source is dead.",
    "QEMU waits with its stop until the rest fits into the limit at the speed it sees; ftvm has no limit to be set: it stops \
     when a round left 2 MiB or less, and slows a guest whose rounds do not shrink.",
    "ftvm compresses pages, QEMU by default does not; nothing compresses what the built-in guest writes, so that the bytes can \
     be compared.",
    "The limit of QEMU's bandwidth is lifted; everything else of it is as by default.",
];

/// What differs between the two guests and the two ways to clone them, for every reader of the figures.
#[must_use]
pub fn differences(accelerator: Accelerator) -> Vec<&'static str> {
    let processor = match accelerator {
        Accelerator::Kvm => KVM,
        Accelerator::Tcg => EMULATED,
    };
    [EQUAL, processor].into_iter().chain(DIFFERENCES).collect()
}

/// The median of one figure over the clones that came to their end.
fn of(kind: &Kind, figure: impl Fn(&Clone) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = kind.clones.iter().flatten().filter_map(figure).collect();
    (!values.is_empty()).then(|| median(&values))
}

fn most(kind: &Kind, figure: impl Fn(&Clone) -> f64) -> Option<f64> {
    kind.clones.iter().flatten().map(figure).reduce(f64::max)
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// A table for people.
#[must_use]
pub fn table(kinds: &[Kind], accelerator: Accelerator) -> String {
    let heads = [
        "stop ms",
        "most",
        "own ms",
        "total ms",
        "MiB",
        "MiB/s before",
        "meanwhile",
    ];
    let mut text = format!("{:<20} {:>6}", "medians", "clones");
    text.extend(heads.map(|head| format!(" {head:>12}")));
    for kind in kinds {
        let cells = [
            of(kind, |clone| Some(clone.stopped_ms)),
            most(kind, |clone| clone.stopped_ms),
            of(kind, |clone| clone.downtime_ms),
            of(kind, |clone| Some(clone.total_ms)),
            of(kind, |clone| Some(number(clone.bytes) / f64::from(1 << 20))),
            of(kind, |clone| Some(clone.rate_before)),
            of(kind, |clone| clone.rate_during),
        ];
        text += &format!("\n{:<20} {:>6}", kind.name, kind.clones.iter().flatten().count());
        text.extend(cells.map(|value| format!(" {:>12}", cell(value))));
        for failure in kind.clones.iter().filter_map(|clone| clone.as_ref().err()) {
            text += &format!("\n    gave up: {failure}");
        }
    }
    text.push('\n');
    for difference in differences(accelerator) {
        text += &format!("- {difference}\n");
    }
    text
}

/// For `--json`: of each kind the medians, the longest stop, and every clone.
#[must_use]
pub fn json(kinds: &[Kind], accelerator: Accelerator) -> Value {
    let each = kinds.iter().map(|kind| {
        let clones: Vec<Value> = kind.clones.iter().map(one).collect();
        let figures = json!({
            "stopped_ms": of(kind, |clone| Some(clone.stopped_ms)),
            "stopped_ms_max": most(kind, |clone| clone.stopped_ms),
            "own_downtime_ms": of(kind, |clone| clone.downtime_ms),
            "total_ms": of(kind, |clone| Some(clone.total_ms)),
            "bytes": of(kind, |clone| Some(number(clone.bytes))),
            "mib_per_s_before": of(kind, |clone| Some(clone.rate_before)),
            "mib_per_s_meanwhile": of(kind, |clone| clone.rate_during),
            "clones": clones,
        });
        (kind.key.clone(), figures)
    });
    let mut object: serde_json::Map<String, Value> = each.collect();
    object.insert("differences".to_owned(), json!(differences(accelerator)));
    object.into()
}

fn one(clone: &Result<Clone, String>) -> Value {
    match clone {
        Ok(clone) => json!({
            "stopped_ms": clone.stopped_ms,
            "own_downtime_ms": clone.downtime_ms,
            "total_ms": clone.total_ms,
            "bytes": clone.bytes,
            "mib_per_s_before": clone.rate_before,
            "mib_per_s_meanwhile": clone.rate_during,
        }),
        Err(failure) => json!({ "failed": failure }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clone(stopped_ms: f64) -> Clone {
        Clone {
            stopped_ms,
            downtime_ms: None,
            total_ms: 1000.0,
            bytes: 3 << 20,
            rate_before: 20.0,
            rate_during: None,
        }
    }

    #[test]
    fn medians_are_of_those_that_came_to_their_end() {
        let clones = vec![
            Ok(clone(10.0)),
            Err("it broke".to_owned()),
            Ok(clone(40.0)),
            Ok(clone(20.0)),
        ];
        let kind = Kind {
            name: "ftvm".to_owned(),
            key: "ftvm".to_owned(),
            clones,
        };
        let with = Accelerator::Tcg;
        let (text, object) = (table(std::slice::from_ref(&kind), with), json(&[kind], with));
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["ftvm", "3", "20.0", "40.0", "-", "1000.0", "3.0", "20.0", "-"]);
        assert!(text.contains("gave up: it broke"), "{text}");
        assert_eq!(object["ftvm"]["stopped_ms"], 20.0);
        assert_eq!(object["ftvm"]["stopped_ms_max"], 40.0);
        assert_eq!(object["ftvm"]["own_downtime_ms"], Value::Null);
        assert_eq!(object["ftvm"]["clones"][1]["failed"], "it broke");
    }
}
