//! `ftvm disown`: a guest whose owner died without a clean end may be started again.

use ftvm_roles::exit_code::ExitCode;

use crate::cli::StorageArgs;
use crate::failure::Failure;

pub(super) fn run(args: &StorageArgs) -> Result<ExitCode, Failure> {
    args.shared.open(&args.name)?.disown()?;
    Ok(ExitCode::Success)
}
