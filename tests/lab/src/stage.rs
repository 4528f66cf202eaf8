//! The stages of a test whose steps may hang in the kernel, where no limit of its own reaches.
//!
//! A read of a SCSI disk or a wait for a killed process that is stuck in one ends when the kernel lets it. So a thread watches:
//! a stage that takes too long ends the process, with the stage's name and what each task that is stuck in the kernel waits
//! for. What is said goes to stderr past libtest, which would keep it until the test ends.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Says what a test is at; dropped at its end.
#[derive(Debug)]
pub struct Stages {
    began: Instant,
    next: mpsc::Sender<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: String,
    limit: Duration,
}

impl Stages {
    /// Of a test that begins now.
    #[must_use]
    pub fn new() -> Self {
        let (next, stages) = mpsc::channel();
        thread::spawn(move || {
            if let Some(overdue) = overdue(&stages) {
                say(&format!("{} took longer than {:?}", overdue.name, overdue.limit));
                say(&stuck(Path::new("/proc")));
                // As libtest does when a test fails.
                std::process::exit(101);
            }
        });
        Stages {
            began: Instant::now(),
            next,
        }
    }

    /// The last stage is over, and `name` begins.
    pub fn begin(&self, name: &str, limit: Duration) {
        say(&format!("{:7.3} s  {name}", self.began.elapsed().as_secs_f64()));
        let name = name.to_owned();
        // It listens for as long as this process lives.
        let _ = self.next.send(Stage { name, limit });
    }
}

impl Default for Stages {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits for a stage that outlasts its limit, or for the test's end.
fn overdue(stages: &mpsc::Receiver<Stage>) -> Option<Stage> {
    let mut current = stages.recv().ok()?;
    loop {
        match stages.recv_timeout(current.limit) {
            Ok(next) => current = next,
            Err(RecvTimeoutError::Timeout) => return Some(current),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn say(text: &str) {
    // Whoever does not read it does not want it.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Names and kernel stacks of the tasks that sleep and take no signal.
fn stuck(proc: &Path) -> String {
    let mut text = String::new();
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    for task in entries(proc).flat_map(|process| entries(&process.path().join("task"))) {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if state.starts_with('D') {
            let name = read("comm");
            let _ = write!(
                text,
                "stuck: task {} {name}{}",
                task.file_name().display(),
                read("stack")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stage_that_takes_too_long_is_told() {
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        let stage = |name: &str, limit| Stage {
            name: name.to_owned(),
            limit,
        };
        let (next, stages) = mpsc::channel();
        next.send(stage("first", long)).unwrap();
        next.send(stage("second", short)).unwrap();
        assert_eq!(overdue(&stages).map(|stage| stage.name), Some("second".to_owned()));
        next.send(stage("third", long)).unwrap();
        drop(next);
        assert!(overdue(&stages).is_none(), "the test has ended");
    }

    #[test]
    fn tasks_that_sleep_for_good_are_named() {
        let proc = tempfile::tempdir().unwrap();
        for (id, name, state) in [(7, "a) D b", 'S'), (8, "c) S d", 'D')] {
            let task = proc.path().join(format!("{id}/task/{id}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("comm"), format!("{name}\n")).unwrap();
            fs::write(task.join("stat"), format!("{id} ({name}) {state} 1 1")).unwrap();
            fs::write(task.join("stack"), "[<0>] wait_for_completion+0x1\n").unwrap();
        }
        assert_eq!(
            stuck(proc.path()),
            "stuck: task 8 c) S d\n[<0>] wait_for_completion+0x1\n"
        );
    }
}
