//! What each command of `ftvm` does, one file a command.

mod audit;
mod disown;
mod doctor;
mod guests;
mod operate;
mod record;
mod replay;
mod run;

use ftvm_demo::command::DemoError;
use ftvm_host::stdio::tell;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::operation::Operation;

use crate::cli::{Cli, Command};
use crate::control::Asked;
use crate::failure::Failure;

/// Runs the command line, and tells the user on standard error if that fails. What this process is to end with.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match carry_out(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            tell(format_args!("ftvm: {failure}"));
            failure.code()
        }
    }
}

fn carry_out(command: Command) -> Result<ExitCode, Failure> {
    let operate = |operation, args| operate::run(Asked::Operation(operation), args);
    match command {
        Command::Run(args) => run::run(&args),
        Command::Disown(args) => disown::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Status(args) => operate::run(Asked::Status, &args),
        Command::PowerOff(args) => operate(Operation::PowerOff, &args),
        Command::Reset(args) => operate(Operation::Reset, &args),
        Command::Pause(args) => operate(Operation::Pause, &args),
        Command::Resume(args) => operate(Operation::Resume, &args),
        Command::SuspendProtection(args) => operate(Operation::SuspendProtection, &args),
        Command::ResumeProtection(args) => operate(Operation::ResumeProtection, &args),
        Command::Failover(args) => operate(Operation::Failover, &args),
        Command::TestFailover(args) => operate(Operation::TestFailover, &args),
        Command::RestartBackup(args) => operate(Operation::RestartBackup, &args),
        Command::Demo(args) => match ftvm_demo::command::run(&args) {
            Ok(()) => Ok(ExitCode::Success),
            Err(error) => Err(Failure::with(demo_code(&error), error)),
        },
        Command::Doctor(args) => doctor::run(&args),
        Command::Guests(args) => guests::run(&args),
        Command::Audit(args) => audit::run(&args),
    }
}

fn demo_code(error: &DemoError) -> ExitCode {
    match error {
        DemoError::Interrupted => ExitCode::Interrupted,
        DemoError::LeaseOverDetection { .. } => ExitCode::Usage,
        _ => ExitCode::Error,
    }
}
