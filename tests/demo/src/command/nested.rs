//! Without /dev/kvm the demo runs in the project's nested host, if that has been built.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::DemoArgs;
use ftvm_host::stdio::tell;

/// Seconds for a nested host's own start and one kill: emulated processors are 10 to 30 times slower.
const SECONDS: (u64, u64) = (300, 300);

/// Why there is no KVM for a demo.
#[derive(Debug, thiserror::Error)]
pub enum NestedError {
    /// It is there, for others.
    #[error(
        "no permission to open /dev/kvm: add your user to the group kvm (`sudo usermod -aG kvm $USER`) and log in again"
    )]
    NoPermission,
    /// It is not there, and the nested host has not been built.
    #[error(
        "/dev/kvm cannot be opened ({source}); enable virtualization, or build the nested host, an emulated machine that has \
         one, with `cargo build --release -p ftvm-lab`, and start this again: it was looked for at {}",
        .nested.display()
    )]
    NoKvm { source: io::Error, nested: PathBuf },
    /// It has been built, and does not start.
    #[error("cannot start {}: {source}", .nested.display())]
    Start { nested: PathBuf, source: io::Error },
    /// The nested host is looked for beside this program.
    #[error("cannot find this binary: {0}")]
    Own(#[source] io::Error),
}

/// Returns if there is a /dev/kvm that may be opened; whether it is good enough, the pair's own self-test says.
/// Otherwise this process becomes a nested host, or the error says what is missing.
///
/// # Errors
/// No KVM, and no nested host either.
pub fn check_kvm(args: &DemoArgs) -> Result<(), NestedError> {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
        return Ok(());
    };
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Err(NestedError::NoPermission);
    }
    let own = std::env::current_exe().map_err(NestedError::Own)?;
    let nested = own.with_file_name("nested-host");
    if !nested.is_file() {
        return Err(NestedError::NoKvm { source: error, nested });
    }
    tell(format_args!(
        "ftvm: /dev/kvm cannot be opened ({error}); running in the nested host {} (slow)",
        nested.display()
    ));
    let source = Command::new(&nested).args(arguments(args, &own)).exec();
    Err(NestedError::Start { nested, source })
}

/// The nested host's command line; the run folders come back through its /out.
fn arguments(args: &DemoArgs, own: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["run".into(), "--timeout".into()];
    line.push((SECONDS.0 + SECONDS.1 * u64::from(args.kills)).to_string().into());
    if let Some(keep) = &args.keep {
        line.extend(["--out".into(), keep.into()]);
    }
    line.extend(["--".into(), own.into(), "demo".into()]);
    for (option, value) in [
        ("--kills", Some(u64::from(args.kills))),
        ("--seed", args.seed),
        ("--detection", Some(args.detection)),
        ("--lease", Some(args.lease)),
    ] {
        if let Some(value) = value {
            line.extend([option.into(), value.to_string().into()]);
        }
    }
    if args.json {
        line.push("--json".into());
    }
    if args.keep.is_some() {
        line.extend(["--keep".into(), "/out".into()]);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_nested_host_gets_the_same_demo() {
        let keep = Some(PathBuf::from("/home/me/demo"));
        let args = DemoArgs {
            kills: 3,
            seed: Some(9),
            json: true,
            keep,
            detection: 500,
            lease: 300,
        };
        let line: Vec<String> = arguments(&args, Path::new("/x/ftvm"))
            .into_iter()
            .map(|word| word.into_string().expect("UTF-8"))
            .collect();
        assert_eq!(
            line.join(" "),
            "run --timeout 1200 --out /home/me/demo -- /x/ftvm demo --kills 3 --seed 9 --detection 500 --lease 300 \
             --json --keep /out"
        );
    }
}
