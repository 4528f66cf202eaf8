//! `ftvm run`: a guest as one side of a pair.

use std::time::Duration;

use ftvm_roles::exit_code::ExitCode;

use crate::backup::standby::{backup, standby};
use crate::cli::RunArgs;
use crate::control::{self, Desk};
use crate::failure::Failure;
use crate::primary::primary;

/// `ftvm run`
///
/// # Errors
/// A sentence for the user.
pub(super) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    if args.lease > args.detection {
        let text = format!(
            "--lease {} ms must not exceed --detection {} ms",
            args.lease, args.detection
        );
        return Err(Failure::usage(text));
    }
    if args.die_with_parent {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    // One thread: an output waits for a frame to leave and an ack to come back, and each change of thread on that way takes as
    // long as the network. What takes time (pages, blocks, storage) has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime?;
    let desk = Desk::default();
    let socket = args.control.as_ref().map(|path| {
        let _entered = runtime.enter();
        control::listen(path, desk.clone())
    });
    let socket = socket.transpose()?;
    let code = if args.primary {
        runtime.block_on(async {
            match primary(args, desk.clone()).await? {
                ExitCode::HandedOver if !args.peer.is_empty() => standby(args, desk).await,
                code => Ok(code),
            }
        })
    } else if args.standby {
        runtime.block_on(standby(args, desk))
    } else {
        runtime.block_on(backup(args, desk))
    };
    drop(socket);
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}
