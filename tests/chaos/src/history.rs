//! What clients asked for and were told, and whether one register per key explains it. Pure.
//!
//! No value is written twice to a key, so that a read names the write it saw. For such histories linearizability is
//! decided in O(n log n) by the zones of Gibbons and Korach ("Testing Shared Memories", SIAM J. Computing 26, 1997,
//! section 4): a value's zone lies between the earliest return and the latest call among its write and its reads. Keys are
//! registers of their own, and a history is linearizable if each of its objects' is (Herlihy and Wing, 1990, theorem 1).

use std::collections::{BTreeMap, BTreeSet};

/// What a client asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Holds this value from now on.
    Write(u64),
    /// Which value it holds; `None` is nothing.
    Read(Option<u64>),
}

/// One request and its answer. Times are nanoseconds from 1 on, of one clock for all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub key: u32,
    pub kind: Kind,
    /// Before the request was sent.
    pub call: u64,
    /// After the answer had come; `None`: it never did, so a write may have happened or not, at any time after `call`.
    pub ret: Option<u64>,
}

/// What a history comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub acked_writes: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Requests without an answer.
    pub ambiguous: u64,
    /// Acknowledged writes that a later read did not see, nor anything newer.
    pub lost_writes: u64,
    /// What no register does, of each key the first thing, in words.
    pub wrong: Vec<String>,
}

impl Verdict {
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// Judges a history.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<u32, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        match (op.kind, op.ret) {
            (_, None) => verdict.ambiguous += 1,
            (Kind::Write(_), Some(_)) => verdict.acked_writes += 1,
            (Kind::Read(_), Some(_)) => verdict.reads += 1,
        }
        keys.entry(op.key).or_default().push(op);
    }
    for (key, ops) in keys {
        match values(&ops) {
            Ok(values) => {
                verdict.lost_writes += lost(&ops, &values);
                let zones: Vec<Zone> = values.values().map(Value::zone).collect();
                verdict
                    .wrong
                    .extend(conflict(&zones).map(|what| format!("key {key}: {what}")));
            }
            Err(what) => verdict.wrong.push(format!("key {key}: {what}")),
        }
    }
    verdict
}

/// A value's write and its reads.
#[derive(Clone, Copy, Debug)]
struct Value {
    value: Option<u64>,
    write: (u64, u64),
    first_return: u64,
    last_call: u64,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: Option<u64>,
    /// The register held the value at some time up to `first_return` and at some time from `last_call` on.
    first_return: u64,
    last_call: u64,
}

impl Zone {
    /// It held the value all the time from `first_return` to `last_call`.
    fn is_forward(&self) -> bool {
        self.first_return < self.last_call
    }
}

impl Value {
    fn zone(&self) -> Zone {
        Zone {
            value: self.value,
            first_return: self.first_return,
            last_call: self.last_call,
        }
    }
}

/// The values of a key; a read that no register answers so is an error.
fn values(ops: &[&Op]) -> Result<BTreeMap<Option<u64>, Value>, String> {
    let new = |value, call, ret| Value {
        value,
        write: (call, ret),
        first_return: ret,
        last_call: call,
    };
    let mut values = BTreeMap::from([(None, new(None, 0, 0))]);
    for op in ops {
        if let Kind::Write(value) = op.kind {
            let ret = op.ret.unwrap_or(u64::MAX);
            if values.insert(Some(value), new(Some(value), op.call, ret)).is_some() {
                return Err(format!(
                    "the value {value} was written twice: this is no history to check"
                ));
            }
        }
    }
    for op in ops {
        let (Kind::Read(read), Some(ret)) = (op.kind, op.ret) else {
            continue;
        };
        let seen = read.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
        let value = values
            .get_mut(&read)
            .ok_or_else(|| format!("a read saw {seen}, which nobody wrote"))?;
        if ret < value.write.0 {
            return Err(format!("a read saw {seen} before it was written"));
        }
        value.first_return = value.first_return.min(ret);
        value.last_call = value.last_call.max(op.call);
    }
    Ok(values)
}

/// Two zones that exclude each other.
fn conflict(zones: &[Zone]) -> Option<String> {
    let name = |zone: &Zone| {
        zone.value
            .map_or_else(|| "nothing".to_owned(), |value| value.to_string())
    };
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.iter().partition(|zone| zone.is_forward());
    forward.sort_unstable_by_key(|zone| zone.first_return);
    for pair in forward.windows(2) {
        if pair[1].first_return < pair[0].last_call {
            return Some(format!(
                "it held {} from {} to {} ns, and {} from {} to {} ns",
                name(&pair[0]),
                pair[0].first_return,
                pair[0].last_call,
                name(&pair[1]),
                pair[1].first_return,
                pair[1].last_call
            ));
        }
    }
    backward.iter().find_map(|inner| {
        let around = forward.partition_point(|zone| zone.first_return < inner.last_call);
        let around = forward.get(around.checked_sub(1)?)?;
        (inner.first_return < around.last_call).then(|| {
            format!(
                "it held {} from {} to {} ns, and {} at some time between {} and {} ns",
                name(around),
                around.first_return,
                around.last_call,
                name(inner),
                inner.last_call,
                inner.first_return
            )
        })
    })
}

/// Acknowledged writes that were over before a read was asked for, which saw something that was over before them.
fn lost(ops: &[&Op], values: &BTreeMap<Option<u64>, Value>) -> u64 {
    // By their return; of those up to each, the one with the latest call.
    let mut acked: Vec<(u64, u64, u64)> = ops
        .iter()
        .filter_map(|op| match (op.kind, op.ret) {
            (Kind::Write(value), Some(ret)) => Some((ret, op.call, value)),
            _ => None,
        })
        .collect();
    acked.sort_unstable();
    let mut latest = Vec::with_capacity(acked.len());
    for (_, call, value) in &acked {
        let before = latest.last().copied().unwrap_or((0, 0));
        latest.push(before.max((*call, *value)));
    }
    let mut lost = BTreeSet::new();
    for op in ops {
        let (Kind::Read(read), Some(_)) = (op.kind, op.ret) else {
            continue;
        };
        let over = acked.partition_point(|(ret, ..)| *ret < op.call);
        let (Some((call, value)), Some(seen)) = (over.checked_sub(1).map(|at| latest[at]), values.get(&read)) else {
            continue;
        };
        if seen.write.1 < call {
            lost.insert(value);
        }
    }
    u64::try_from(lost.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
