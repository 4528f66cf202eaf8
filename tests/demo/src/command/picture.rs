//! From what is known about a failover to the picture of it. Pure; times become microseconds from the kill.

use super::figures::{Facts, RunFigures};
use crate::client::AckHistory;
use crate::timeline::{
    Acks, CHART_COLUMNS, Figure, Moment, PhaseBar, PhaseKind, PhaseState, Rating, Timeline, Who, Window,
};
use ftvm_roles::event::{Event as PairEvent, Stamped};
use ftvm_roles::exit_code::ExitCode;

/// How the backup names a connection that broke; what the system call said is in the log.
const CONNECTION: &str = "connection to the primary:";

/// What the client has to show.
#[derive(Clone, Copy, Debug)]
pub struct ClientView<'a> {
    /// Acknowledged when the primary was killed.
    pub acked_at_kill: u64,
    pub history: &'a AckHistory,
    /// Time 0 of `history` and `gap`, in nanoseconds of CLOCK_BOOTTIME.
    pub begun_ns: u64,
    /// The longest gap so far: from and to, in nanoseconds since `begun_ns`.
    pub gap_ns: (u64, u64),
}

/// Draws what was known at `now_ns`. Only what is older than `settled_ns` is listed, so that a later picture adds events
/// only behind those of an earlier one, though files and sockets are read one after the other.
#[must_use]
pub fn timeline(
    title: &str,
    facts: &Facts<'_>,
    client: &ClientView<'_>,
    (now_ns, settled_ns): (u64, u64),
    figures: Option<&RunFigures>,
) -> Timeline {
    let at = |ns: u64| from_kill(facts.killed_ns, ns);
    let gap = gap_over_kill(facts, client);
    let mut events = events(facts, client, gap);
    events.retain(|event| event.at_us <= at(settled_ns));
    events.sort_by_key(|event| event.at_us);
    let end = gap
        .map(|gap| gap.to_us)
        .or(figures.and(facts.first_frame_ns.map(at)))
        .unwrap_or(at(now_ns));
    let mut window = Window::around(end);
    window.from_us = window.from_us.max(at(client.begun_ns));
    let from_begin = |us: i64| u64::try_from(us - at(client.begun_ns)).unwrap_or(0) * 1000;
    Timeline {
        title: title.to_owned(),
        events,
        phases: phases(facts, at(now_ns)),
        acks: Some(Acks {
            columns: client
                .history
                .columns(from_begin(window.from_us), from_begin(window.to_us), CHART_COLUMNS),
            gap,
        }),
        window,
        figures: figures.map(figure_line).unwrap_or_default(),
    }
}

fn from_kill(killed_ns: u64, ns: u64) -> i64 {
    let us = |ns: u64| i64::try_from(ns / 1000).unwrap_or(i64::MAX);
    if ns >= killed_ns {
        us(ns - killed_ns)
    } else {
        -us(killed_ns - ns)
    }
}

/// The client's longest gap, if it is the one the kill made: over before the kill, or begun after the new life's first
/// frame, it is another's.
fn gap_over_kill(facts: &Facts<'_>, client: &ClientView<'_>) -> Option<Window> {
    let at = |ns: u64| from_kill(facts.killed_ns, client.begun_ns.saturating_add(ns));
    let gap = Window {
        from_us: at(client.gap_ns.0),
        to_us: at(client.gap_ns.1),
    };
    let first_frame = from_kill(facts.killed_ns, facts.first_frame_ns?);
    (gap.to_us >= first_frame && gap.from_us < first_frame).then_some(gap)
}

fn events(facts: &Facts<'_>, client: &ClientView<'_>, gap: Option<Window>) -> Vec<Moment> {
    let event = |at_us, who, text: String| Moment { at_us, who, text };
    let acked = client.acked_at_kill;
    let mut events = vec![
        event(0, Who::Client, format!("{acked} writes acknowledged on one connection")),
        event(0, Who::Primary, "killed (SIGKILL)".to_owned()),
    ];
    for seen in facts.backup {
        if let Some((who, text)) = words(&seen.event) {
            events.push(event(from_kill(facts.killed_ns, seen.at_ns), who, text));
        }
    }
    // Everything from before the kill is the story of the join, which was told already.
    events.retain(|event| event.at_us >= 0);
    if let Some(first) = facts.first_frame_ns {
        events.push(event(
            from_kill(facts.killed_ns, first),
            Who::Backup,
            "first frame on the network".to_owned(),
        ));
    }
    if let Some(gap) = gap {
        events.push(event(
            gap.to_us,
            Who::Client,
            "next acknowledgement, on the same connection".to_owned(),
        ));
    }
    events
}

