//! The picture while it happens.

use super::render::{event_line, render};
use super::{Style, Timeline};

/// Events in the live picture: with chart and figures it must fit a terminal of 24 lines, or it could not be redrawn.
const LIVE_EVENTS: usize = 6;

/// What a live picture is drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Canvas {
    /// A terminal: the picture is redrawn in place.
    Terminal { lines: usize },
    /// A pipe or file: each event is written once.
    Stream { events: usize },
}

/// A picture that grows. Feed it the timeline as it is known; write out what it returns.
#[derive(Clone, Debug)]
pub struct LivePicture {
    screen: Canvas,
    style: Style,
}

impl LivePicture {
    /// A picture that has not begun. On a terminal it is redrawn in place, which needs [`WIDTH`](super::WIDTH) columns
    /// and 24 lines; for a smaller one, or a pipe, say that it is none.
    #[must_use]
    pub fn new(is_terminal: bool, style: Style) -> LivePicture {
        let screen = match is_terminal {
            true => Canvas::Terminal { lines: 0 },
            false => Canvas::Stream { events: 0 },
        };
        LivePicture { screen, style }
    }

    /// What to write so that the output shows `timeline`, of which only later events may be new.
    #[must_use]
    pub fn update(&mut self, timeline: &Timeline) -> String {
        match &mut self.screen {
            Canvas::Terminal { lines } => {
                let mut short = timeline.clone();
                short.events.drain(..timeline.events.len().saturating_sub(LIVE_EVENTS));
                redraw(lines, &render(&short, self.style))
            }
            Canvas::Stream { events } => {
                let new = timeline.events.get(*events..).unwrap_or_default();
                *events = (*events).max(timeline.events.len());
                new.iter().map(|event| event_line(event, self.style) + "\n").collect()
            }
        }
    }

    /// What to write in the end: the whole picture stays.
    #[must_use]
    pub fn finish(mut self, timeline: &Timeline) -> String {
        match &mut self.screen {
            Canvas::Terminal { lines } => redraw(lines, &render(timeline, self.style)),
            Canvas::Stream { .. } => {
                let new = self.update(timeline);
                let whole = Timeline {
                    events: Vec::new(),
                    ..timeline.clone()
                };
                format!("{new}\n{}", render(&whole, self.style))
            }
        }
    }
}

/// Goes back over the lines drawn last, writes the new ones over them, and clears what is left of the old.
fn redraw(drawn: &mut usize, picture: &str) -> String {
    let mut out = String::new();
    if *drawn > 0 {
        out.push_str(&format!("\x1b[{drawn}A"));
    }
    for line in picture.lines() {
        out.push_str(&format!("\r{line}\x1b[K\n"));
    }
    out.push_str("\x1b[J");
    *drawn = picture.lines().count();
    out
}
