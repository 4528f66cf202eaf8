//! What an operator can ask of a running guest, and what he is told.

use serde::{Deserialize, Serialize};

/// An operation; [`super::primary::Primary::operate`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// The guest's life ends, as with SIGTERM.
    PowerOff,
    /// The guest starts again from the state in which it was made.
    Reset,
    /// The guest stands still.
    Pause,
    /// It goes on.
    Resume,
    /// The backup is dismissed and no other may join.
    SuspendProtection,
    /// Backups may join again.
    ResumeProtection,
    /// The backup goes live while this side still can say when it stopped.
    Failover,
    /// This side kills itself.
    TestFailover,
    /// The backup is dismissed; another may join.
    RestartBackup,
}

impl Operation {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::PowerOff => "power-off",
            Operation::Reset => "reset",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::SuspendProtection => "suspend-protection",
            Operation::ResumeProtection => "resume-protection",
            Operation::Failover => "failover",
            Operation::TestFailover => "test-failover",
            Operation::RestartBackup => "restart-backup",
        }
    }
}

/// What an operator asks at the control socket, as one JSON line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlRequest {
    pub request: Asked,
}

/// The word of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    Status,
    #[serde(untagged)]
    Operation(Operation),
}

/// What became of an operation, in a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done(String),
    /// It is refused, or has failed: why, and what to do.
    Failed(String),
}

impl Answer {
    /// It is done.
    #[must_use]
    pub fn done(text: &str) -> Self {
        Answer::Done(text.to_owned())
    }

    /// It is refused, or has failed.
    #[must_use]
    pub fn failed(why: impl std::fmt::Display) -> Self {
        Answer::Failed(why.to_string())
    }
}

/// Why nobody would carry the guest on right now, if so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unprotected {
    /// A backup is receiving the state.
    Starting,
    /// There is none.
    NeedBackup,
    /// The operator wants none.
    Suspended,
    /// The guest has ended.
    NotRunning,
    /// This side has asked for the next generation, or has handed the guest over, and waits.
    Deciding,
}

/// Something outside that this host can lose alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    Disk(u8),
    Nic(u8),
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Disk(number) => write!(f, "disk {number}"),
            Path::Nic(number) => write!(f, "network card {number}"),
        }
    }
}
