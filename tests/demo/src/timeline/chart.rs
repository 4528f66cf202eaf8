//! The chart: bars, the sparkline, the named gap and the axis, each one line of [`CHART_COLUMNS`] characters.

use super::{CHART_COLUMNS, Window};

/// The chart's columns as a signed number.
const COLUMNS: i64 = 54;

/// A column in eighths, which the block elements can show.
const EIGHTHS: i64 = 8;

/// Bars grow from the left: index = eighths.
const BAR: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// Sparks grow from the bottom: index = eighths; nothing at all is a blank.
const SPARK: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns between two labelled ticks, at least: a label has up to 7.
const TICK_COLUMNS: i64 = 9;

/// Where `at_us` lies in the window, in eighths of a column from its left edge; outside it is cut to the edge.
fn eighths(window: Window, at_us: i64) -> i64 {
    let span = i128::from(window.len_us().max(1));
    let offset = i128::from(at_us) - i128::from(window.from_us);
    let place = offset * i128::from(COLUMNS * EIGHTHS) / span;
    i64::try_from(place.clamp(0, i128::from(COLUMNS * EIGHTHS))).expect("clamped")
}

/// The column in which `at_us` lies.
fn column(window: Window, at_us: i64) -> usize {
    usize::try_from((eighths(window, at_us) / EIGHTHS).min(COLUMNS - 1)).expect("not negative")
}

/// A bar from one time to another: blanks and blocks. Its length is true to an eighth of a column, and never nothing.
pub(super) fn bar(window: Window, from_us: i64, to_us: i64) -> (String, String) {
    let begin = eighths(window, from_us);
    let length = (eighths(window, to_us) - begin).max(1);
    let indent = (begin / EIGHTHS).min(COLUMNS - 1);
    let full = (length / EIGHTHS).min(COLUMNS - indent);
    let rest = if indent + full < COLUMNS { length % EIGHTHS } else { 0 };
    let count = |number: i64| usize::try_from(number).expect("not negative");
    let mut blocks = BAR[8].to_string().repeat(count(full));
    if rest > 0 {
        blocks.push(BAR[count(rest)]);
    }
    (" ".repeat(count(indent)), blocks)
}

/// Acknowledgements per column, relative to the largest. Any at all is at least the lowest spark.
pub(super) fn sparkline(columns: &[u32]) -> String {
    let most = u64::from(columns.iter().copied().max().unwrap_or(0)).max(1);
    let spark = |count: &u32| {
        let nearest = (u64::from(*count) * 8 + most / 2) / most;
        let height = nearest.max(u64::from(*count > 0));
        SPARK[usize::try_from(height).expect("at most 8")]
    };
    columns.iter().take(CHART_COLUMNS).map(spark).collect()
}

/// A brace under the gap with its length in it, or beside it where it is too narrow.
pub(super) fn brace(window: Window, gap: Window, label: &str) -> String {
    let from = column(window, gap.from_us);
    let to = column(window, gap.to_us).max(from + 1);
    let inside = to - from - 1;
    let label = format!(" {label} ");
    let width = label.chars().count();
    if inside >= width + 2 {
        let left = (inside - width) / 2;
        let right = inside - width - left;
        return format!("{}╰{}{label}{}╯", " ".repeat(from), "─".repeat(left), "─".repeat(right));
    }
    let brace = format!("╰{}╯", "─".repeat(inside));
    let label = label.trim();
    match to + 1 + 1 + width <= CHART_COLUMNS {
        true => format!("{}{brace} {label}", " ".repeat(from)),
        false => format!("{}{label} {brace}", " ".repeat(from.saturating_sub(width - 1))),
    }
}

/// The axis and its labels, in milliseconds, with a tick at round numbers; the kill is marked.
pub(super) fn axis(window: Window) -> (String, String) {
    let step = step_us(window);
    let mut line: Vec<char> = vec!['─'; CHART_COLUMNS];
    let mut labels: Vec<char> = vec![' '; CHART_COLUMNS];
    let mut free_from = 0;
    let first = window.from_us.div_euclid(step);
    let ticks = (0..COLUMNS).map(|number| first.saturating_add(number).saturating_mul(step));
    for tick in ticks.filter(|tick| (window.from_us..=window.to_us).contains(tick)) {
        let at = column(window, tick);
        line[at] = if tick == 0 { '✖' } else { '┼' };
        let number = (tick / 1000).to_string();
        let label = if tick == 0 { "0 ms" } else { &number };
        let left = at.saturating_sub(number.len() / 2);
        let begin = left.min(CHART_COLUMNS.saturating_sub(label.len()));
        if begin >= free_from {
            for (place, letter) in labels[begin..].iter_mut().zip(label.chars()) {
                *place = letter;
            }
            free_from = begin + label.len() + 1;
        }
    }
    (line.into_iter().collect(), labels.into_iter().collect())
}

