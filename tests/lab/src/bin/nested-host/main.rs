//! Runs commands in nested hosts: emulated machines with `/dev/kvm`, on a machine that has none.

#![forbid(unsafe_code)]

mod linux;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ftvm_lab::nested::{Error, Host, Outcome, Run, Streams};
use serde_json::json;

/// Exit code when the command ran too long, as of coreutils' `timeout`.
const TIMEOUT: u8 = 124;
/// Exit code when the nested host itself failed.
const BROKEN: u8 = 125;

/// Run commands on an emulated machine that has /dev/kvm. Exits with the command's exit code, with 124 if the command
/// took too long, and with 125 if the nested host failed.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Boot a nested host, run one command in it as root, and end it.
    Run(RunArguments),
    /// Record and replay Linux, many times and mixed; on this machine's KVM if it has one that works.
    Soak(linux::SoakArguments),
    /// Kill the primary host of a protected Linux guest with Redis and nginx, under load.
    Failover(linux::FailoverArguments),
}

#[derive(Args)]
struct RunArguments {
    /// Seconds that the command may run, not counting the boot.
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 2)]
    smp: u32,
    /// Memory in MiB; files count too.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// Copy a file of this machine, with the libraries it needs, to /run or to GUEST.
    #[arg(long, value_name = "HOST[:GUEST]", value_parser = parse_file)]
    file: Vec<(PathBuf, PathBuf)>,
    /// Copy a program of this machine, by its name.
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// Set a variable in the command's environment.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, OsString)>,
    /// Unpack what the command leaves in /out into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one line of JSON that says how it ended; the command's stdout then goes to stderr.
    #[arg(long)]
    json: bool,
    /// The command: a path names a program of this machine, a bare word one that busybox or this machine's PATH has.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn parse_file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    if let Some((here, there)) = text.split_once(':') {
        return Ok((here.into(), there.into()));
    }
    let name = Path::new(text)
        .file_name()
        .ok_or_else(|| format!("{text:?} does not name a file"))?;
    Ok((text.into(), Path::new("/run").join(name)))
}

fn parse_variable(text: &str) -> Result<(String, OsString), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("expected NAME=VALUE, found {text:?}"))?;
    Ok((name.to_owned(), value.into()))
}

fn main() -> ExitCode {
    let arguments = match Cli::parse().action {
        Action::Run(arguments) => arguments,
        Action::Soak(arguments) => return linux::soak(&arguments),
        Action::Failover(arguments) => return linux::failover(&arguments),
    };
    let result = run(&arguments);
    if arguments.json {
        println!("{}", summary(&result));
    }
    match result {
        Ok(outcome) => ExitCode::from(outcome.code),
        Err(error) => {
            eprintln!("nested-host: {error}");
            ExitCode::from(if matches!(error, Error::Timeout { .. }) {
                TIMEOUT
            } else {
                BROKEN
            })
        }
    }
}

fn run(arguments: &RunArguments) -> Result<Outcome, Error> {
    let mut run = Run::new(&arguments.command);
    run.timeout = Duration::from_secs(arguments.timeout);
    run.processors = arguments.smp;
    run.memory_mib = arguments.memory;
    run.files.clone_from(&arguments.file);
    run.programs.clone_from(&arguments.program);
    run.environment.clone_from(&arguments.env);
    run.out.clone_from(&arguments.out);
    let mut streams = Streams::inherit();
    if arguments.json {
        streams.stdout = Box::new(io::stderr());
    }
    Host::locate()?.start(&run, streams)?.wait()
}

fn summary(result: &Result<Outcome, Error>) -> serde_json::Value {
    match result {
        Ok(outcome) => json!({
            "ended": "exit",
            "code": outcome.code,
            "boot_ms": milliseconds(outcome.boot),
            "command_ms": milliseconds(outcome.command),
        }),
        Err(error) => {
            let ended = match error {
                Error::Timeout { .. } => "timeout",
                Error::Panic { .. } => "panic",
                _ => "error",
            };
            json!({ "ended": ended, "message": error.to_string() })
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
