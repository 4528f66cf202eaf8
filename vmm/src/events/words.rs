//! Events in the words of the log on standard error.

use ftvm_roles::event::Event;
use ftvm_schema::entry::Intervention;

pub(super) fn in_words(event: &Event) -> String {
    match event {
        Event::Leading { .. }
        | Event::Following { .. }
        | Event::StandingBy { .. }
        | Event::State { .. }
        | Event::Traffic { .. }
        | Event::Diverged { .. } => of_protection(event),
        Event::StateRecord { .. } | Event::Cloning { .. } | Event::Mirroring { .. } | Event::Cloned { .. } => {
            of_cloning(event)
        }
        Event::Operated { .. } | Event::Intervened { .. } | Event::HandingOver { .. } | Event::HandedOver => {
            of_operation(event)
        }
        Event::PathLost { .. } | Event::DiskSilent { .. } | Event::DiskAnswers { .. } => of_paths(event),
        Event::Suspected { .. }
        | Event::ClaimAsked { .. }
        | Event::ClaimWon { .. }
        | Event::StorageUnreachable { .. }
        | Event::LeaseOver { .. }
        | Event::Drained { .. }
        | Event::WentLive { .. }
        | Event::FirstOutput
        | Event::Ending { .. } => of_failover(event),
    }
}

/// What protection a guest has, and what it costs.
fn of_protection(event: &Event) -> String {
    match event {
        Event::Leading { generation } => format!("live as generation {generation}"),
        Event::Following { generation } => format!("following generation {generation}"),
        Event::StandingBy { why } => format!("standing by: {why}"),
        Event::State { protection, why } => format!("{protection:?}: {why}"),
        Event::Traffic {
            log_bytes,
            exits,
            checkpoints,
            lag_ns,
            idle_permille,
            ..
        } => format!(
            "{log_bytes} bytes of log so far, up to exit {exits}, {checkpoints} micro-checkpoints; lag {:.1} ms, slowed by \
             {}.{} %",
            ms(*lag_ns),
            idle_permille / 10,
            idle_permille % 10
        ),
        Event::Diverged { exit, what } => format!("the backup diverged at exit {exit}: {what}"),
        other => unexpected(other),
    }
}

/// How a joining backup gets the guest's state.
fn of_cloning(event: &Event) -> String {
    match event {
        Event::StateRecord { bytes } => format!("state record of {:.1} MiB", mib(*bytes)),
        Event::Cloning {
            round,
            pages,
            of,
            left_ms,
        } => {
            format!(
                "round {round} of the clone: {pages} of {of} pages sent, {:.1} s left",
                seconds(*left_ms)
            )
        }
        Event::Mirroring { bytes, of, left_ms } => format!(
            "private disks: {} of {} MiB sent, {:.1} s left",
            bytes >> 20,
            of >> 20,
            seconds(*left_ms)
        ),
        Event::Cloned {
            rounds,
            pages,
            bytes,
            disk_bytes,
            total_ns,
            slowed_permille,
            stopped_ns,
        } => format!(
            "cloned in {:.1} s: {pages} pages in {rounds} rounds, {:.1} MiB, and {} MiB of private disks; the guest was slowed by \
             {} % for it, and stopped for {:.1} ms",
            ms(*total_ns) / 1e3,
            mib(*bytes),
            disk_bytes >> 20,
            slowed_permille / 10,
            ms(*stopped_ns)
        ),
        other => unexpected(other),
    }
}

/// What operators want, and what comes of it.
fn of_operation(event: &Event) -> String {
    match event {
        Event::Operated { operation, done, text } => {
            let how = if *done { "done" } else { "refused" };
            format!("{} {how}: {text}", operation.name())
        }
        Event::Intervened { what } => match what {
            Intervention::Pause => "the guest is paused".to_owned(),
            Intervention::Resume => "the guest goes on".to_owned(),
            Intervention::Reset => "the guest starts again".to_owned(),
        },
        Event::HandingOver { why } => format!("handing the guest over: {why}"),
        Event::HandedOver => "handed over: the backup may go live, nothing more leaves the old primary".to_owned(),
        other => unexpected(other),
    }
}

/// What this host has lost the way to.
fn of_paths(event: &Event) -> String {
    match event {
        Event::PathLost { path, what, hands_over } => {
            let then = if *hands_over {
                "the backup takes over"
            } else {
                "the guest is told"
            };
            format!("{path} is lost here ({what}); {then}")
        }
        Event::DiskSilent {
            disk,
            silent_ms,
            write,
            hands_over,
        } => {
            let then = match (hands_over, write) {
                (true, _) => "the backup takes over",
                (false, true) => {
                    "a write may land at any time, so the guest stays and waits; to give this host up, end it by its power \
                     or cut it off the disk, and the backup goes live"
                }
                (false, false) => "the guest waits",
            };
            format!("disk {disk} has not answered for {:.1} s; {then}", seconds(*silent_ms))
        }
        Event::DiskAnswers { disk } => format!("disk {disk} answers again"),
        other => unexpected(other),
    }
}

/// From a suspicion to the new life, or the end.
fn of_failover(event: &Event) -> String {
    match event {
        Event::Suspected { reason } => format!("the other side is taken for dead: {reason}"),
        Event::ClaimAsked { generation } => format!("asking for generation {generation}"),
        Event::ClaimWon { generation, took_ns } => format!("won generation {generation} in {:.1} ms", ms(*took_ns)),
        Event::StorageUnreachable { why } => format!("waiting, outputs held: {why}"),
        Event::LeaseOver { waited_ns } => format!("lease outwaited after {:.1} ms", ms(*waited_ns)),
        Event::Drained { took_ns } => format!("log drained after {:.1} ms", ms(*took_ns)),
        Event::WentLive {
            generation,
            reissued,
            reemitted,
        } => format!(
            "LIVE as generation {generation}: {reissued} disk requests issued again, {reemitted} outputs emitted again"
        ),
        Event::FirstOutput => "first output of the new life".to_owned(),
        Event::Ending { code, why } => format!("ending with code {code}: {why}"),
        other => unexpected(other),
    }
}

