//! How `ftvm` ends: the one table of its exit codes, from which `--help` and every decision take them.

use serde::{Deserialize, Serialize};

/// With which code a process of `ftvm` ends. Scripts and service managers act on these numbers, so they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum ExitCode {
    /// The command did what it was asked, or the guest ended by itself or because it was asked to.
    Success = 0,
    /// Something else failed: this host's devices, storage, a file, the network.
    Error = 1,
    /// The command line asks for what cannot be (clap ends with the same code).
    Usage = 2,
    /// The guest failed, or `ftvm audit` found what a replay would not survive.
    GuestFailed = 3,
    /// A replay did not come where the recording came.
    Diverged = 4,
    /// A log is not whole.
    DamagedLog = 5,
    /// This side lost the test-and-set, or has seen a higher generation (PROTOCOL 11).
    Lost = 10,
    /// A backup left without having been entitled to go live (PROTOCOL 16, 17).
    NotEntitled = 11,
    /// The guest of this primary lives on at its backup because it was wanted so (PROTOCOL 28).
    HandedOver = 12,
    /// Ctrl-C ended a demo; the number is the one that shells give a process that SIGINT has ended.
    Interrupted = 130,
}

impl ExitCode {
    /// All of them, by number.
    pub const ALL: [ExitCode; 10] = [
        ExitCode::Success,
        ExitCode::Error,
        ExitCode::Usage,
        ExitCode::GuestFailed,
        ExitCode::Diverged,
        ExitCode::DamagedLog,
        ExitCode::Lost,
        ExitCode::NotEntitled,
        ExitCode::HandedOver,
        ExitCode::Interrupted,
    ];

    /// The number that the process ends with.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// What it tells a user.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            ExitCode::Success => "the guest ended cleanly, or the command did what it was asked",
            ExitCode::Error => "error: the message says what was expected, what was found and what to do",
            ExitCode::Usage => "wrong command line",
            ExitCode::GuestFailed => {
                "the guest failed, or switched itself off with a status other than 0; `audit` found what a replay would not \
                 survive"
            }
            ExitCode::Diverged => "a replay diverged",
            ExitCode::DamagedLog => "a log is truncated or damaged (everything before the damage was replayed)",
            ExitCode::Lost => {
                "another side is live: the test-and-set was lost, a higher generation was seen, or a disk is fenced off"
            }
            ExitCode::NotEntitled => {
                "the backup left the pair without having been entitled to go live (diverged, refused, dismissed, or \
                 incomplete)"
            }
            ExitCode::HandedOver => {
                "the guest was handed over to its backup (`ftvm failover`, or a path that only this host had lost)"
            }
            ExitCode::Interrupted => "`ftvm demo` was interrupted (Ctrl-C)",
        }
    }
}

impl From<ExitCode> for u8 {
    fn from(code: ExitCode) -> u8 {
        code.number()
    }
}

impl std::fmt::Display for ExitCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number().fmt(f)
    }
}

/// A number that `ftvm` never ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no exit code of ftvm's")]
pub struct UnknownExitCode(u8);

impl TryFrom<u8> for ExitCode {
    type Error = UnknownExitCode;

    fn try_from(number: u8) -> Result<Self, UnknownExitCode> {
        let known = ExitCode::ALL.into_iter().find(|code| code.number() == number);
        known.ok_or(UnknownExitCode(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_table_once_and_has_its_number() {
        let numbers = ExitCode::ALL.map(ExitCode::number);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 10, 11, 12, 130], "scripts act on these");
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::try_from(code.number()), Ok(code));
            assert!(!code.meaning().is_empty());
        }
        assert_eq!(ExitCode::try_from(6), Err(UnknownExitCode(6)));
    }
}
