//! Where a demo is shown: a terminal, a pipe, or (`--json`) one object at the end with the progress on standard error.

use std::io::{IsTerminal, Write};

use super::error::DemoError;
use super::figures::Summary;
use super::picture::figure_line;
use crate::timeline::{LivePicture, Style, Timeline, render};
use ftvm_host::stdio::tell;

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Json,
    Terminal(Style),
    Pipe,
}

/// The screen.
#[derive(Debug)]
pub struct Screen {
    mode: Mode,
    live: Option<LivePicture>,
}

impl Screen {
    /// Standard output as it is.
    #[must_use]
    pub fn new(json: bool) -> Screen {
        let is_terminal = std::io::stdout().is_terminal();
        let style = Style::for_output(is_terminal, std::env::var_os("NO_COLOR").as_deref());
        let mode = match (json, is_terminal) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Terminal(style),
            (false, false) => Mode::Pipe,
        };
        Screen { mode, live: None }
    }

    /// The demo has come this far.
    pub fn stage(&self, text: &str) {
        match self.mode {
            Mode::Json => tell(format_args!("ftvm demo: {text}")),
            Mode::Terminal(_) => show(&format!("\r  {text}\x1b[K\n")),
            Mode::Pipe => show(&format!("  {text}\n")),
        }
    }

    /// What is waited for, in a line that the next one replaces; only a terminal has such a line.
    pub fn progress(&self, text: &str) {
        if let Mode::Terminal(_) = self.mode {
            show(&format!("\r  {text}\x1b[K"));
        }
    }

    /// The picture, as far as it is known.
    pub fn update(&mut self, timeline: &Timeline) {
        let (is_terminal, style) = match self.mode {
            Mode::Json => return,
            Mode::Terminal(style) => (true, style),
            Mode::Pipe => (false, Style::Plain),
        };
        let live = self.live.get_or_insert_with(|| {
            show(if is_terminal { "\r\x1b[K\n" } else { "\n" });
            LivePicture::new(is_terminal, style)
        });
        show(&live.update(timeline));
    }

    /// The whole picture.
    pub fn finish(&mut self, timeline: &Timeline) {
        if let Some(live) = self.live.take() {
            show(&live.finish(timeline));
        }
    }

    /// The end of all runs.
    ///
    /// # Errors
    /// [`DemoError::Stdout`] if standard output is gone.
    pub fn summary(&self, summary: &Summary) -> Result<(), DemoError> {
        let text = match self.mode {
            Mode::Json => serde_json::to_string(summary)? + "\n",
            _ if summary.kills < 2 => return Ok(()),
            mode => {
                let title = format!(
                    "{} kills; times: the longest; again with --seed {}",
                    summary.kills, summary.seed
                );
                let style = if let Mode::Terminal(style) = mode {
                    style
                } else {
                    Style::Plain
                };
                let figures = Timeline {
                    figures: figure_line(&summary.all),
                    ..Timeline::default()
                };
                format!("\n  {title}\n{}", render(&figures, style))
            }
        };
        let mut out = std::io::stdout().lock();
        Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
    }
}

/// Shows what does not matter enough to fail for.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
