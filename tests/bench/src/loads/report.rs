//! Figures of the loads beside what they are to be: as a table, and as JSON.

use std::fmt::Write;

use ftvm_roles::event::{Event, Stamped};
use serde_json::{Value, json};

use super::super::stats::{median, number};
use super::{Load, REDIS_DEPTH};

/// What a load's log and rate cost by the reports of its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    pub exits_per_s: f64,
    pub log_bytes_per_s: f64,
    pub frames_per_s: f64,
    pub checkpoints_per_s: f64,
    /// As sent, compressed; 0 if there was none.
    pub bytes_per_checkpoint: f64,
    /// Execution lag, the median of the reports.
    pub lag_ms: f64,
}

impl Cost {
    /// Between the first report and the last; `None` with fewer than two.
    #[must_use]
    pub fn between(reports: &[Stamped]) -> Option<Cost> {
        let numbers = |seen: &Stamped| match seen.event {
            Event::Traffic {
                log_bytes,
                exits,
                frames,
                checkpoints,
                checkpoint_bytes,
                ..
            } => Some((seen.at_ns, [exits, log_bytes, frames, checkpoints, checkpoint_bytes])),
            _ => None,
        };
        let (first, last) = (numbers(reports.first()?)?, numbers(reports.last()?)?);
        let seconds = number(last.0.checked_sub(first.0).filter(|ns| *ns > 0)?) / 1e9;
        let grown = |index: usize| number(last.1[index].saturating_sub(first.1[index]));
        let lags: Vec<f64> = reports
            .iter()
            .filter_map(|seen| match seen.event {
                Event::Traffic { lag_ns, .. } => Some(number(lag_ns) / 1e6),
                _ => None,
            })
            .collect();
        Some(Cost {
            exits_per_s: grown(0) / seconds,
            log_bytes_per_s: grown(1) / seconds,
            frames_per_s: grown(2) / seconds,
            checkpoints_per_s: grown(3) / seconds,
            bytes_per_checkpoint: grown(4) / grown(3).max(1.0),
            lag_ms: median(&lags),
        })
    }

    /// Log in kbit/s.
    #[must_use]
    pub fn log_kbit_per_s(&self) -> f64 {
        self.log_bytes_per_s * 8.0 / 1e3
    }
}

/// One load, measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub load: Load,
    /// Its unit per second, without a backup, without one but beside another guest's load, and with a backup; none of an
    /// idle guest.
    pub solo: Option<f64>,
    pub beside: Option<f64>,
    pub protected: Option<f64>,
    /// With a backup; `None` if it was over before two reports.
    pub cost: Option<Cost>,
}

impl Measured {
    /// FT / solo.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.protected? / self.solo.filter(|solo| *solo > 0.0)?)
    }

    /// FT / beside.
    #[must_use]
    pub fn ratio_beside(&self) -> Option<f64> {
        Some(self.protected? / self.beside.filter(|beside| *beside > 0.0)?)
    }

    /// Whether its aim is met; `None` without the figures.
    #[must_use]
    pub fn meets(&self, aim: &Aim) -> Option<bool> {
        let log = match aim.log_kbit_per_s {
            Some(most) => Some(self.cost?.log_kbit_per_s() < most),
            None => None,
        };
        let ratio = match aim.ratio {
            Some(least) => Some(self.ratio()? >= least),
            None => None,
        };
        Some(log.unwrap_or(true) && ratio.unwrap_or(true))
    }
}

/// What a load is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// FT / solo at least: the paper's figure for the workload most like it (Scales et al., 2010, tables 1 and 2).
    pub ratio: Option<f64>,
    /// The paper's workload.
    pub like: &'static str,
    /// Log below this; ours.
    pub log_kbit_per_s: Option<f64>,
}

impl Load {
    /// What it is to reach.
    #[must_use]
    pub fn aim(self) -> Aim {
        let (ratio, like, log_kbit_per_s) = match self {
            Load::Idle => (None, "idle", Some(20.0)),
            Load::Cpu => (Some(0.98), "SPECjbb2005", Some(1000.0)),
            Load::Fork => (Some(0.95), "kernel compile", None),
            Load::DiskWrite | Load::DiskRead => (Some(0.95), "kernel compile", None),
            Load::NetReceive => (Some(0.64), "receive at 1 Gbit/s", None),
            Load::NetTransmit => (Some(0.91), "transmit at 1 Gbit/s", None),
            Load::Redis => (Some(0.94), "MS-SQL DVD Store", None),
        };
        Aim {
            ratio,
            like,
            log_kbit_per_s,
        }
    }

    /// What its rate counts, per second.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Load::Idle => "",
            Load::Cpu | Load::Fork | Load::DiskWrite | Load::DiskRead => "rounds/s",
            Load::NetReceive | Load::NetTransmit => "bytes/s",
            Load::Redis => "SET/s",
        }
    }
}

/// How long a Redis write waited for its answer, in ms: requests under way by rate (Little's law).
fn latency_ms(rate: Option<f64>) -> Option<f64> {
    rate.filter(|rate| *rate > 0.0)
        .map(|rate| number(REDIS_DEPTH as u64) / rate * 1e3)
}

