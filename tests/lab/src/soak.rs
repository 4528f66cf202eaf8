//! Linux recorded and replayed, many times and mixed: the claim that nothing non-deterministic is left unlogged.
//!
//! Each run boots the Linux guest of `crate::linux` with one of its workloads under `ftvm record`, lets it switch itself
//! off, replays the log in a new process, and compares everything that both report, RAM included. Workload, patience,
//! verification and devices change from run to run, by the seed. One difference is a failure with a name, and its log
//! is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What the two reports must agree in.
const SAME: [&str; 6] = ["exits", "inputs", "checkpoints", "log_bytes", "memory_hash", "outcome"];
/// How the guest ends when its workload was right.
const GOOD_END: &str = "power-off";
/// Seconds for a recording: an emulated Linux boots in about 10, and workloads take less than a minute there.
const RECORD_LIMIT: &str = "400";
/// Patience in ms: eager, the default, lazy.
const PATIENCE: [u64; 3] = [10, 30, 100];
/// Rounds of the workloads in a short run: of each kind of work some, in a few seconds.
const SHORT: [(&str, u32); 8] = [
    ("cpu", 3),
    ("fork", 30),
    ("pipe", 2),
    ("tmpfs", 1),
    ("disk", 1),
    ("net", 2),
    ("sleep", 2),
    ("timers", 40),
];
/// Pairs of workloads in a short mixed run.
const SHORT_MIX: u32 = 2;
/// Of a console this much is shown with a failure.
const LAST_LINES: usize = 12;

/// How much a workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Some of it.
    Short,
    /// What it does by itself (guest-images/linux/README.md).
    Full,
}

/// The guest and how often.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// A disk with a file system for the workloads that use one; each run has a copy of its own.
    pub disk: Option<PathBuf>,
    /// Names of workloads, taken in turn.
    pub workloads: Vec<String>,
    pub length: Length,
    pub runs: u32,
    pub seed: u64,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// For logs, consoles and disks. The log of a run that failed stays there.
    pub folder: PathBuf,
}

/// One recording and its replay.
#[derive(Debug, Clone)]
pub struct Report {
    pub run: u32,
    pub workload: String,
    /// What was different or wrong; empty if nothing.
    pub wrong: Vec<String>,
    /// The figures, for `--json`.
    pub figures: Value,
}

/// Performs the runs; `each` hears of every one when it is over.
///
/// # Errors
/// If `ftvm` or the folder cannot be used; what a run finds wrong is in its report.
pub fn run(settings: &Settings, mut each: impl FnMut(&Report)) -> Result<Vec<Report>, String> {
    let ftvm = crate::ftvm()?;
    fs::create_dir_all(&settings.folder).map_err(|e| format!("{}: {e}", settings.folder.display()))?;
    if settings.workloads.is_empty() {
        return Err("no workload to run".to_owned());
    }
    let mut reports = Vec::new();
    for number in 0..settings.runs {
        let report = Run::new(settings, number).perform(&ftvm)?;
        each(&report);
        reports.push(report);
    }
    Ok(reports)
}

/// What distinguishes a run.
struct Run<'a> {
    settings: &'a Settings,
    number: u32,
    workload: &'a str,
    patience: u64,
    verify: &'static str,
}

impl<'a> Run<'a> {
    fn new(settings: &'a Settings, number: u32) -> Self {
        let turn = u64::from(number).wrapping_add(settings.seed);
        let pick = |from: u64, count: usize| usize::try_from(turn / from % count as u64).expect("small");
        let workloads = settings.workloads.len();
        Run {
            settings,
            number,
            workload: &settings.workloads[pick(1, workloads)],
            patience: PATIENCE[pick(1, PATIENCE.len())],
            verify: ["marks", "exit"][pick(2, 2)],
        }
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.settings.folder.join(format!("run-{}.{kind}", self.number))
    }

