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
pub mod record;
pub mod replay;
pub mod vcpu;

use std::process::ExitCode;

use crate::cli::{Cli, Command};

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
        Command::Doctor(_) => Err(Failure::new("not yet")),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("ftvm: {failure}");
            ExitCode::from(failure.code)
        }
    }
}