/// The figures as one object per load.
#[must_use]
pub fn json(measured: &[Measured]) -> Vec<Value> {
    let each = measured.iter().map(|one| {
        let aim = one.load.aim();
        let cost = one.cost;
        let mut object = json!({
            "load": one.load.name(),
            "unit": one.load.unit(),
            "solo_rate": one.solo,
            "ft_rate": one.protected,
            "ratio": one.ratio(),
            "beside_rate": one.beside,
            "ratio_beside": one.ratio_beside(),
            "exits_per_s": cost.map(|cost| cost.exits_per_s),
            "log_bytes_per_s": cost.map(|cost| cost.log_bytes_per_s),
            "frames_per_s": cost.map(|cost| cost.frames_per_s),
            "checkpoints_per_s": cost.map(|cost| cost.checkpoints_per_s),
            "bytes_per_checkpoint": cost.map(|cost| cost.bytes_per_checkpoint),
            "lag_ms": cost.map(|cost| cost.lag_ms),
            "aim_ratio": aim.ratio,
            "aim_log_kbit_per_s": aim.log_kbit_per_s,
            "aim_met": one.meets(&aim),
        });
        if one.load == Load::Redis {
            object["solo_latency_ms"] = latency_ms(one.solo).into();
            object["ft_latency_ms"] = latency_ms(one.protected).into();
        }
        object
    });
    each.collect()
}

/// The figures for people.
#[must_use]
pub fn table(measured: &[Measured]) -> String {
    let mut text = format!(
        "{:<13}{:>9}{:>12}{:>10}{:>8}{:>10}{:>9}{:>12}{:>12}{:>12}{:>9}{:>11}  {}\n",
        "load",
        "exits/s",
        "log bytes/s",
        "frames/s",
        "ckpt/s",
        "bytes/ckpt",
        "lag ms",
        "solo",
        "beside",
        "FT",
        "FT/solo",
        "FT/beside",
        "aim"
    );
    for one in measured {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        let of = |part: fn(&Cost) -> f64| cell(one.cost.as_ref().map(part));
        let aim = one.load.aim();
        let verdict = match one.meets(&aim) {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let hundredths = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(
            text,
            "{:<13}{:>9}{:>12}{:>10}{:>8}{:>10}{:>9}{:>12}{:>12}{:>12}{:>9}{:>11}  {}: {verdict}",
            one.load.name(),
            of(|cost| cost.exits_per_s),
            of(|cost| cost.log_bytes_per_s),
            of(|cost| cost.frames_per_s),
            of(|cost| cost.checkpoints_per_s),
            of(|cost| cost.bytes_per_checkpoint),
            of(|cost| cost.lag_ms),
            cell(one.solo),
            cell(one.beside),
            cell(one.protected),
            hundredths(one.ratio()),
            hundredths(one.ratio_beside()),
            in_words(&aim),
        );
    }
    let redis = measured.iter().find(|one| one.load == Load::Redis);
    if let Some((solo, protected)) = redis.and_then(|one| latency_ms(one.solo).zip(latency_ms(one.protected))) {
        let _ = writeln!(
            text,
            "redis: a write is answered after {solo:.1} ms solo, {protected:.1} ms FT, {REDIS_DEPTH} at a time"
        );
    }
    text
}

fn in_words(aim: &Aim) -> String {
    let ratio = aim.ratio.map(|ratio| format!(">= {ratio:.2} ({})", aim.like));
    let log = aim.log_kbit_per_s.map(|most| format!("log < {most:.0} kbit/s"));
    [log, ratio].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Three digits where they tell something.
fn short(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(at_s: u64, total: u64, lag_ms: u64) -> Stamped {
        Stamped {
            at_ns: at_s * 1_000_000_000,
            event: Event::Traffic {
                log_bytes: 100 * total,
                exits: 10 * total,
                frames: total,
                checkpoints: total,
                checkpoint_bytes: 50 * total,
                lag_ns: lag_ms * 1_000_000,
                idle_permille: 0,
            },
        }
    }

    fn measured(load: Load, solo: f64, protected: f64, log_bytes_per_s: f64) -> Measured {
        let cost = Cost {
            exits_per_s: 1.0,
            log_bytes_per_s,
            frames_per_s: 1.0,
            checkpoints_per_s: 0.0,
            bytes_per_checkpoint: 0.0,
            lag_ms: 0.0,
        };
        Measured {
            load,
            solo: Some(solo),
            beside: None,
            protected: Some(protected),
            cost: Some(cost),
        }
    }

    #[test]
    fn rates_are_taken_between_the_first_and_the_last_report() {
        let reports = [report(10, 1000, 3), report(11, 1002, 9), report(14, 1008, 5)];
        let cost = Cost::between(&reports).unwrap();
        assert_eq!((cost.exits_per_s, cost.log_bytes_per_s), (20.0, 200.0));
        assert_eq!((cost.frames_per_s, cost.checkpoints_per_s), (2.0, 2.0));
        assert_eq!((cost.bytes_per_checkpoint, cost.lag_ms), (50.0, 5.0));
        assert_eq!(Cost::between(&reports[..1]), None);
        assert_eq!(Cost::between(&[]), None);
    }

    #[test]
    fn an_aim_is_met_up_to_its_boundary() {
        let meets = |one: Measured| one.meets(&one.load.aim());
        assert_eq!(meets(measured(Load::Cpu, 100.0, 98.0, 124_999.0)), Some(true));
        assert_eq!(meets(measured(Load::Cpu, 100.0, 97.9, 1.0)), Some(false));
        assert_eq!(meets(measured(Load::Cpu, 100.0, 99.0, 125_000.0)), Some(false));
        assert_eq!(meets(measured(Load::Idle, 0.0, 0.0, 2_499.0)), Some(true));
        assert_eq!(meets(measured(Load::Idle, 0.0, 0.0, 2_500.0)), Some(false));
        assert_eq!(
            meets(measured(Load::Redis, 0.0, 1.0, 1.0)),
            None,
            "no solo rate, no ratio"
        );
    }
}
