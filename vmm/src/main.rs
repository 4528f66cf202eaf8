//! The `ftvm` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The rings' library tells of each one it cannot use, as often as a guest likes; `roles::live` tells of it once.
const FILTER: &str = "info,virtio_queue=off";

fn main() -> ExitCode {
    let cli = vmm::cli::Cli::parse();
    let wanted = std::env::var("FTVM_LOG").unwrap_or_else(|_| FILTER.to_owned());
    let filter: Targets = match wanted.parse() {
        Ok(filter) => filter,
        Err(error) => {
            let expected = "expected a level such as info, or TARGET=LEVEL,...";
            ftvm_host::stdio::tell(format_args!("ftvm: FTVM_LOG={wanted}: {error}; {expected}"));
            return ExitCode::from(2);
        }
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    vmm::run::run(cli)
}