fn words(event: &PairEvent) -> Option<(Who, String)> {
    Some(match event {
        PairEvent::Suspected { reason } if reason.starts_with(CONNECTION) => {
            (Who::Backup, "primary lost: its connection broke".to_owned())
        }
        PairEvent::Suspected { reason } => (Who::Backup, format!("primary lost: {reason}")),
        PairEvent::ClaimWon { generation, .. } => (
            Who::Storage,
            format!(
                "test-and-set: generation {} → {generation}, won by the backup",
                generation - 1
            ),
        ),
        PairEvent::StorageUnreachable { why } => (Who::Storage, format!("does not answer: {why}")),
        PairEvent::LeaseOver { .. } => (Who::Backup, "lease of the primary outwaited".to_owned()),
        PairEvent::Drained { .. } => (Who::Backup, "everything received is replayed".to_owned()),
        PairEvent::WentLive {
            generation,
            reissued,
            reemitted,
        } => (
            Who::Backup,
            format!("live, generation {generation}; {reemitted} outputs, {reissued} disk requests again"),
        ),
        PairEvent::Ending { code, why } if *code != ExitCode::Success => {
            (Who::Backup, format!("ends with code {code}: {why}"))
        }
        _ => return None,
    })
}

/// The phases that have begun; what is not over reaches to now.
fn phases(facts: &Facts<'_>, now_us: i64) -> Vec<PhaseBar> {
    let find = |wanted: fn(&PairEvent) -> bool| -> Option<i64> {
        let found = facts
            .backup
            .iter()
            .find(|seen: &&Stamped| wanted(&seen.event) && seen.at_ns >= facts.killed_ns);
        found.map(|seen| from_kill(facts.killed_ns, seen.at_ns))
    };
    let suspected = find(|event| matches!(event, PairEvent::Suspected { .. }));
    let lease = find(|event| matches!(event, PairEvent::LeaseOver { .. }));
    let won = find(|event| matches!(event, PairEvent::ClaimWon { .. }));
    let drained = find(|event| matches!(event, PairEvent::Drained { .. }));
    let live = find(|event| matches!(event, PairEvent::WentLive { .. }));
    let first_frame = facts.first_frame_ns.map(|ns| from_kill(facts.killed_ns, ns));
    let decided = lease
        .zip(won)
        .zip(drained)
        .map(|((lease, won), drained)| lease.max(won).max(drained));
    let phase = |kind, from: Option<i64>, to: Option<i64>| {
        let state = if to.is_some() {
            PhaseState::Done
        } else {
            PhaseState::Running
        };
        from.map(|from_us| PhaseBar {
            kind,
            from_us,
            to_us: to.unwrap_or(now_us).max(from_us),
            state,
        })
    };
    [
        phase(PhaseKind::Detection, Some(0), suspected),
        phase(PhaseKind::Lease, suspected, lease),
        phase(PhaseKind::TestAndSet, suspected, won),
        phase(PhaseKind::Drain, suspected, drained),
        phase(PhaseKind::Reissue, decided, live),
        phase(PhaseKind::FirstFrame, live, first_frame),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The figures below the picture.
#[must_use]
pub fn figure_line(figures: &RunFigures) -> Vec<Figure> {
    let figure = |value: String, label: &str, outcome| Figure {
        label: label.to_owned(),
        value,
        outcome,
    };
    let judged = |good: bool| if good { Rating::Good } else { Rating::Bad };
    let time = |ms: Option<f64>| ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1} ms"));
    let survived = if figures.connection_survived {
        "survived"
    } else {
        "lost"
    };
    let mut line = vec![
        figure(
            figures.acked_writes.to_string(),
            "acknowledged writes",
            judged(figures.acked_writes > 0),
        ),
        figure(
            figures.lost_writes.to_string(),
            "lost",
            judged(figures.lost_writes == 0),
        ),
    ];
    if figures.unverified_writes > 0 {
        line.push(figure(
            figures.unverified_writes.to_string(),
            "not read back",
            Rating::Bad,
        ));
    }
    line.push(figure(
        survived.to_owned(),
        "the connection",
        judged(figures.connection_survived),
    ));
    line.push(figure(
        time(figures.blackout_ms),
        "black-out",
        judged(figures.blackout_ms.is_some()),
    ));
    line.push(figure(
        time(Some(figures.client_gap_ms)),
        "client's longest gap",
        Rating::Neutral,
    ));
    let rate = |per_s: Option<f64>, unit: f64, digits: usize| match per_s {
        Some(rate) => format!("{:.digits$}", rate / unit),
        None => "unknown".to_owned(),
    };
    let log_rate = rate(figures.log_bytes_per_s, 1e3, 1);
    line.push(figure(log_rate, "kB/s of log", Rating::Neutral));
    line.push(figure(rate(figures.exits_per_s, 1.0, 0), "exits/s", Rating::Neutral));
    line
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
