//! What a timer tick, and an exit of a busy guest, cost in log: in a file, and on the channel of a pair.

use std::path::Path;
use std::time::Duration;

use ftvm_roles::event::Event;

use super::Figure;
use super::life::{Log, live};
use super::stats::number;
use ftvm_lab::pair::{Site, wait};
use ftvm_lab::scaled;

/// Two lengths of `pulse`: their difference has neither header nor boot.
const TICKS: (u32, u32) = (50, 250);
/// Of `pulse`'s timer.
const TICK: Duration = Duration::from_millis(10);
/// Exits of `mix`, with little computing in between.
const MIX: &str = "rounds=100000000 every=1000000 pages=4 stretch=50";
const MIX_EXITS: u64 = 20_000;
/// Reports of a pair's traffic, about a second each: between the first and the last it is measured.
const REPORTS: usize = 4;

/// Records in this process, then runs a pair.
///
/// # Errors
/// As [`live`].
pub fn measure(folder: &Path) -> Result<Vec<Figure>, String> {
    let path = folder.join("log.ftlog");
    let mut figures = Vec::new();
    for (log, name, about) in [
        (Log::Marks, "file", "record"),
        (Log::Exit, "verified", "record --verify=exit"),
    ] {
        let pulse = |ticks: u32| live("pulse", &format!("ticks={ticks}"), None, log, &path);
        let (short, long) = (pulse(TICKS.0)?, pulse(TICKS.1)?);
        let per_tick = number(long.log_bytes - short.log_bytes) / f64::from(TICKS.1 - TICKS.0);
        let mix = live("mix", MIX, Some(MIX_EXITS), log, &path)?;
        let per_exit = number(mix.log_bytes) / number(mix.exits);
        figures.push(Figure::new(
            format!("{name}_bytes_per_tick"),
            per_tick,
            "bytes",
            format!("pulse, a tick and its line, {about}"),
        ));
        figures.push(Figure::new(
            format!("{name}_bytes_per_mix_exit"),
            per_exit,
            "bytes",
            format!("mix, an exit, {about}"),
        ));
    }
    figures.push(Figure::new(
        "channel_bytes_per_tick",
        channel(),
        "bytes",
        "pulse, a tick and its line, on a pair's channel",
    ));
    Ok(figures)
}

/// Bytes of log frames per tick of a pair.
fn channel() -> f64 {
    let site = Site::new();
    let primary = site.primary("primary", &["--kernel", "builtin:pulse", "--cmdline", "ticks=0"], &[]);
    let _backup = site.backup("backup", site.address, &[]);
    primary.wait_protected();
    let reports = wait("reports of traffic", scaled(Duration::from_secs(30)), || {
        let events = primary.events();
        let reports = events.iter().filter_map(|seen| match seen.event {
            Event::Traffic { log_bytes, .. } => Some((seen.at_ns, log_bytes)),
            _ => None,
        });
        let reports: Vec<_> = reports.collect();
        (reports.len() >= REPORTS).then_some(reports)
    });
    let (first, last) = (reports[0], reports[reports.len() - 1]);
    let ticks = number(last.0 - first.0) / TICK.as_secs_f64() / 1e9;
    number(last.1 - first.1) / ticks
}
