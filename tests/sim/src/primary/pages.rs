//! The thread of a simulated primary that sends pages to a joining backup.

use ftvm_machine::machine::pages::{Zeros, copy_pages};
use ftvm_roles::clone::Selection;
use ftvm_roles::link::world::LinkEvent;
use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::{MAX_PAGES, Message};

use super::super::checks::NO_FAILURE;
use super::super::common::Common;
use super::super::env::{Env, Point, US, What};
use super::{Side, SimPrimary};

/// Pages on their way to a joining backup.
#[derive(Debug)]
pub(super) struct Sending {
    to: Incarnation,
    generation: Generation,
    pages: Vec<u64>,
    zeros: Zeros,
    sent: u64,
    bytes: u64,
}

impl Side {
    /// The thread that sends pages: it copies some, waits, copies more; the guest runs on.
    pub(super) fn send_pages(
        &mut self,
        env: &mut Env,
        common: &Common,
        (generation, to): (Generation, Incarnation),
        pages: Selection,
    ) {
        let (pages, zeros) = match pages {
            Selection::All => ((0..env.guest.pages()).collect(), Zeros::LeftOut),
            Selection::These(pages) => (pages, Zeros::Taken),
        };
        self.sending = Some(Sending {
            to,
            generation,
            pages,
            zeros,
            sent: 0,
            bytes: 0,
        });
        env.after(US, common.id, What::SendPages);
    }
}

impl SimPrimary {
    /// It sends some of them.
    pub fn send_some(&mut self, env: &mut Env, common: &mut Common) {
        let side = &mut self.side;
        let Some(sending) = &mut side.sending else { return };
        let some = usize::try_from(env.rng.between(1, MAX_PAGES as u64)).expect("small");
        let rest = sending.pages.split_off(some.min(sending.pages.len()));
        let some = std::mem::replace(&mut sending.pages, rest);
        match copy_pages(side.vcpu.live.machine().memory(), &some, sending.zeros) {
            Ok((numbers, content)) if !numbers.is_empty() => {
                sending.sent += numbers.len() as u64;
                sending.bytes += content.len() as u64;
                common.send(env, sending.generation, &Message::Pages { numbers, content });
                env.reach(Point::Send, common.id);
            }
            Ok(_) => {}
            Err(error) => return env.checks.fail(env.now, NO_FAILURE, error.to_string()),
        }
        let Some(Sending {
            to, pages, sent, bytes, ..
        }) = &side.sending
        else {
            return;
        };
        if pages.is_empty() {
            let (to, pages, bytes) = (*to, *sent, *bytes);
            side.sending = None;
            common.link.push_back(LinkEvent::PagesSent { to, pages, bytes });
            common.wake(env, 0);
        } else {
            let delay = env.rng.between(US, 500 * US);
            env.after(delay, common.id, What::SendPages);
        }
    }
}
