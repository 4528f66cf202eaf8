//! A primary's link carries out what its core has decided.

use super::primary::PrimaryLink;
use super::world::PrimaryWorld;
use crate::disks::DiskShell;
use crate::event::Event;
use crate::host_event::Control;
use crate::host_event::HostEvent;
use crate::host_event::StopKind;
use crate::operation::Answer;
use crate::primary::Action;

impl<H: DiskShell> PrimaryLink<H> {
    /// Carries out what the core has decided.
    pub(super) fn act<W: PrimaryWorld<Hands = H>>(
        &mut self,
        actions: Vec<Action>,
        world: &mut W,
    ) -> Result<(), W::Error> {
        for action in actions {
            match action {
                Action::Send(message) => {
                    if let Some(connection) = self.connection {
                        world.send(connection, self.core.generation(), message);
                    }
                }
                Action::Close => {
                    if let Some(connection) = self.connection.take() {
                        world.close(connection);
                    }
                }
                Action::TakeDirty => world.tell(HostEvent::Control(Control::TakeDirty))?,
                Action::SendPages { to, pages } => {
                    if let Some(connection) = self.connection {
                        world.send_pages(connection, self.core.generation(), to, pages);
                    }
                }
                Action::SendBlocks { to, blocks } => {
                    if let Some(connection) = self.connection {
                        world.send_blocks(connection, self.core.generation(), to, blocks);
                    }
                }
                Action::SaveState => world.tell(HostEvent::Control(Control::SaveState))?,
                Action::Pace(idle) => world.pace(idle),
                Action::StopLogging => world.stop_logging(),
                Action::Claim(generation) => world.claim(generation, self.terms.me),
                Action::Order(order) => world.tell(HostEvent::Control(order))?,
                Action::PowerOff => world.tell(HostEvent::Stop(StopKind::Operator))?,
                Action::TellFailures => {
                    for failure in std::mem::take(&mut self.withheld) {
                        world.tell(failure)?;
                    }
                }
                Action::Answer { ticket, answer } => self.answer(ticket, answer, world),
                Action::Die => world.die(),
                Action::Report(event) => self.report(event, world),
                Action::End { code, why } => self.over = Some((code, why)),
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
                Ok(text) => (true, text.clone()),
                Err(text) => (false, text.clone()),
            };
            self.report(Event::Operated { operation, done, text }, world);
            world.answer(ticket, answer);
        }
    }
}
