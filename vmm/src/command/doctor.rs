//! `ftvm doctor`: what this machine's KVM can do, and what to do where it cannot.

use ftvm_host::stdio::answer;
use ftvm_roles::exit_code::ExitCode;

use crate::cli::DoctorArgs;
use crate::failure::Failure;

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let report = ftvm_kvm::doctor::report();
    if args.json {
        answer(serde_json::to_string(&report)?)?;
    } else {
        answer(report.to_string().trim_end())?;
    }
    // Limits are no failure: guests can be protected here, and the report says which cannot.
    Ok(match report.capabilities.is_usable() {
        true => ExitCode::Success,
        false => ExitCode::Error,
    })
}
