//! ftvm's side: a primary, and backups that join it one after the other.

use std::time::{Duration, Instant};

use ftvm_roles::event::{Event, Protection, Stamped};

use super::super::stats::{median, number};
use super::{CLONE_LIMIT, Clone, Guest, Kind, LOOK, Settings, during, rates_on, text, warm_up};
use ftvm_lab::pair::{Side, Site};

/// Beside the detection time: a dead backup is noticed, and the test-and-set answers.
const DISMISSAL: Duration = Duration::from_secs(60);

pub(super) fn measure(settings: &Settings, each: &mut dyn FnMut(&str)) -> Result<Kind, String> {
    each("ftvm: the guest boots");
    let site = Site::new();
    let primary = site.start("primary", &as_words(&arguments(settings, &site)));
    let console = site.path("console");
    let mut clones = Vec::new();
    for number in 1..=settings.clones {
        let before = rates_on(&console).len();
        let warm = warm_up(&console, before).map_err(|wrong| format!("ftvm: {wrong}; {}", primary.stderr()))?;
        let (seen, lines) = (primary.events().len(), rates_on(&console).len());
        let backup = site.backup(&format!("backup{number}"), site.address, &[]);
        let clone = wait_for_clone(&primary, &backup, seen).map(|clone| Clone {
            rate_before: median(&warm),
            rate_during: during(&rates_on(&console)[lines..]),
            ..clone
        });
        each(&format!("ftvm: {clone:?}"));
        let go_on = clone.is_ok();
        clones.push(clone);
        let seen = primary.events().len();
        drop(backup);
        if !go_on {
            break;
        }
        wait_alone(&primary, seen, settings.detection + DISMISSAL)?;
    }
    Ok(Kind {
        name: "ftvm".to_owned(),
        key: "ftvm".to_owned(),
        clones,
    })
}

fn arguments(settings: &Settings, site: &Site) -> Vec<String> {
    let mut words = vec!["--primary".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--listen", site.address.to_string());
    match &settings.guest {
        Guest::Builtin => option("--kernel", "builtin:dirty".to_owned()),
        Guest::Linux(built) => {
            option("--kernel", text(&built.kernel));
            option("--initrd", text(&built.initrd));
        }
    }
    option("--memory", format!("{}M", settings.memory_mib));
    option("--cmdline", settings.cmdline());
    option("--detection", settings.detection.as_millis().to_string());
    option("--lease", settings.lease.as_millis().to_string());
    words
}

fn as_words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn wait_for_clone(primary: &Side, backup: &Side, seen: usize) -> Result<Clone, String> {
    let begun = Instant::now();
    while begun.elapsed() < CLONE_LIMIT {
        if let Some(clone) = cloned(&primary.events()[seen..]) {
            return Ok(clone);
        }
        std::thread::sleep(LOOK);
    }
    let (mine, its) = (primary.stderr(), backup.stderr());
    Err(format!("not protected within {CLONE_LIMIT:?}: {mine} {its}"))
}

/// The clone, once the guest is protected. The total ends with the protection, as a migration's does with the guest's going
/// on at the other side; the bytes are those of the rounds and of the state record.
fn cloned(events: &[Stamped]) -> Option<Clone> {
    let (mut starting, mut rounds, mut record) = (None, None, 0);
    for seen in events {
        match seen.event {
            Event::State { protection, .. } => match protection {
                Protection::Starting => starting = Some(seen.at_ns),
                Protection::Protected => {
                    let (stopped_ns, bytes) = rounds?;
                    return Some(Clone {
                        stopped_ms: number(stopped_ns) / 1e6,
                        downtime_ms: None,
                        total_ms: number(seen.at_ns.saturating_sub(starting?)) / 1e6,
                        bytes: bytes + record,
                        rate_before: 0.0,
                        rate_during: None,
                    });
                }
                Protection::NotProtected | Protection::Deciding => (starting, rounds, record) = (None, None, 0),
            },
            Event::Cloned { bytes, stopped_ns, .. } => rounds = Some((stopped_ns, bytes)),
            Event::StateRecord { bytes } => record = bytes,
            _ => {}
        }
    }
    None
}

/// Waits until the primary lives on without the backup.
fn wait_alone(primary: &Side, seen: usize, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let alone = |event: &Stamped| {
        matches!(
            event.event,
            Event::State {
                protection: Protection::NotProtected,
                ..
            }
        )
    };
    while !primary.events()[seen..].iter().any(alone) {
        if begun.elapsed() > limit {
            return Err(format!(
                "ftvm: the primary does not go on without its backup: {}",
                primary.stderr()
            ));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(at_ns: u64, protection: Protection) -> Stamped {
        let event = Event::State {
            protection,
            why: String::new(),
        };
        Stamped { at_ns, event }
    }

    #[test]
    fn a_clone_is_over_with_the_protection() {
        let rounds = Event::Cloned {
            rounds: 3,
            pages: 5,
            bytes: 100,
            disk_bytes: 0,
            total_ns: 7,
            slowed_permille: 0,
            stopped_ns: 2_000_000,
        };
        let mut events = vec![
            state(1, Protection::Starting),
            state(2, Protection::NotProtected),
            state(1_000_000, Protection::Starting),
            Stamped {
                at_ns: 5_000_000,
                event: rounds,
            },
            Stamped {
                at_ns: 5_000_000,
                event: Event::StateRecord { bytes: 11 },
            },
        ];
        assert_eq!(cloned(&events), None);
        events.push(state(9_000_000, Protection::Protected));
        let clone = cloned(&events).unwrap();
        assert_eq!((clone.stopped_ms, clone.total_ms, clone.bytes), (2.0, 8.0, 111));
    }
}
