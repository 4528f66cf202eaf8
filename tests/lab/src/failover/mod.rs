//! A protected Linux guest with real Redis and real nginx, whose hosts lose their power one after the other.
//!
//! Nested hosts, each a QEMU of its own, have one disk and one folder in common. Their network, and the clients', is a
//! hub in this process. The emulator of the primary is killed at a random moment, so everything that host had not written
//! is gone; its backup goes live, a fresh host becomes the backup of that one, and so on: one guest, and one connection of
//! each client, from the first kill to the last. In the end every acknowledged write is read back, from Redis and from
//! the disk, and the file system must be clean after the guest has switched itself off. What the guest says its time is
//! is compared with this machine's clock all along.

mod chain;
pub mod clock;
mod disk;
pub mod http;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ft_host::Terms;
use crate::nested::Host;
use chain::Chain;

const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const PREFIX: u8 = 24;

/// Kills in one chain at most: every host has a port of the hub, an address and a number of its own.
pub const MAX_KILLS: u8 = 60;

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// A disk with Redis and nginx; the guest has a copy of its own.
    pub disk: PathBuf,
    /// 1 to [`MAX_KILLS`].
    pub kills: u8,
    pub seed: u64,
    pub terms: Terms,
    /// For disk and sockets.
    pub folder: PathBuf,
}

/// What a chain has come to.
#[derive(Debug, Default)]
struct Figures {
    /// One object for each kill that was survived.
    each: Vec<Value>,
    /// Of the whole, once it is over.
    whole: serde_json::Map<String, Value>,
}

/// Performs the kills. `say` hears what happens, line by line. The object says what was seen; `wrong` is 0 or 1, and then
/// `what` says why the chain ended early.
///
/// # Errors
/// If this machine cannot have nested hosts.
pub fn run(settings: &Settings, say: &mut dyn FnMut(&str)) -> Result<Value, String> {
    let host = Host::locate().map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let mut stamped = |line: &str| say(&format!("{:>5} s  {line}", begun.elapsed().as_secs()));
    let mut figures = Figures::default();
    let performed = Chain::start(&host, settings, &mut stamped).and_then(|chain| chain.perform(&mut figures));
    let medians: serde_json::Map<_, _> = [
        "live_after_ms",
        "client_gap_ms",
        "http_gap_ms",
        "join_ms",
        "unprotected_ms",
    ]
    .map(|name| (format!("median_{name}"), json!(median(&figures.each, name))))
    .into_iter()
    .collect();
    let mut object = json!({
        "kills": figures.each.len(),
        "wrong": u32::from(performed.is_err()),
        "what": performed.err(),
        "seed": settings.seed,
        "seconds": begun.elapsed().as_secs(),
        "each": figures.each,
    });
    if let Some(object) = object.as_object_mut() {
        object.extend(medians);
        object.extend(figures.whole);
    }
    Ok(object)
}

/// The lower median of a figure.
fn median(each: &[Value], name: &str) -> Option<u64> {
    let mut values: Vec<u64> = each.iter().filter_map(|figures| figures[name].as_u64()).collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Pseudo-random, the same for the same seed and kill (splitmix64).
fn random(seed: u64, number: u8) -> u64 {
    let mut x = seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_of_the_values() {
        let each = |values: &[u64]| values.iter().map(|value| json!({ "ms": value })).collect::<Vec<_>>();
        assert_eq!(median(&each(&[]), "ms"), None);
        assert_eq!(median(&each(&[9]), "ms"), Some(9));
        assert_eq!(median(&each(&[9, 1]), "ms"), Some(1));
        assert_eq!(median(&each(&[9, 1, 5]), "ms"), Some(5));
        assert_eq!(median(&each(&[9]), "s"), None);
    }
}
