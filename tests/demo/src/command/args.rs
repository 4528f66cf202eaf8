//! What `ftvm demo` is asked for.

use std::path::PathBuf;

use clap::Args;

/// The command line of `ftvm demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How often the primary is killed, each time at a random point of a fresh run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub kills: u32,
    /// Random seed for the kill points
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Print one JSON object instead of the live picture
    #[arg(long)]
    pub json: bool,
    /// Keep logs, events and disks in this directory
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Detection time in ms
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(20..=60_000), value_name = "MS")]
    pub detection: u64,
    /// Lease in ms, at most the detection time
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000), value_name = "MS")]
    pub lease: u64,
}
