//! The picture of a failover: what happened when, which phase took how long, and what the client felt.
//!
//! Pure: data in, text out, at most [`WIDTH`] columns. The client's acknowledgements and the phases share one time axis,
//! so that the silence above stands over its causes below. [`render`] gives the whole picture, [`LivePicture`] the same while
//! it happens: drawn in place on a terminal, one line an event elsewhere. All times are microseconds from the kill,
//! negative before it.

use std::ffi::OsStr;

mod chart;
mod live;
mod render;

pub use live::LivePicture;
pub use render::render;

/// Columns of the picture: the terminal everybody has.
pub const WIDTH: usize = 80;

/// Columns of the chart in it: as many parts [`Acks::columns`] has.
pub const CHART_COLUMNS: usize = 54;

/// Everything the picture shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// One line on top.
    pub title: String,
    /// In the order of time.
    pub events: Vec<Moment>,
    /// In the order they are to stand.
    pub phases: Vec<PhaseBar>,
    pub acks: Option<Acks>,
    /// The time the chart shows.
    pub window: Window,
    /// What it comes to, at the bottom.
    pub figures: Vec<Figure>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub at_us: i64,
    pub who: Who,
    pub text: String,
}

/// To whom something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Client,
    Primary,
    Backup,
    Storage,
}

/// A part of the failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseBar {
    pub kind: PhaseKind,
    pub from_us: i64,
    /// Its end, or how far it has come.
    pub to_us: i64,
    pub state: PhaseState,
}

/// Whether a phase is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseState {
    Running,
    Done,
}

/// The parts of a failover (PROTOCOL 13, 23). Lease, test-and-set and drain run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseKind {
    Detection,
    Lease,
    TestAndSet,
    Drain,
    Reissue,
    FirstFrame,
}

/// The client's acknowledged writes over the [`Window`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    /// Acknowledgements in each of [`CHART_COLUMNS`] equal parts of the window; what lies beyond is not drawn.
    pub columns: Vec<u32>,
    /// The silence to be named.
    pub gap: Option<Window>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub from_us: i64,
    pub to_us: i64,
}

impl Window {
    /// The window for a failover whose last phase ended (or has come) `took_us` after the kill: half as much before it,
    /// and as much after it as fits well, in steps that keep a live picture from jittering.
    #[must_use]
    pub fn around(took_us: i64) -> Window {
        const STEP_US: i64 = 50_000;
        let steps = took_us
            .clamp(1, i64::MAX / 8)
            .unsigned_abs()
            .div_ceil(STEP_US.unsigned_abs());
        let took = i64::try_from(steps).expect("less than an eighth of all") * STEP_US;
        Window {
            from_us: -(took / 2),
            to_us: took + took / 2,
        }
    }

    /// Its length in microseconds; 0 if it ends before it begins.
    #[must_use]
    pub fn len_us(&self) -> u64 {
        u64::try_from(self.to_us.saturating_sub(self.from_us)).unwrap_or(0)
    }
}

/// A figure of the summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    pub label: String,
    pub value: String,
    pub outcome: Rating,
}

/// Whether a figure is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rating {
    /// Neither good nor bad.
    Neutral,
    Good,
    Bad,
}

/// Whether the picture has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour,
}

impl Style {
    /// Colours on a terminal, unless the user set NO_COLOR to something (no-color.org).
    #[must_use]
    pub fn for_output(is_terminal: bool, no_color: Option<&OsStr>) -> Style {
        match no_color.is_none_or(OsStr::is_empty) {
            true if is_terminal => Style::Colour,
            _ => Style::Plain,
        }
    }

    /// Wraps `text` in an ANSI colour or attribute.
    fn paint(self, ink: Ink, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Colour if text.is_empty() => String::new(),
            Style::Colour => format!("\x1b[{}m{text}\x1b[0m", ink.code()),
        }
    }
}

/// The colours of the picture (ECMA-48 SGR; the 16 that every terminal theme defines).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ink {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
    BrightGreen,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Red => "1;31",
            Ink::Green => "32",
            Ink::Yellow => "33",
            Ink::Blue => "34",
            Ink::Magenta => "35",
            Ink::Cyan => "36",
            Ink::BrightGreen => "1;32",
        }
    }
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Client => "client",
            Who::Primary => "primary",
            Who::Backup => "backup",
            Who::Storage => "storage",
        }
    }

    fn ink(self) -> Ink {
        match self {
            Who::Client => Ink::Green,
            Who::Primary => Ink::Yellow,
            Who::Backup => Ink::Cyan,
            Who::Storage => Ink::Magenta,
        }
    }
}

impl PhaseKind {
    fn name(self) -> &'static str {
        match self {
            PhaseKind::Detection => "detection",
            PhaseKind::Lease => "lease",
            PhaseKind::TestAndSet => "test-and-set",
            PhaseKind::Drain => "drain",
            PhaseKind::Reissue => "re-issue",
            PhaseKind::FirstFrame => "first frame",
        }
    }

    fn ink(self) -> Ink {
        match self {
            PhaseKind::Detection => Ink::Yellow,
            PhaseKind::Lease => Ink::Blue,
            PhaseKind::TestAndSet => Ink::Magenta,
            PhaseKind::Drain => Ink::Cyan,
            PhaseKind::Reissue => Ink::Green,
            PhaseKind::FirstFrame => Ink::BrightGreen,
        }
    }
}

/// Milliseconds with one decimal: what a reader compares.
fn milliseconds(us: i64) -> String {
    let tenths = us.unsigned_abs().saturating_add(50) / 100;
    let sign = if us < 0 && tenths > 0 { "-" } else { "" };
    format!("{sign}{}.{}", tenths / 10, tenths % 10)
}

/// `text` without control characters, in at most `columns` characters.
fn fit(text: &str, columns: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    match text.chars().count() <= columns {
        true => text.chars().map(clean).collect(),
        false => text
            .chars()
            .take(columns.saturating_sub(1))
            .map(clean)
            .chain(['…'])
            .collect(),
    }
}

#[cfg(test)]
mod tests;
