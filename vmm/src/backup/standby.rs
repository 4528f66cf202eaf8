//! `ftvm run --backup`, which joins one primary, and `--standby`, which waits for whoever needs a backup.

use std::time::Duration;

use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_schema::entry::Incarnation;

use super::join::{Joiner, ONCE, PATIENT};
use super::life::{BackupOutcome, protect};
use crate::cli::RunArgs;
use crate::control::Desk;
use crate::events::Reporter;
use crate::failure::Failure;

/// Between two looks of a standby at its peers.
const STANDBY_PAUSE: Duration = Duration::from_millis(500);

/// Joins the one peer and follows it, until that ends or a new life has ended.
pub(crate) async fn backup(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let [peer] = args.peer[..] else {
        let text = format!(
            "--backup joins one --peer, {} were given; --standby takes several",
            args.peer.len()
        );
        return Err(Failure::usage(text));
    };
    let joiner = Joiner::new(args, desk)?;
    let joined = joiner.join(peer, PATIENT).await?;
    Ok(match protect(&joiner, peer, joined).await? {
        BackupOutcome::Followed { code, .. } | BackupOutcome::Led(code) => code,
    })
}

/// Waits for a guest that needs a backup, becomes that, and again when the place is lost without having lived. Each try is
/// another incarnation: a backup is never taken for the one that was there before it.
pub(crate) async fn standby(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let mut reporter = Reporter::open("standby", args.events.as_deref())?;
    let mut joiner = Joiner::new(args, desk)?;
    let mut said = String::new();
    loop {
        for peer in &args.peer {
            joiner.me = Incarnation(ftvm_host::entropy::random_u128()?);
            let why = match joiner.join(*peer, ONCE).await {
                Err(failure) => format!("{peer}: {failure}"),
                Ok(joined) => match protect(&joiner, *peer, joined).await? {
                    BackupOutcome::Followed {
                        code: code @ (ExitCode::Lost | ExitCode::NotEntitled),
                        claimed: false,
                    } => format!("{peer}: this backup left the pair with code {code}"),
                    BackupOutcome::Led(ExitCode::HandedOver) => "the guest has been handed over".to_owned(),
                    BackupOutcome::Followed { code, .. } | BackupOutcome::Led(code) => return Ok(code),
                },
            };
            joiner.desk.stands_by();
            if why != said {
                reporter.report(Event::StandingBy { why: why.clone() });
                said = why;
            }
        }
        tokio::time::sleep(STANDBY_PAUSE).await;
    }
}
