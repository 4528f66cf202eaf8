//! One `ftvm run` of a chaos run: what it reports, what it therefore is, how it ended.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use ftvm_roles::event::{Event, Protection, Stamped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Of what it said, so much is shown.
const LAST_LINES: usize = 12;

/// What a process is, by its last reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It has said nothing yet.
    Starting,
    Standby,
    Backup(Protection),
    Live(Protection),
    /// It is about to end.
    Ending,
}

impl Part {
    /// What it is after this event.
    #[must_use]
    pub fn after(self, event: &Event) -> Part {
        match (event, self) {
            (Event::StandingBy { .. }, _) => Part::Standby,
            (Event::Following { .. }, _) => Part::Backup(Protection::NotProtected),
            (Event::Leading { .. } | Event::WentLive { .. }, _) => Part::Live(Protection::NotProtected),
            (Event::State { protection, .. }, Part::Live(_)) => Part::Live(*protection),
            (Event::State { protection, .. }, Part::Backup(_)) => Part::Backup(*protection),
            // A standby goes on, and says so.
            (Event::Ending { .. }, _) => Part::Ending,
            _ => self,
        }
    }
}

/// A running or stopped process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    /// Unlike any other's in this run.
    pub number: u64,
    child: Child,
    events: PathBuf,
    stderr: PathBuf,
    read: u64,
    rest: Vec<u8>,
    pub part: Part,
    /// When `part` last changed, by its own report. CLOCK_BOOTTIME.
    pub since_ns: u64,
    /// When it last suspected the other side.
    pub suspected_ns: Option<u64>,
    pub stopped: bool,
    /// By this run.
    pub killed: bool,
}

impl Process {
    /// Starts `ftvm run` with `arguments`; its files in `folder` begin with `name`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(ftvm: &Path, arguments: &[String], folder: &Path, name: &str, number: u64) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("{name}: {e}");
        let (events, stderr) = (
            folder.join(format!("{name}.events")),
            folder.join(format!("{name}.err")),
        );
        let child = Command::new(ftvm)
            .args(["run", "--die-with-parent"])
            .args(arguments)
            .arg("--events")
            .arg(&events)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        Ok(Process {
            number,
            child,
            events,
            stderr,
            read: 0,
            rest: Vec::new(),
            part: Part::Starting,
            since_ns: 0,
            suspected_ns: None,
            stopped: false,
            killed: false,
        })
    }

    /// What it has reported since the last time.
    pub fn reports(&mut self) -> Vec<Stamped> {
        let read = |from: u64| -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.events)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // It may not be there yet.
        let bytes = read(self.read).unwrap_or_default();
        self.read += bytes.len() as u64;
        self.rest.extend(bytes);
        let whole = self
            .rest
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let reports: Vec<Stamped> = lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        for Stamped { at_ns, event } in &reports {
            let part = self.part.after(event);
            if part != self.part {
                (self.part, self.since_ns) = (part, *at_ns);
            }
            if let Event::Suspected { .. } = event {
                self.suspected_ns = Some(*at_ns);
            }
        }
        reports
    }

    /// Sends it a signal; one that has ended does not mind.
    pub fn signal(&mut self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It is a child that has not been waited for, so the number is its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its last words.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n      ")
    }

    /// Whether a thread of it panicked.
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.said().contains("panicked at")
    }

    fn said(&self) -> String {
        let bytes = std::fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use ftvm_roles::exit_code::ExitCode;

    use super::*;

    #[test]
    fn a_standbys_way_is_followed() {
        let state = |protection| Event::State {
            protection,
            why: String::new(),
        };
        let way = [
            (Event::StandingBy { why: String::new() }, Part::Standby),
            (
                Event::Following { generation: 1 },
                Part::Backup(Protection::NotProtected),
            ),
            (state(Protection::Protected), Part::Backup(Protection::Protected)),
            (
                Event::Ending {
                    code: ExitCode::Lost,
                    why: String::new(),
                },
                Part::Ending,
            ),
            (Event::StandingBy { why: String::new() }, Part::Standby),
            (
                Event::Following { generation: 2 },
                Part::Backup(Protection::NotProtected),
            ),
            (
                Event::WentLive {
                    generation: 3,
                    reissued: 0,
                    reemitted: 0,
                },
                Part::Live(Protection::NotProtected),
            ),
            (state(Protection::Protected), Part::Live(Protection::Protected)),
            (Event::FirstOutput, Part::Live(Protection::Protected)),
        ];
        let mut part = Part::Starting;
        for (event, expected) in way {
            part = part.after(&event);
            assert_eq!(part, expected, "{event:?}");
        }
    }
}
