//! How a primary's life in this process ends: the last words, then what is left to be done for a guest that has ended here.

use super::primary::PrimaryLink;
use super::world::PrimaryWorld;
use crate::disks::DiskShell;
use crate::exit_code::ExitCode;
use crate::host_event::HostEvent;
use crate::host_event::StopKind;

/// How a primary's life in this process ended.
#[derive(Debug)]
pub struct Ended<H> {
    /// The exit code.
    pub code: ExitCode,
    pub why: String,
    /// What touches the disks, unless it has been asked to do its last. Dropping it may wait for a disk.
    pub hands: Option<H>,
}

impl<H: DiskShell> PrimaryLink<H> {
    /// Whether the guest's life has ended here, so that nobody may carry it on.
    #[must_use]
    pub fn ends_cleanly(&self) -> bool {
        let entitled = |(code, _): &(ExitCode, String)| !matches!(*code, ExitCode::Lost | ExitCode::HandedOver);
        self.over.as_ref().is_some_and(entitled) && self.core.guest_end().is_some()
    }

    /// This process is to end: the backup hears the last words. [`PrimaryLink::end`] follows when they have left.
    pub fn leave<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) {
        if let Some(connection) = self.connection.take() {
            world.close(connection);
        }
    }

    /// What is left to be done for a guest whose life has ended here; nothing leaves after this.
    pub fn end<W: PrimaryWorld<Hands = H>>(mut self, world: &mut W) -> Ended<H> {
        let cleanly = self.ends_cleanly();
        let (code, why) = self.over.take().unwrap_or((ExitCode::Error, String::new()));
        if code == ExitCode::HandedOver {
            // The vCPU thread stands still, and is of no use any more: this process may go on as a standby. If it has
            // ended, so much the better.
            let _ = world.tell(HostEvent::Stop(StopKind::Operator));
        }
        let has_private = self.disks.private_count() > 0;
        let (unfinished, hands) = self.disks.into_unfinished();
        let mut hands = Some(hands);
        if cleanly {
            if has_private
                && let Some(hands) = hands.take()
                && let Err(error) = world.finish_private(unfinished, hands)
            {
                tracing::error!("this host's private disks may differ from the backup's: {error}");
            }
            if let Err(error) = world.mark_current(self.core.generation()) {
                tracing::warn!("{error}");
            }
            world.give_disks_back();
            world.note_end();
        }
        Ended { code, why, hands }
    }
}
