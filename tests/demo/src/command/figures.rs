//! What a failover comes to, from the pair's own events and the hub's clock. Pure.
//!
//! PROTOCOL 23: detection is the time from the kill to the verdict; lease, test-and-set and drain begin with the verdict
//! and run side by side; the black-out is the time from the kill to the new life's first frame. The client's longest
//! gap, which has its own retransmissions in it, stands beside it.

use serde::Serialize;

use crate::client::Tally;
use ftvm_roles::event::{Event, Stamped};

/// What is known about one failover. Times are CLOCK_BOOTTIME in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Read right before the kill.
    pub killed_ns: u64,
    /// When the hub had the first frame of the guest's own from the backup.
    pub first_frame_ns: Option<u64>,
    /// From here to the kill nothing but the client's writes went on.
    pub steady_ns: u64,
    pub primary: &'a [Stamped],
    pub backup: &'a [Stamped],
}

/// One kill in figures; what did not happen is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunFigures {
    /// Writes that the server confirmed.
    pub acked_writes: u64,
    /// Of their keys, those that read back as something else, or not at all.
    pub lost_writes: u64,
    /// Of their keys, those that could not be read back at all because the connection ended.
    pub unverified_writes: u64,
    /// The one connection lived to the end.
    pub connection_survived: bool,
    /// Kill to the new life's first frame.
    pub blackout_ms: Option<f64>,
    /// The client's longest time between two acknowledgements.
    pub client_gap_ms: f64,
    /// Kill to the backup's verdict.
    pub detection_ms: Option<f64>,
    /// Verdict to the end of the primary's lease.
    pub lease_ms: Option<f64>,
    /// Verdict to the won test-and-set.
    pub tas_ms: Option<f64>,
    /// Verdict to the end of the replay of what had been received.
    pub drain_ms: Option<f64>,
    /// Bytes of log frames per second before the kill.
    pub log_bytes_per_s: Option<f64>,
    /// VM exits per second before the kill.
    pub exits_per_s: Option<f64>,
}

impl RunFigures {
    /// Computes them.
    #[must_use]
    pub fn of(facts: &Facts<'_>, tally: &Tally, connection_survived: bool) -> RunFigures {
        let since_kill = |at_ns: u64| ms(at_ns.saturating_sub(facts.killed_ns));
        let find = |pick: fn(&Stamped) -> Option<u64>| facts.backup.iter().find_map(pick);
        let (log_bytes_per_s, exits_per_s) = rates(facts).unzip();
        RunFigures {
            acked_writes: tally.acked_writes,
            lost_writes: tally.lost_writes,
            unverified_writes: tally.unverified_keys,
            connection_survived,
            blackout_ms: facts.first_frame_ns.map(since_kill),
            client_gap_ms: ms(tally.longest_gap.len_ns()),
            detection_ms: find(|seen| matches!(seen.event, Event::Suspected { .. }).then_some(seen.at_ns))
                .map(since_kill),
            lease_ms: find(|seen| match seen.event {
                Event::LeaseOver { waited_ns } => Some(waited_ns),
                _ => None,
            })
            .map(ms),
            tas_ms: find(|seen| match seen.event {
                Event::ClaimWon { took_ns, .. } => Some(took_ns),
                _ => None,
            })
            .map(ms),
            drain_ms: find(|seen| match seen.event {
                Event::Drained { took_ns } => Some(took_ns),
                _ => None,
            })
            .map(ms),
            log_bytes_per_s,
            exits_per_s,
        }
    }

    /// Whether the failover kept its promise: one connection, every acknowledged write readable, and a new life at all.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.connection_survived
            && self.acked_writes > 0
            && self.lost_writes == 0
            && self.unverified_writes == 0
            && self.blackout_ms.is_some()
    }
}

