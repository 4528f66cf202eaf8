//! The `ftvm` binary.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The rings' library tells of each one it cannot use, as often as a guest likes; `roles::live` tells of it once.
const FILTER: &str = "info,virtio_queue=off";

fn main() -> ExitCode {
    let cli = vmm::cli::Cli::parse();
    let filter = EnvFilter::try_from_env("FTVM_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    vmm::run::run(cli)
}
