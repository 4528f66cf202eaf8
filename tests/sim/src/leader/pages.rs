//! The thread of a simulated primary that sends pages to a joining backup.

use ftvm_machine::machine::pages::{Zeros, copy_pages};
use ftvm_roles::clone::Selection;
use ftvm_schema::entry::Incarnation;
use logging_channel::message::{MAX_PAGES, Message};

use super::super::common::{Common, LinkEvent};
use super::super::env::{Env, Point, US, What};
use super::Leader;

/// Pages on their way to a joining backup.
#[derive(Debug)]
pub(super) struct Sending {
    to: Incarnation,
    pages: Vec<u64>,
    zeros: Zeros,
    sent: u64,
}

impl Leader {
    /// The thread that sends pages: it copies some, waits, copies more; the guest runs on.
    pub(super) fn send_pages(&mut self, env: &mut Env, common: &Common, to: Incarnation, pages: Selection) {
        let (pages, zeros) = match pages {
            Selection::All => ((0..env.guest.pages()).collect(), Zeros::LeftOut),
            Selection::These(pages) => (pages, Zeros::Taken),
        };
        self.sending = Some(Sending {
            to,
            pages,
            zeros,
            sent: 0,
        });
        env.after(US, common.id, What::SendPages);
    }

    /// It sends some of them.
    pub fn send_some(&mut self, env: &mut Env, common: &mut Common) {
        let Some(sending) = &mut self.sending else { return };
        let some = usize::try_from(env.rng.between(1, MAX_PAGES as u64)).expect("small");
        let rest = sending.pages.split_off(some.min(sending.pages.len()));
        let some = std::mem::replace(&mut sending.pages, rest);
        let copied = copy_pages(self.vcpu.live.machine().memory(), &some, sending.zeros);
        match copied {
            Ok((numbers, content)) if !numbers.is_empty() => {
                sending.sent += numbers.len() as u64;
                common.send(env, self.core.generation(), &Message::Pages { numbers, content });
                env.reach(Point::Send, common.id);
            }
            Ok(_) => {}
            Err(error) => return self.expect(env, common, Err(error.to_string())),
        }
        let Some(sending) = &self.sending else { return };
        if sending.pages.is_empty() {
            let event = LinkEvent::PagesSent(sending.to, sending.sent);
            self.sending = None;
            common.link.push_back(event);
            common.wake(env, 0);
        } else {
            let delay = env.rng.between(US, 500 * US);
            env.after(delay, common.id, What::SendPages);
        }
    }
}
