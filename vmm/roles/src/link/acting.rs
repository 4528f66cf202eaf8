//! A primary's link carries out what its core has decided.

use super::primary::PrimaryLink;
use super::world::PrimaryWorld;
use crate::disks::DiskShell;
use crate::event::Event;
use crate::host_event::Control;
use crate::host_event::HostEvent;
use crate::host_event::StopKind;
use crate::operation::Answer;
use crate::primary::PrimaryAction;

impl<H: DiskShell> PrimaryLink<H> {
    /// Carries out what the core has decided.
    pub(super) fn act<W: PrimaryWorld<Hands = H>>(
        &mut self,
        actions: Vec<PrimaryAction>,
        world: &mut W,
    ) -> Result<(), W::Error> {
        for action in actions {
            match action {
                PrimaryAction::Send(message) => {
                    if let Some(connection) = self.connection {
                        world.send(connection, self.core.generation(), message);
                    }
                }
                PrimaryAction::Close => {
                    if let Some(connection) = self.connection.take() {
                        world.close(connection);
                    }
                }
                PrimaryAction::TakeDirty => world.tell(HostEvent::Control(Control::TakeDirty))?,
                PrimaryAction::SendPages { to, pages } => {
                    if let Some(connection) = self.connection {
                        world.send_pages(connection, self.core.generation(), to, pages);
                    }
                }
                PrimaryAction::SendBlocks { to, blocks } => {
                    if let Some(connection) = self.connection {
                        world.send_blocks(connection, self.core.generation(), to, blocks);
                    }
                }
                PrimaryAction::SaveState => world.tell(HostEvent::Control(Control::SaveState))?,
                PrimaryAction::Pace(idle) => world.pace(idle),
                PrimaryAction::StopLogging => world.stop_logging(),
                PrimaryAction::Claim(generation) => world.claim(generation, self.terms.me),
                PrimaryAction::Order(order) => world.tell(HostEvent::Control(order))?,
                PrimaryAction::PowerOff => world.tell(HostEvent::Stop(StopKind::Operator))?,
                PrimaryAction::TellFailures => {
                    for failure in std::mem::take(&mut self.withheld) {
                        world.tell(failure)?;
                    }
                }
                PrimaryAction::Answer { ticket, answer } => self.answer(ticket, answer, world),
                PrimaryAction::Die => world.die(),
                PrimaryAction::Report(event) => self.report(event, world),
                PrimaryAction::End { code, why } => self.over = Some((code, why)),
            }
        }
        if self.protection != self.core.protection() {
            self.protection = self.core.protection();
            world.show(&self.core, self.logged_to, None);
        }
        Ok(())
    }

    /// Says what has happened. Whoever hears of it and asks for the status must see it there.
    pub(super) fn report<W: PrimaryWorld<Hands = H>>(&mut self, event: Event, world: &mut W) {
        world.show(&self.core, self.logged_to, None);
        world.report(event);
    }

    fn answer<W: PrimaryWorld<Hands = H>>(&mut self, ticket: u64, answer: Answer, world: &mut W) {
        if let Some(operation) = self.asked.remove(&ticket) {
            let (done, text) = match &answer {
                Answer::Done(text) => (true, text.clone()),
                Answer::Failed(why) => (false, why.clone()),
            };
            self.report(Event::Operated { operation, done, text }, world);
            world.answer(ticket, answer);
        }
    }
}