    fn perform(&self, ftvm: &Path) -> Result<Report, String> {
        let begun = Instant::now();
        let recorded = self.record(ftvm)?;
        let record_time = begun.elapsed();
        let begun = Instant::now();
        let replayed = output(Command::new(ftvm).arg("replay").arg(self.file("ftlog")).arg("--json"))?;
        let replay_time = begun.elapsed();
        let wrong = self.judge(&recorded, &replayed);
        let kept = if wrong.is_empty() {
            &["ftlog", "console", "disk"][..]
        } else {
            &["disk"]
        };
        for kind in kept {
            // A run without a disk has none to remove.
            let _ = fs::remove_file(self.file(kind));
        }
        let figures = json!({
            "run": self.number,
            "workload": self.workload,
            "patience_ms": self.patience,
            "verify": self.verify,
            "record_s": seconds(record_time),
            "replay_s": seconds(replay_time),
            "recorded": recorded.report,
            "diverged": replayed.report["diverged"],
            "wrong": wrong,
        });
        Ok(Report {
            run: self.number,
            workload: self.workload.to_owned(),
            wrong,
            figures,
        })
    }

    /// What follows the workload's name.
    fn arguments(&self) -> String {
        let rounds = SHORT.iter().find(|(name, _)| *name == self.workload);
        match (self.workload, self.settings.length, rounds) {
            ("mixed", Length::Short, _) => format!(" {} {SHORT_MIX}", self.number + 1),
            ("mixed", Length::Full, _) => format!(" {}", self.number + 1),
            (_, Length::Short, Some((_, rounds))) => format!(" {rounds}"),
            _ => String::new(),
        }
    }

    fn record(&self, ftvm: &Path) -> Result<Ended, String> {
        let settings = self.settings;
        let mut cmdline = format!(
            "quiet ftvm.run=\"/ftvm/workloads/{}.sh{}\"",
            self.workload,
            self.arguments()
        );
        let mut command = Command::new(ftvm);
        command.args([
            "record",
            "--json",
            "--overwrite",
            "--rng",
            "--seconds",
            RECORD_LIMIT,
            "--log",
        ]);
        command.arg(self.file("ftlog")).arg("--kernel").arg(&settings.kernel);
        command.arg("--initrd").arg(&settings.initrd);
        command.args(["--memory", &format!("{}M", settings.memory_mib)]);
        command.args(["--patience", &self.patience.to_string(), "--verify", self.verify]);
        command
            .arg("--console")
            .arg(format!("file={}", self.file("console").display()));
        if let Some(disk) = &settings.disk {
            let own = self.file("disk");
            fs::copy(disk, &own).map_err(|e| format!("{}: {e}", own.display()))?;
            // The folder may be in RAM, where O_DIRECT does not exist.
            command.arg("--disk").arg(format!("path={},direct=off", own.display()));
            cmdline.push_str(" ftvm.disk=/dev/vda");
        }
        output(command.args(["--cmdline", &cmdline]))
    }

    fn judge(&self, recorded: &Ended, replayed: &Ended) -> Vec<String> {
        let mut wrong = Vec::new();
        let console = fs::read_to_string(self.file("console")).unwrap_or_default();
        if recorded.code != 0 || recorded.report["outcome"] != GOOD_END {
            let lines: Vec<&str> = console.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n    ");
            wrong.push(format!("the recording: {recorded}; the console ends with\n    {last}"));
        }
        if !console.contains(&format!("workload {} ok", self.workload)) {
            wrong.push("the workload did not say that it was right".to_owned());
        }
        if replayed.code != 0 || replayed.report["diverged"] != false {
            wrong.push(format!("the replay: {replayed}"));
        }
        for field in SAME {
            let (one, other) = (&recorded.report[field], &replayed.report[field]);
            if one != other {
                wrong.push(format!("{field}: recorded {one}, replayed {other}"));
            }
        }
        wrong
    }
}

/// How an `ftvm` process ended.
struct Ended {
    code: i32,
    report: Value,
    said: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit code {}, {}, {}",
            self.code,
            self.report["outcome"],
            self.said.trim_end()
        )
    }
}

fn output(command: &mut Command) -> Result<Ended, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run ftvm: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        report: serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or(Value::Null),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