/// Bytes of log and exits per second between the first and the last report of the steady time.
fn rates(facts: &Facts<'_>) -> Option<(f64, f64)> {
    let mut reports = facts.primary.iter().filter_map(|seen| match seen.event {
        Event::Traffic { log_bytes, exits, .. } if (facts.steady_ns..=facts.killed_ns).contains(&seen.at_ns) => {
            Some((seen.at_ns, log_bytes, exits))
        }
        _ => None,
    });
    let first = reports.next()?;
    let last = reports.next_back()?;
    let seconds = ms(last.0.checked_sub(first.0).filter(|ns| *ns > 0)?) / 1e3;
    let rate = |from: u64, to: u64| round(count(to.saturating_sub(from)) / seconds);
    Some((rate(first.1, last.1), rate(first.2, last.2)))
}

#[allow(clippy::cast_precision_loss, reason = "counts of a demo are far below 2^53")]
fn count(number: u64) -> f64 {
    number as f64
}

/// Nanoseconds as milliseconds, to the microsecond.
fn ms(ns: u64) -> f64 {
    round(count(ns) / 1e6)
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// All runs of one demo.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    pub seed: u64,
    pub runs: Vec<RunFigures>,
    /// Pairs that came apart before their kill and were replaced.
    pub parted: u32,
    /// Why it stopped early.
    pub error: Option<String>,
}

/// What `--json` prints: sums of writes, whether all connections survived, the maximum of every time, and the median of
/// the rates; the medians of the times and every single run stand beside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Kills survived or not, that is, completed runs.
    pub kills: usize,
    #[serde(flatten)]
    pub all: RunFigures,
    pub medians: Medians,
    pub runs: Vec<RunFigures>,
    /// Pairs that came apart before their kill (this machine was too busy for the detection time) and were replaced.
    pub parted: u32,
    /// `--seed` for the same kill points.
    pub seed: u64,
    pub detection_setting_ms: u64,
    pub lease_setting_ms: u64,
    /// What went wrong, if anything did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Medians over all runs, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Medians {
    pub blackout_ms: Option<f64>,
    pub client_gap_ms: Option<f64>,
    pub detection_ms: Option<f64>,
    pub lease_ms: Option<f64>,
    pub tas_ms: Option<f64>,
    pub drain_ms: Option<f64>,
}

impl Summary {
    /// Sums it up. `detection` and `lease` are the settings, in milliseconds.
    #[must_use]
    pub fn of(tried: &Tried, detection: u64, lease: u64) -> Summary {
        let runs = &tried.runs;
        let all = |pick: fn(&RunFigures) -> Option<f64>| runs.iter().filter_map(pick).collect::<Vec<_>>();
        let most = |pick| all(pick).into_iter().max_by(f64::total_cmp);
        let middle = |pick| median(all(pick));
        Summary {
            kills: runs.len(),
            all: RunFigures {
                acked_writes: runs.iter().map(|run| run.acked_writes).sum(),
                lost_writes: runs.iter().map(|run| run.lost_writes).sum(),
                unverified_writes: runs.iter().map(|run| run.unverified_writes).sum(),
                connection_survived: !runs.is_empty() && runs.iter().all(|run| run.connection_survived),
                blackout_ms: most(|run| run.blackout_ms),
                client_gap_ms: most(|run| Some(run.client_gap_ms)).unwrap_or(0.0),
                detection_ms: most(|run| run.detection_ms),
                lease_ms: most(|run| run.lease_ms),
                tas_ms: most(|run| run.tas_ms),
                drain_ms: most(|run| run.drain_ms),
                log_bytes_per_s: middle(|run| run.log_bytes_per_s),
                exits_per_s: middle(|run| run.exits_per_s),
            },
            medians: Medians {
                blackout_ms: middle(|run| run.blackout_ms),
                client_gap_ms: middle(|run| Some(run.client_gap_ms)),
                detection_ms: middle(|run| run.detection_ms),
                lease_ms: middle(|run| run.lease_ms),
                tas_ms: middle(|run| run.tas_ms),
                drain_ms: middle(|run| run.drain_ms),
            },
            runs: runs.clone(),
            parted: tried.parted,
            seed: tried.seed,
            detection_setting_ms: detection,
            lease_setting_ms: lease,
            error: tried.error.clone(),
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let high = *values.get(values.len() / 2)?;
    let low = values[(values.len() - 1) / 2];
    Some(round(f64::midpoint(low, high)))
}

#[cfg(test)]
#[path = "figures_tests.rs"]
pub(super) mod tests;
