//! The whole picture, from top to bottom.

use super::chart::{axis, bar, brace, sparkline};
use super::{Acks, Figure, Ink, Moment, PhaseBar, PhaseState, Rating, Style, Timeline, WIDTH, fit, milliseconds};

/// Events drawn; of more, the first and the last are.
const MAX_EVENTS: usize = 24;

/// Columns left of the chart: indent, a phase's name and its length.
const LABEL: usize = 24;

/// Columns of an event left of its text: indent, time, unit, who.
const EVENT_LABEL: usize = 25;

/// Draws `timeline`: lines of at most [`WIDTH`] columns, each with its end.
#[must_use]
pub fn render(timeline: &Timeline, style: Style) -> String {
    let mut lines = Vec::new();
    if !timeline.title.is_empty() {
        lines.push(format!(
            "  {}",
            style.paint(Ink::Bold, &fit(&timeline.title, WIDTH - 2))
        ));
        lines.push(rule(style));
    }
    lines.extend(events(&timeline.events, MAX_EVENTS, style));
    if timeline.acks.is_some() || !timeline.phases.is_empty() {
        if !timeline.events.is_empty() {
            lines.push(String::new());
        }
        lines.extend(chart(timeline, style));
    }
    if !timeline.figures.is_empty() {
        lines.push(rule(style));
        lines.extend(figures(&timeline.figures, style));
    }
    lines
        .into_iter()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

fn rule(style: Style) -> String {
    format!("  {}", style.paint(Ink::Dim, &"─".repeat(WIDTH - 2)))
}

/// The events, of which at most `most` are drawn.
pub(super) fn events(events: &[Moment], most: usize, style: Style) -> Vec<String> {
    if events.len() <= most {
        return events.iter().map(|event| event_line(event, style)).collect();
    }
    let head = most / 2;
    let tail = most - head - 1;
    let left_out = events.len() - head - tail;
    let (first, last) = (&events[..head], &events[events.len() - tail..]);
    let ellipsis = format!(
        "{}{}",
        " ".repeat(EVENT_LABEL),
        style.paint(Ink::Dim, &format!("… {left_out} more …"))
    );
    let line = |event| event_line(event, style);
    first
        .iter()
        .map(line)
        .chain([ellipsis])
        .chain(last.iter().map(line))
        .collect()
}

pub(super) fn event_line(event: &Moment, style: Style) -> String {
    let time = format!("{:>9}", milliseconds(event.at_us));
    let who = format!("{:<8}", event.who.name());
    let text = fit(&event.text, WIDTH - EVENT_LABEL);
    let unit = style.paint(Ink::Dim, "ms");
    format!("  {time} {unit}  {} {text}", style.paint(event.who.ink(), &who))
}

fn chart(timeline: &Timeline, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(acks) = &timeline.acks {
        lines.extend(ack_lines(timeline, acks, style));
    }
    lines.extend(timeline.phases.iter().map(|phase| phase_line(timeline, phase, style)));
    let (line, labels) = axis(timeline.window);
    let margin = " ".repeat(LABEL);
    let line = match line.split_once('✖') {
        Some((before, after)) => {
            let kill = style.paint(Ink::Red, "✖");
            format!(
                "{}{kill}{}",
                style.paint(Ink::Dim, before),
                style.paint(Ink::Dim, after)
            )
        }
        None => style.paint(Ink::Dim, &line),
    };
    lines.push(format!("{margin}{line}"));
    lines.push(format!("{margin}{}", style.paint(Ink::Dim, &labels)));
    lines
}

fn ack_lines(timeline: &Timeline, acks: &Acks, style: Style) -> Vec<String> {
    let sparks = style.paint(Ink::Green, &sparkline(&acks.columns));
    let mut lines = vec![format!("  {:<width$}{sparks}", "client's acks", width = LABEL - 2)];
    if let Some(gap) = acks.gap {
        let length = format!("{} ms", milliseconds(gap.to_us.saturating_sub(gap.from_us)));
        let brace = brace(timeline.window, gap, &length);
        lines.push(format!("{}{}", " ".repeat(LABEL), style.paint(Ink::Red, &brace)));
    }
    lines
}

fn phase_line(timeline: &Timeline, phase: &PhaseBar, style: Style) -> String {
    let name = format!("{:<12}", phase.kind.name());
    let length = milliseconds(phase.to_us.saturating_sub(phase.from_us));
    let unit = match phase.state {
        PhaseState::Done => "ms",
        PhaseState::Running => "…",
    };
    let (indent, blocks) = bar(timeline.window, phase.from_us, phase.to_us);
    let label = format!(
        "  {} {:>6} {}",
        style.paint(phase.kind.ink(), &name),
        fit(&length, 6),
        style.paint(Ink::Dim, unit)
    );
    format!(
        "{label}{}{indent}{}",
        " ".repeat(2 - unit.chars().count().min(2)),
        style.paint(phase.kind.ink(), &blocks)
    )
}

/// The figures, as many to a line as fit.
fn figures(figures: &[Figure], style: Style) -> Vec<String> {
    const SEPARATOR: &str = "   ";
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut width = 0;
    for figure in figures {
        let label = fit(&figure.label, WIDTH / 2 - 4);
        let value = fit(&figure.value, WIDTH / 2 - 4);
        let (mark, ink) = match figure.outcome {
            Rating::Neutral => ("", Ink::Bold),
            Rating::Good => ("✔ ", Ink::BrightGreen),
            Rating::Bad => ("✘ ", Ink::Red),
        };
        let columns = mark.chars().count() + value.chars().count() + 1 + label.chars().count();
        let drawn = format!("{} {label}", style.paint(ink, &format!("{mark}{value}")));
        if width > 0 && width + SEPARATOR.len() + columns > WIDTH - 2 {
            lines.push(format!("  {line}"));
            line.clear();
            width = 0;
        }
        if width > 0 {
            line.push_str(SEPARATOR);
            width += SEPARATOR.len();
        }
        line.push_str(&drawn);
        width += columns;
    }
    lines.push(format!("  {line}"));
    lines
}
