//! `ftvm guests`: the guests that are built in.

use ftvm_host::stdio::answer;
use ftvm_roles::exit_code::ExitCode;

use crate::cli::GuestsArgs;
use crate::failure::Failure;

pub(super) fn run(args: &GuestsArgs) -> Result<ExitCode, Failure> {
    let guests = guest_images::all();
    if args.json {
        let list: Vec<_> = guests
            .iter()
            .map(|guest| serde_json::json!({ "name": guest.name, "about": guest.about, "bytes": guest.image.len() }))
            .collect();
        answer(serde_json::Value::Array(list))?;
    } else {
        for guest in guests {
            let (name, bytes) = (guest.name, guest.image.len());
            answer(format_args!("builtin:{name:<8} {bytes:>8} bytes  {}", guest.about))?;
        }
    }
    Ok(ExitCode::Success)
}
