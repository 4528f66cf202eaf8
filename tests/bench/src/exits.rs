//! What an exit costs more when it is recorded.

use std::path::Path;

use super::Figure;
use super::life::{Log, live};
use super::stats::{median, number};

/// Kinds of exits: a write leaves no entry in the log, the answer to a read of the clock does.
const KINDS: [&str; 2] = ["write", "clock"];

/// Lives `runs` times `count` exits of each kind, without a log, with one, and with check bytes, in turns.
///
/// # Errors
/// As [`live`].
pub fn measure(folder: &Path, count: u64, runs: usize) -> Result<Vec<Figure>, String> {
    let path = folder.join("exits.ftlog");
    let mut costs = vec![Vec::new(); KINDS.len() * Log::ALL.len()];
    for _ in 0..runs {
        for (at, costs) in costs.iter_mut().enumerate() {
            let (kind, log) = (KINDS[at / Log::ALL.len()], Log::ALL[at % Log::ALL.len()]);
            let life = live("exits", &format!("count={count} kind={kind}"), None, log, &path)?;
            costs.push(life.took.as_secs_f64() * 1e9 / number(life.exits));
        }
    }
    let medians: Vec<f64> = costs.iter().map(|costs| median(costs)).collect();
    Ok(medians.chunks(Log::ALL.len()).zip(KINDS).flat_map(figures).collect())
}

fn figures((ns, kind): (&[f64], &str)) -> Vec<Figure> {
    let [none, marks, exit] = ns else { return Vec::new() };
    let what = |log: &str| format!("{kind} exit, {log}");
    let added = |log: &str| format!("{kind} exit, added by {log}");
    vec![
        Figure::new(format!("{kind}_exits_per_second"), 1e9 / none, "1/s", what("no log")),
        Figure::new(format!("{kind}_ns"), *none, "ns", what("no log")),
        Figure::new(format!("{kind}_recorded_ns"), *marks, "ns", what("record")),
        Figure::new(format!("{kind}_verified_ns"), *exit, "ns", what("record --verify=exit")),
        Figure::new(format!("{kind}_recorded_added_ns"), marks - none, "ns", added("record")),
        Figure::new(
            format!("{kind}_verified_added_ns"),
            exit - none,
            "ns",
            added("record --verify=exit"),
        ),
        Figure::new(
            format!("{kind}_recorded_ratio"),
            marks / none,
            "",
            what("record / no log"),
        ),
        Figure::new(
            format!("{kind}_verified_ratio"),
            exit / none,
            "",
            what("record --verify=exit / no log"),
        ),
    ]
}
