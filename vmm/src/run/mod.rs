//! What the subcommands do: shells around the pure cores, with the sockets, files, threads and clocks.

pub mod accept;
pub mod clone;
pub mod control;
pub mod copies;
pub mod demo;
mod disk_threads;
pub mod door;
pub mod events;
pub mod fence;
pub mod follow;
pub mod guest;
pub mod health;
pub mod heartbeat;
pub mod join;
pub mod lead;
pub mod link;
pub mod marks;
pub mod mirror;
pub mod operate;
pub mod outside;
pub mod pair;
pub mod protect;
pub mod reads;
pub mod record;
pub mod replay;
pub mod say;
mod shell;
pub mod vcpu;

use std::process::ExitCode;

use control::Asked;
use say::{answer, tell};

use crate::cli::{AuditArgs, Cli, Command, StorageArgs};
use crate::roles::operation::Operation;

/// Why a command failed; the text is for the user.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

impl Failure {
    /// An error with exit code 1.
    #[must_use]
    pub fn new(text: impl std::fmt::Display) -> Self {
        Failure {
            code: 1,
            text: text.to_string(),
        }
    }
}

/// Runs the command line.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Record(args) => record::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Guests(args) => guest::list(args.json),
        Command::Run(args) => pair::run(&args),
        Command::Disown(args) => disown(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => operate::run(Asked::Status, &args),
        Command::PowerOff(args) => operate::run(Asked::Operation(Operation::PowerOff), &args),
        Command::Reset(args) => operate::run(Asked::Operation(Operation::Reset), &args),
        Command::Pause(args) => operate::run(Asked::Operation(Operation::Pause), &args),
        Command::Resume(args) => operate::run(Asked::Operation(Operation::Resume), &args),
        Command::SuspendProtection(args) => operate::run(Asked::Operation(Operation::SuspendProtection), &args),
        Command::ResumeProtection(args) => operate::run(Asked::Operation(Operation::ResumeProtection), &args),
        Command::Failover(args) => operate::run(Asked::Operation(Operation::Failover), &args),
        Command::TestFailover(args) => operate::run(Asked::Operation(Operation::TestFailover), &args),
        Command::RestartBackup(args) => operate::run(Asked::Operation(Operation::RestartBackup), &args),
        Command::Doctor(args) => doctor(args.json),
        Command::Audit(args) => audit(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            tell(format_args!("ftvm: {failure}"));
            ExitCode::from(failure.code)
        }
    }
}

/// `ftvm disown`
fn disown(args: &StorageArgs) -> Result<u8, Failure> {
    let arbiter = args.shared.open(&args.name).map_err(Failure::new)?;
    arbiter.disown().map_err(Failure::new)?;
    Ok(0)
}

/// `ftvm doctor`
fn doctor(json: bool) -> Result<u8, Failure> {
    let report = crate::hypervisor::doctor::report();
    if json {
        answer(serde_json::to_string(&report).map_err(Failure::new)?)?;
    } else {
        answer(report.to_string().trim_end())?;
    }
    Ok(report.exit_code())
}

/// `ftvm audit`
fn audit(args: &AuditArgs) -> Result<u8, Failure> {
    let report = crate::audit::audit(&args.image).map_err(Failure::new)?;
    if args.json {
        answer(serde_json::to_string(&report).map_err(Failure::new)?)?;
    } else {
        answer(report.to_string().trim_end())?;
    }
    Ok(report.exit_code())
}
