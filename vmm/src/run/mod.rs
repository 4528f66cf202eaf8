//! What the subcommands do: shells around the pure cores, with the sockets, files, threads and clocks.

pub mod accept;
pub mod demo;
pub mod events;
pub mod follow;
pub mod guest;
pub mod heartbeat;
pub mod lead;
pub mod link;
pub mod outside;
pub mod pair;
pub mod reads;
pub mod record;
pub mod replay;
pub mod vcpu;

use std::process::ExitCode;

use crate::cli::{AuditArgs, Cli, Command};

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
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => doctor(args.json),
        Command::Audit(args) => audit(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("ftvm: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// `ftvm doctor`
fn doctor(json: bool) -> Result<u8, Failure> {
    let report = crate::hypervisor::doctor::report();
    if json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::new)?);
    } else {
        print!("{report}");
    }
    Ok(report.exit_code())
}

/// `ftvm audit`
fn audit(args: &AuditArgs) -> Result<u8, Failure> {
    let report = crate::audit::audit(&args.image).map_err(Failure::new)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::new)?);
    } else {
        print!("{report}");
    }
    Ok(report.exit_code())
}