/// The smallest of 1, 2, 5, 10, ... ms whose ticks are [`TICK_COLUMNS`] apart.
fn step_us(window: Window) -> i64 {
    const DECADES: u32 = 12;
    let column_us = i64::try_from(window.len_us()).unwrap_or(i64::MAX) / COLUMNS;
    let least = column_us.saturating_mul(TICK_COLUMNS);
    let decades = (0..DECADES).map(|power| 1000 * 10_i64.pow(power));
    decades
        .flat_map(|decade| [decade, 2 * decade, 5 * decade])
        .find(|step| *step >= least)
        .unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window {
        from_us: -100_000,
        to_us: 440_000,
    };

    fn window(from_us: i64, to_us: i64) -> Window {
        Window { from_us, to_us }
    }

    fn drawn((indent, blocks): (String, String)) -> (usize, String) {
        (indent.chars().count(), blocks)
    }

    #[test]
    fn the_two_widths_are_one() {
        assert_eq!(usize::try_from(COLUMNS).expect("positive"), CHART_COLUMNS);
    }

    #[test]
    fn bars_stand_where_and_as_long_as_they_were() {
        // A column is 10 ms.
        assert_eq!(drawn(bar(WINDOW, 0, 20_000)), (10, "██".into()));
        assert_eq!(drawn(bar(WINDOW, 0, 25_000)), (10, "██▌".into()));
        assert_eq!(drawn(bar(WINDOW, 9_999, 10_000)), (10, "▏".into()), "never nothing");
        assert_eq!(drawn(bar(WINDOW, 20_000, 20_000)), (12, "▏".into()));
        assert_eq!(
            drawn(bar(WINDOW, 20_000, 10_000)),
            (12, "▏".into()),
            "an end before its beginning"
        );
    }

    #[test]
    fn bars_are_cut_to_the_window() {
        assert_eq!(drawn(bar(WINDOW, i64::MIN, i64::MAX)), (0, "█".repeat(CHART_COLUMNS)));
        assert_eq!(drawn(bar(WINDOW, 439_999, 500_000)), (53, "▏".into()));
        assert_eq!(drawn(bar(WINDOW, 600_000, 700_000)), (53, "▏".into()));
        assert_eq!(drawn(bar(WINDOW, 405_000, 450_000)), (50, "███▌".into()));
        assert_eq!(drawn(bar(window(0, 0), 0, 0)), (0, "▏".into()), "an empty window");
        assert_eq!(drawn(bar(window(5, -5), 0, 0)).0, 0);
    }

    #[test]
    fn sparks_are_relative_and_any_is_seen() {
        assert_eq!(sparkline(&[0, 1, 50, 100]), " ▁▄█");
        assert_eq!(sparkline(&[0, 0]), "  ");
        assert_eq!(sparkline(&[u32::MAX, 1]), "█▁");
        assert_eq!(sparkline(&[7; 60]).chars().count(), CHART_COLUMNS);
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn the_brace_holds_its_label_or_stands_beside_it() {
        assert_eq!(
            brace(WINDOW, window(0, 150_000), "150 ms"),
            format!("{}╰─── 150 ms ───╯", " ".repeat(10))
        );
        assert_eq!(
            brace(WINDOW, window(0, 30_000), "30 ms"),
            format!("{}╰──╯ 30 ms", " ".repeat(10))
        );
        assert_eq!(
            brace(WINDOW, window(0, 0), "0 ms"),
            format!("{}╰╯ 0 ms", " ".repeat(10))
        );
        let right = brace(WINDOW, window(420_000, 440_000), "20 ms gap");
        assert!(right.ends_with("20 ms gap ╰╯"), "{right:?}");
        for gap in [
            window(430_000, 440_000),
            window(i64::MIN, i64::MAX),
            window(500_000, 400_000),
        ] {
            let line = brace(WINDOW, gap, "20 ms gap");
            assert!(line.chars().count() <= CHART_COLUMNS + 1, "{line:?}");
        }
    }

    #[test]
    fn ticks_are_round_and_the_kill_is_marked() {
        let (line, labels) = axis(WINDOW);
        assert_eq!(line, "┼─────────✖─────────┼─────────┼─────────┼─────────┼───");
        assert_eq!(labels, "-100      0 ms     100       200       300       400  ");
        for (window, step) in [
            (window(0, 54_000), 10_000),
            (window(0, 1), 1000),
            (window(0, 5_400_000), 1_000_000),
            (window(0, i64::MAX), i64::MAX),
        ] {
            assert_eq!(step_us(window), step, "{window:?}");
        }
    }

    #[test]
    fn any_window_has_an_axis() {
        for window in [
            window(0, 0),
            window(10, -10),
            window(i64::MIN, i64::MAX),
            window(i64::MAX, i64::MAX),
        ] {
            let (line, labels) = axis(window);
            assert_eq!(line.chars().count(), CHART_COLUMNS, "{window:?}");
            assert_eq!(labels.chars().count(), CHART_COLUMNS, "{window:?}");
        }
    }
}
