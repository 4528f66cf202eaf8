//! Primary and backup as processes: started from this very binary, killed, asked to end, never left behind.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::act::ActError;

/// Of what a process said on standard error, this much is shown when something goes wrong.
const LAST_BYTES: u64 = 4096;
const LAST_LINES: usize = 8;

/// How often a process that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// One side of the pair. Dropping it kills it.
#[derive(Debug)]
pub struct Side {
    name: &'static str,
    child: Child,
    stderr: PathBuf,
}

impl Side {
    /// Starts `ftvm run` with `args`; what it says on standard error goes to the file `stderr`.
    ///
    /// # Errors
    /// If this binary cannot be started again.
    pub fn start(name: &'static str, args: &[String], stderr: &Path) -> Result<Side, ActError> {
        let failed = |what: &str, error: std::io::Error| ActError::host(format!("cannot {what}"), error);
        let binary = std::env::current_exe().map_err(|e| failed("find this binary", e))?;
        let log = File::create(stderr).map_err(|e| failed(&format!("create {}", stderr.display()), e))?;
        let mut command = Command::new(&binary);
        // Its own process group: Ctrl-C is for the demo, which then ends both in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .arg("run")
            .args(args)
            .arg("--die-with-parent")
            .env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command
            .spawn()
            .map_err(|e| failed(&format!("start {}", binary.display()), e))?;
        Ok(Side {
            name,
            child,
            stderr: stderr.to_owned(),
        })
    }

    /// SIGKILL: the process dies without another instruction. It stays a zombie until [`Side::wait`].
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(&mut self) -> Result<(), ActError> {
        self.expect_alive()?;
        self.child
            .kill()
            .map_err(|e| ActError::host(format!("cannot kill the {}", self.name), e))
    }

    /// Asks it to end with SIGTERM, and waits for that.
    ///
    /// # Errors
    /// If it has ended before, or does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, ActError> {
        self.expect_alive()?;
        let failed = || format!("cannot end the {}", self.name);
        let pid = i32::try_from(self.child.id()).map_err(|e| ActError::host(failed(), e))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| ActError::host(failed(), e))?;
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                let what = format!("the {} did not end within {} s of SIGTERM", self.name, limit.as_secs());
                return Err(ActError::Failed {
                    what,
                    said: self.last_words(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// [`ActError::Failed`] with what it said last.
    pub fn expect_alive(&mut self) -> Result<(), ActError> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => {
                let what = format!("the {} ended by itself: {status}", self.name);
                Err(ActError::Failed {
                    what,
                    said: self.last_words(),
                })
            }
        }
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        let tail = tail(&self.stderr).unwrap_or_else(|error| format!("(unreadable: {error})"));
        let lines: Vec<&str> = tail.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        format!("\n  the {} said last:\n    {}", self.name, last.join("\n    "))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, ActError> {
        self.child
            .try_wait()
            .map_err(|e| ActError::host(format!("cannot watch the {}", self.name), e))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Fails only if it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LAST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
