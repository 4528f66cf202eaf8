//! The end of every turn of a primary's link: outputs leave, disk requests start, and what waited for that goes on.

use shared_disk::plan::Gate;

use super::begin::LinkStage;
use super::primary::{PrimaryLink, Saved};
use super::world::{Call, PrimaryWorld};
use crate::disks::DiskShell;
use crate::event::Event;
use ftvm_machine::output::{Emission, Output};

impl<H: DiskShell> PrimaryLink<H> {
    /// The system call of an output is over ([`Call::UnderWay`]): the turn that began it goes on.
    ///
    /// # Errors
    /// The guest cannot go on here.
    pub fn call_over<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) -> Result<(), W::Error> {
        if let Some(output) = self.call.take() {
            self.call_returned(&output, world)?;
        }
        self.finish_turn(world)
    }

    /// Lets out what may leave, and sees whether that was the last thing waited for.
    pub(super) fn finish_turn<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) -> Result<(), W::Error> {
        loop {
            if self.call.is_some() || matches!(self.stage, LinkStage::Reserving(_)) {
                return Ok(());
            }
            if !self.come_live(world)? || !self.release_due(world)? {
                return Ok(());
            }
            let Some(Saved { record, mark, stopped }) = self.saved.take() else {
                break;
            };
            // What was said before the state belongs to the time before the pair, and has left.
            let mut actions = Vec::new();
            let stopped_ns = u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX);
            self.core
                .state_saved(world.now_ns(), &record, mark, stopped_ns, &mut actions);
            self.act(actions, world)?;
        }
        let mut actions = Vec::new();
        let writes = self.disks.writes();
        self.core.settled(world.now_ns(), writes, &mut actions);
        self.act(actions, world)?;
        world.offer(self.core.generation(), self.core.may_join().is_ok());
        Ok(())
    }

    /// Releases what may leave at this moment; false if a system call is under way.
    fn release_due<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) -> Result<bool, W::Error> {
        // Writes in flight live as long as the lease does, and an ack may just have renewed it.
        self.disks.extend_guard(self.core.may_write(world.now_ns()))?;
        // The clock is read before each one: nothing lies between the look at the lease and the call (PROTOCOL 12).
        while let Some(output) = self.core.next_release(world.now_ns()) {
            match world.release(&output)? {
                Call::Over => self.call_returned(&output, world)?,
                Call::UnderWay => {
                    self.call = Some(output);
                    return Ok(false);
                }
            }
        }
        while let Some(end) = self.finished.front().copied()
            && self.core.knows(&end)
        {
            self.finished.pop_front();
            self.disks.acked(end.disk, end.id)?;
        }
        if self.disks.has_ready() {
            let core = &self.core;
            self.disks.start_ready(|| core.may_write(world.now_ns()))?;
        }
        Ok(true)
    }

    /// An output has left: the log may say so (PROTOCOL 7). A disk request may start.
    fn call_returned<W: PrimaryWorld<Hands = H>>(&mut self, output: &Output, world: &mut W) -> Result<(), W::Error> {
        if let LinkStage::Resuming(resuming) = &mut self.stage {
            resuming.emitted_again(output);
            return Ok(()); // of the old life: its place in the plan is taken, and its number counted
        }
        if let Emission::Disk(request) | Emission::PrivateDisk(request) = &output.emission {
            self.disks.release(request)?;
        }
        self.core.call_returned(output.seq);
        if std::mem::take(&mut self.first_output) {
            world.report(Event::FirstOutput);
        }
        Ok(())
    }

    /// Takes over what needs a place in a plan, or is no output at all: disk requests in the order the guest made them, and a
    /// wish for entropy.
    pub(super) fn take_over<W: PrimaryWorld<Hands = H>>(
        &mut self,
        emission: &Emission,
        gate: Gate,
        world: &mut W,
    ) -> Result<(), W::Error> {
        match emission {
            Emission::Disk(request) | Emission::PrivateDisk(request) => Ok(self.disks.accept(request, gate)?),
            Emission::WantEntropy { len } => world.want_entropy(*len),
            Emission::Frame { .. } | Emission::Console { .. } => Ok(()),
        }
    }
}