/// [`in_words`] gives each event to the function that has words for it; another one is shown as it is.
fn unexpected(event: &Event) -> String {
    format!("{event:?}")
}

/// Nanoseconds as milliseconds.
fn ms(ns: u64) -> f64 {
    real(ns) / 1e6
}

/// Milliseconds as seconds.
fn seconds(ms: u64) -> f64 {
    real(ms) / 1e3
}

fn mib(bytes: u64) -> f64 {
    real(bytes) / f64::from(1 << 20)
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn real(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use ftvm_roles::event::Protection;
    use ftvm_roles::operation::{Operation, Path};

    use super::*;

    fn clone_events() -> Vec<(Event, &'static str)> {
        vec![
            (Event::StateRecord { bytes: 3 << 19 }, "state record of 1.5 MiB"),
            (
                Event::Cloning {
                    round: 2,
                    pages: 30,
                    of: 40,
                    left_ms: 1500,
                },
                "round 2 of the clone: 30 of 40 pages sent, 1.5 s left",
            ),
            (
                Event::Mirroring {
                    bytes: 3 << 20,
                    of: 9 << 20,
                    left_ms: 2000,
                },
                "private disks: 3 of 9 MiB sent, 2.0 s left",
            ),
            (
                Event::Cloned {
                    rounds: 3,
                    pages: 100,
                    bytes: 1 << 20,
                    disk_bytes: 2 << 20,
                    total_ns: 2_500_000_000,
                    slowed_permille: 120,
                    stopped_ns: 7_300_000,
                },
                "cloned in 2.5 s: 100 pages in 3 rounds, 1.0 MiB, and 2 MiB of private disks; the guest was slowed by 12 % for \
                 it, and stopped for 7.3 ms",
            ),
            (
                Event::Traffic {
                    log_bytes: 5,
                    exits: 6,
                    frames: 7,
                    checkpoints: 8,
                    checkpoint_bytes: 9,
                    lag_ns: 1_200_000,
                    idle_permille: 34,
                },
                "5 bytes of log so far, up to exit 6, 8 micro-checkpoints; lag 1.2 ms, slowed by 3.4 %",
            ),
        ]
    }

    fn trouble_events() -> Vec<(Event, &'static str)> {
        let silent = |write, hands_over| Event::DiskSilent {
            disk: 1,
            silent_ms: 30_000,
            write,
            hands_over,
        };
        vec![
            (
                Event::PathLost {
                    path: Path::Nic(0),
                    what: "down".to_owned(),
                    hands_over: true,
                },
                "network card 0 is lost here (down); the backup takes over",
            ),
            (
                silent(true, true),
                "disk 1 has not answered for 30.0 s; the backup takes over",
            ),
            (
                silent(true, false),
                "disk 1 has not answered for 30.0 s; a write may land at any time, so the guest stays and waits; to give this \
                 host up, end it by its power or cut it off the disk, and the backup goes live",
            ),
            (
                silent(false, false),
                "disk 1 has not answered for 30.0 s; the guest waits",
            ),
            (Event::DiskAnswers { disk: 1 }, "disk 1 answers again"),
        ]
    }

    fn failover_events() -> Vec<(Event, &'static str)> {
        let text = || "x".to_owned();
        vec![
            (Event::Leading { generation: 1 }, "live as generation 1"),
            (Event::Following { generation: 1 }, "following generation 1"),
            (Event::StandingBy { why: text() }, "standing by: x"),
            (
                Event::State {
                    protection: Protection::Protected,
                    why: text(),
                },
                "Protected: x",
            ),
            (
                Event::Operated {
                    operation: Operation::Failover,
                    done: false,
                    text: text(),
                },
                "failover refused: x",
            ),
            (Event::HandingOver { why: text() }, "handing the guest over: x"),
            (
                Event::Diverged { exit: 4, what: text() },
                "the backup diverged at exit 4: x",
            ),
            (
                Event::Suspected { reason: text() },
                "the other side is taken for dead: x",
            ),
            (Event::ClaimAsked { generation: 2 }, "asking for generation 2"),
            (
                Event::ClaimWon {
                    generation: 2,
                    took_ns: 1_000_000,
                },
                "won generation 2 in 1.0 ms",
            ),
            (Event::StorageUnreachable { why: text() }, "waiting, outputs held: x"),
            (
                Event::LeaseOver { waited_ns: 1_000_000 },
                "lease outwaited after 1.0 ms",
            ),
            (Event::Drained { took_ns: 1_000_000 }, "log drained after 1.0 ms"),
            (
                Event::WentLive {
                    generation: 2,
                    reissued: 3,
                    reemitted: 4,
                },
                "LIVE as generation 2: 3 disk requests issued again, 4 outputs emitted again",
            ),
            (Event::FirstOutput, "first output of the new life"),
        ]
    }

    #[test]
    fn every_event_has_its_words() {
        let all = [clone_events(), trouble_events(), failover_events()].concat();
        for (event, words) in all {
            assert_eq!(in_words(&event), words);
        }
        for what in [Intervention::Pause, Intervention::Resume, Intervention::Reset] {
            assert!(in_words(&Event::Intervened { what }).starts_with("the guest "));
        }
    }
}
