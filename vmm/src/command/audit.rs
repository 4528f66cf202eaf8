//! `ftvm audit`: which instructions in an image a replay would not survive.

use ftvm_host::stdio::answer;
use ftvm_roles::exit_code::ExitCode;

use crate::cli::AuditArgs;
use crate::failure::Failure;

pub(super) fn run(args: &AuditArgs) -> Result<ExitCode, Failure> {
    let report = ftvm_machine::audit::audit(&args.image)?;
    if args.json {
        answer(serde_json::to_string(&report)?)?;
    } else {
        answer(report.to_string().trim_end())?;
    }
    Ok(match report.is_clean() {
        true => ExitCode::Success,
        false => ExitCode::GuestFailed,
    })
}
