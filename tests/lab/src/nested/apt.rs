//! apt without root: packages are fetched into a folder of the caller's and never installed.
//!
//! apt's own files stay in that folder too. The machine's package lists serve as long as they have what is asked for;
//! when they are missing or too old, current ones are fetched, again into the folder.

use std::fs;
use std::path::Path;
use std::process::Command;

/// One retry and half a minute for each transfer: a machine without network must say so soon.
const LIMITS: [&str; 4] = [
    "-oAcquire::Retries=1",
    "-oAcquire::http::Timeout=30",
    "-oAPT::Sandbox::User=root",
    "-qq",
];

/// apt's programs, run in a folder.
#[derive(Debug)]
pub(crate) struct Apt<'a> {
    work: &'a Path,
    options: Vec<String>,
}

impl Apt<'_> {
    /// Does `attempt` with this machine's package lists and, if that fails, once more with current ones. The folder
    /// `work` must exist.
    ///
    /// # Errors
    /// Says what failed at either attempt.
    pub(crate) fn with_lists<T>(work: &Path, attempt: impl Fn(&Apt<'_>) -> Result<T, String>) -> Result<T, String> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(folder)).map_err(|e| format!("{}: {e}", work.display()))?;
        }
        let mut apt = Apt {
            work,
            options: vec![format!("-oDir::Cache={}", work.join("cache").display())],
        };
        attempt(&apt).or_else(|first| {
            apt.options
                .push(format!("-oDir::State::Lists={}", work.join("lists").display()));
            apt.run("apt-get", &[&["update"], &LIMITS[..]].concat())
                .and_then(|_| attempt(&apt))
                .map_err(|second| format!("{first}; with fresh package lists: {second}"))
        })
    }

    /// What `apt-cache` prints for these arguments.
    ///
    /// # Errors
    /// Says what `apt-cache` said.
    pub(crate) fn cache(&self, arguments: &[&str]) -> Result<String, String> {
        self.run("apt-cache", arguments)
    }

    /// Fetches a package, NAME or NAME=VERSION, into the folder.
    ///
    /// # Errors
    /// Says what `apt-get` said.
    pub(crate) fn download(&self, package: &str) -> Result<(), String> {
        self.run("apt-get", &[&["download", package], &LIMITS[..]].concat())
            .map(drop)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let options = self.options.iter().map(String::as_str);
        let all: Vec<&str> = arguments.iter().copied().chain(options).collect();
        run(self.work, program, &all)
    }
}

/// Runs a program in a folder and returns what it prints.
///
/// # Errors
/// Fails when the program cannot be started or fails; says what it said.
pub(crate) fn run(dir: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output();
    let ran = ran.map_err(|e| format!("{program}: {e}"))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    Err(format!(
        "`{program} {}` failed: {}",
        arguments.first().unwrap_or(&""),
        said.trim()
    ))
}
