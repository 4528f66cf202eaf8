//! The `ftvm` binary.

#![forbid(unsafe_code)]

use clap::Parser;
use ftvm_host::stdio::tell;
use ftvm_roles::exit_code::ExitCode;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// virtio-queue warns of each ring it cannot use, as often as a guest makes one; `ftvm_roles::live` tells of it once.
const FILTER: &str = "info,virtio_queue=off";

fn main() -> std::process::ExitCode {
    run().number().into()
}

fn run() -> ExitCode {
    let cli = vmm::cli::Cli::parse();
    let wanted = std::env::var("FTVM_LOG").unwrap_or_else(|_| FILTER.to_owned());
    let filter: Targets = match wanted.parse() {
        Ok(filter) => filter,
        Err(error) => {
            let expected = "expected a level such as info, or TARGET=LEVEL,...";
            tell(format_args!("ftvm: FTVM_LOG={wanted}: {error}; {expected}"));
            return ExitCode::Usage;
        }
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    vmm::command::run(cli)
}
