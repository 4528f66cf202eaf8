//! Bringing a backup level with a busy guest, beside QEMU's live migration of an equal one.
//!
//! The guest is the built-in `dirty`, or Linux: it writes a given part of its memory each second. ftvm: a backup joins, and
//! the primary's own report says what went over and how long the guest stood still at the end; then the backup is killed, and
//! the next one joins. QEMU: the same image with the same memory is migrated from process to process, over TCP on the same
//! loopback, in turns with QEMU's default limit of the stop and with ftvm's goal. One after the other in one run; what is
//! different between the two is said with the figures ([`differences`]).

mod ftvm;
mod qemu;
mod qmp;
mod report;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stats::number;
use ftvm_lab::linux::{self, Built};
use ftvm_lab::nested::cache;

pub use qemu::Accelerator;
pub use report::{differences, json, table};

/// Lines of the guest's, one a second, before it is cloned.
const WARM_UP: usize = 3;
/// Linux boots, and fills its memory.
const BOOT_LIMIT: Duration = Duration::from_secs(400);
/// A clone or migration that takes longer is given up.
const CLONE_LIMIT: Duration = Duration::from_secs(120);
/// How often files and QEMU are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Which guest.
#[derive(Clone, Debug)]
pub enum Guest {
    /// `dirty`.
    Builtin,
    /// With `guest.sh`.
    Linux(Built),
}

/// What to clone.
#[derive(Clone, Debug)]
pub struct Settings {
    pub guest: Guest,
    /// RAM of the guest in MiB.
    pub memory_mib: u32,
    /// What it writes each second, in MiB.
    pub rate_mib: u32,
    /// Clones of each kind.
    pub clones: u32,
    /// What runs QEMU's guest.
    pub accelerator: Accelerator,
    /// Of ftvm.
    pub detection: Duration,
    pub lease: Duration,
}

impl Settings {
    /// The guest's own command line.
    fn cmdline(&self) -> String {
        match self.guest {
            Guest::Builtin => format!("rate={}", self.rate_mib),
            Guest::Linux(_) => format!("ftvm.dirty={}", self.rate_mib),
        }
    }
}

/// One clone that came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clone {
    /// The guest stood still.
    pub stopped_ms: f64,
    /// QEMU's own figure of that, which ends when the source has sent everything.
    pub downtime_ms: Option<f64>,
    /// From the beginning to the other side's having all.
    pub total_ms: f64,
    pub bytes: u64,
    /// What the guest wrote each second before, in MiB, by its own clock.
    pub rate_before: f64,
    /// And meanwhile, if there was a whole second of it.
    pub rate_during: Option<f64>,
}

/// Clones of one kind: how they went, or what came instead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kind {
    /// For people, and in JSON.
    pub name: String,
    pub key: String,
    pub clones: Vec<Result<Clone, String>>,
}

/// The Linux guest, built in a folder of the cache.
///
/// # Errors
/// A sentence: a package is not to be had.
pub fn linux_guest() -> Result<Built, String> {
    let settings = linux::Settings {
        out: cache().join("guest").join("dirty"),
        run: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clone/guest.sh")),
        disk_mib: None,
        sets: Vec::new(),
        locked: false,
    };
    linux::build(&settings).map_err(|e| e.to_string())
}

/// ftvm's clones. `each` is told of progress.
///
/// # Errors
/// A sentence: the guest does not boot, or there is no KVM.
pub fn with_ftvm(settings: &Settings, each: &mut dyn FnMut(&str)) -> Result<Kind, String> {
    ftvm::measure(settings, each)
}

/// QEMU's, one kind for each limit of the stop. Where the guest does not come up, that is what its only kind says.
#[must_use]
pub fn with_qemu(settings: &Settings, each: &mut dyn FnMut(&str)) -> Vec<Kind> {
    qemu::measure(settings, each).unwrap_or_else(|wrong| {
        vec![Kind {
            name: "QEMU".to_owned(),
            key: "qemu".to_owned(),
            clones: vec![Err(wrong)],
        }]
    })
}

/// Waits until there are [`WARM_UP`] more lines than `before`: the rates of these.
fn warm_up(console: &Path, before: usize) -> Result<Vec<f64>, String> {
    let begun = Instant::now();
    loop {
        let rates = rates_on(console);
        if rates.len() >= before + WARM_UP {
            return Ok(rates[before..].to_vec());
        }
        if begun.elapsed() > BOOT_LIMIT {
            return Err(format!("the guest did not work within {BOOT_LIMIT:?}"));
        }
        std::thread::sleep(LOOK);
    }
}

fn rates_on(console: &Path) -> Vec<f64> {
    rates(&String::from_utf8_lossy(&fs::read(console).unwrap_or_default()))
}

/// MiB per second, of each whole line `dirty KIB MS`.
fn rates(console: &str) -> Vec<f64> {
    let whole = &console[..console.rfind('\n').map_or(0, |end| end + 1)];
    let lines = whole.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix("dirty ")?.split(' ');
        let (kib, ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (ms > 0).then(|| number(kib) / 1024.0 * 1000.0 / number(ms))
    });
    lines.collect()
}

/// The middle one of those after the first, which began before.
fn during(rates: &[f64]) -> Option<f64> {
    let whole = rates.get(1..).filter(|whole| !whole.is_empty());
    whole.map(super::stats::median)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_lines_give_the_rate() {
        let said = "boot\r\ndirty 20480 1000\r\ndirty 20480 2000\r\ndirty 20 0\r\ndirty 20 4";
        assert_eq!(rates(said), [20.0, 10.0]);
        assert!(rates("dirty").is_empty());
    }

    #[test]
    fn a_second_that_began_before_does_not_count() {
        assert_eq!(during(&[]), None);
        assert_eq!(during(&[1.0]), None);
        assert_eq!(during(&[1.0, 7.0]), Some(7.0));
    }
}
