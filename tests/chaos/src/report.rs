//! What a chaos run came to, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::history::Verdict;

/// One step.
#[derive(Clone, Debug)]
pub struct Row {
    pub number: u32,
    pub kind: &'static str,
    pub what: String,
    /// What came otherwise than planned.
    pub notes: Vec<String>,
    /// From the first fault to a side's going live, if one did.
    pub live_after: Option<Duration>,
    /// Hosts of the guest before and after.
    pub from: usize,
    pub to: usize,
    /// The longest time without an answer to any client.
    pub gap: Duration,
    /// From the first fault to protection, and from the last mending; 0 if protection was never lost, or was back by then.
    pub protected_again: Duration,
    pub protected_after_mending: Duration,
}

impl Row {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let moved = match self.live_after {
            Some(after) => format!("host {} to {}, live after {} ms", self.from, self.to, after.as_millis()),
            None => format!("stays on host {}", self.to),
        };
        let protected = match self.protected_again {
            Duration::ZERO => "protected all the time".to_owned(),
            time => format!("protected again after {} ms", time.as_millis()),
        };
        let mut words = format!("{moved}; longest silence {} ms; {protected}", self.gap.as_millis());
        for note in &self.notes {
            words.push_str("; ");
            words.push_str(note);
        }
        words
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub rows: Vec<Row>,
    pub seconds: u64,
    pub verdict: Verdict,
    /// Signs of two live sides.
    pub two_live: usize,
    /// Late frames that were repeated, as they may be.
    pub duplicates: u64,
    /// Times that the guest went to another host.
    pub moves: usize,
    /// Processes that their fence killed, and that gave their place up.
    pub fenced: u64,
    pub gave_up: u64,
    /// Connections that broke.
    pub reconnects: u64,
    pub unread: u32,
    /// Kinds that this machine does not have, with the reason.
    pub left_out: Vec<String>,
    /// Empty if all is well.
    pub wrong: Vec<String>,
}

impl Report {
    #[must_use]
    pub fn json(&self) -> Value {
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        for row in &self.rows {
            *kinds.entry(row.kind).or_default() += 1;
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let each = self.rows.iter().map(|row| {
            json!({
                "fault": row.number,
                "kind": row.kind,
                "what": row.what,
                "notes": row.notes,
                "live_after_ms": row.live_after.map(ms),
                "host": row.to,
                "gap_ms": ms(row.gap),
                "protected_again_ms": ms(row.protected_again),
                "protected_after_mending_ms": ms(row.protected_after_mending),
            })
        });
        let lost: Vec<Duration> = self
            .rows
            .iter()
            .map(|row| row.protected_again)
            .filter(|time| !time.is_zero())
            .collect();
        let live: Vec<Duration> = self.rows.iter().filter_map(|row| row.live_after).collect();
        let mending = self.rows.iter().map(|row| row.protected_after_mending).collect();
        json!({
            "seed": self.seed,
            "faults": self.rows.len(),
            "kinds": kinds,
            "left_out": self.left_out,
            "seconds": self.seconds,
            "failovers": self.moves,
            "acked_writes": self.verdict.acked_writes,
            "reads": self.verdict.reads,
            "ambiguous": self.verdict.ambiguous,
            "reconnects": self.reconnects,
            "lost_writes": self.verdict.lost_writes,
            "linearizable": self.verdict.is_linearizable(),
            "unread": self.unread,
            "two_live": self.two_live,
            "late_duplicates": self.duplicates,
            "fenced": self.fenced,
            "gave_up": self.gave_up,
            "longest_gap_ms": self.rows.iter().map(|row| ms(row.gap)).max(),
            "live_after_ms": spread(live),
            "protection_lost": lost.len(),
            "protected_again_ms": spread(lost),
            "protected_after_mending_ms": spread(mending),
            "each": each.collect::<Vec<_>>(),
            "wrong": self.wrong,
        })
    }

    /// A table and what it says.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:>4}  {:<12} {:>9} {:>9} {:>10} {:>9}\n",
            "", "kind", "live ms", "gap ms", "protected", "mended"
        );
        for row in &self.rows {
            let live = row
                .live_after
                .map_or_else(|| "-".to_owned(), |time| time.as_millis().to_string());
            let line = format!(
                "{:>4}  {:<12} {live:>9} {:>9} {:>10} {:>9}  {}",
                row.number,
                row.kind,
                row.gap.as_millis(),
                row.protected_again.as_millis(),
                row.protected_after_mending.as_millis(),
                row.what
            );
            // To a string, which takes everything.
            let _ = writeln!(text, "{line}");
        }
        let object = self.json();
        let _ = writeln!(
            text,
            "{} faults in {} s, {} failovers; {} writes acknowledged, {} lost; {} reads, {} ambiguous; linearizable: {}; two \
             live sides: {}; protected again after {} ms (median), {} ms (most); longest silence {} ms; seed {}",
            self.rows.len(),
            self.seconds,
            self.moves,
            self.verdict.acked_writes,
            self.verdict.lost_writes,
            self.verdict.reads,
            self.verdict.ambiguous,
            self.verdict.is_linearizable(),
            self.two_live,
            object["protected_again_ms"]["median"],
            object["protected_again_ms"]["max"],
            object["longest_gap_ms"],
            self.seed
        );
        text
    }
}

/// Lower median and maximum in ms; nulls of nothing.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let ms = |at: Option<usize>| at.and_then(|at| times.get(at)).map(|time| json!(time.as_millis()));
    let last = times.len().checked_sub(1);
    json!({ "median": ms(last.map(|last| last / 2)), "max": ms(last) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_there_is() {
        assert_eq!(spread(Vec::new()), json!({ "median": null, "max": null }));
        let times = [30, 10, 20, 40].map(Duration::from_millis);
        assert_eq!(spread(times.to_vec()), json!({ "median": 20, "max": 40 }));
    }

    #[test]
    fn what_went_wrong_is_in_the_object() {
        let report = Report {
            wrong: vec!["x".to_owned()],
            ..Report::default()
        };
        assert_eq!(report.json()["wrong"], json!(["x"]));
        assert_eq!(report.json()["linearizable"], true);
        assert!(report.table().contains("0 faults"));
    }
}
