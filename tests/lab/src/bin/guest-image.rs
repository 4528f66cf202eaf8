//! Builds the Linux guest: kernel, initial RAM file system, disk. See `guest-images/linux/README.md`.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ftvm_lab::linux::lock::Set;
use ftvm_lab::linux::{self, DISK_MIB, Error, Settings};

/// Build the Linux guest from Debian's packages.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write vmlinuz, initrd and, on request, disk to a folder.
    Build(BuildArguments),
    /// Lock the package versions that Debian's archive has now.
    UpdateLock,
}

#[derive(Args)]
struct BuildArguments {
    /// Folder for the files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A script that the guest runs when it is up.
    #[arg(long, value_name = "FILE")]
    run: Option<PathBuf>,
    /// Make a disk of this size.
    #[arg(long, value_name = "MIB", value_parser = disk_size)]
    disk: Option<u32>,
    /// Put this on the disk (which is of 256 MiB then, unless --disk says otherwise): redis, nginx, sqlite.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = package_set)]
    with: Vec<Set>,
    /// Fail where Debian's archive has replaced a version of packages.lock, instead of building with what it has now.
    #[arg(long)]
    locked: bool,
}

/// Room for all packages and for as much data again.
const DEFAULT_DISK_MIB: u32 = 256;

fn disk_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|mib| DISK_MIB.contains(mib));
    size.ok_or_else(|| format!("expected {} to {} MiB", DISK_MIB.start(), DISK_MIB.end()))
}

fn package_set(name: &str) -> Result<Set, String> {
    let set = Set::find(name).filter(|set| *set != Set::Base);
    set.ok_or_else(|| "expected redis, nginx or sqlite".to_owned())
}

fn main() -> ExitCode {
    let done = match Cli::parse().action {
        Action::Build(arguments) => build(arguments),
        Action::UpdateLock => linux::update_lock().map(|_| ()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(arguments: BuildArguments) -> Result<(), Error> {
    let default = (!arguments.with.is_empty()).then_some(DEFAULT_DISK_MIB);
    let built = linux::build(&Settings {
        out: arguments.out,
        run: arguments.run,
        disk_mib: arguments.disk.or(default),
        sets: arguments.with,
        locked: arguments.locked,
    })?;
    for file in [Some(built.kernel), Some(built.initrd), built.disk]
        .into_iter()
        .flatten()
    {
        println!("{}", file.display());
    }
    Ok(())
}
