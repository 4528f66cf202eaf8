//! How a primary begins, where the guest is started and where it goes live: one order for both.
//!
//! 1. The disks are opened, and those whose device can do it refuse every other host's writes.
//! 2. The private disks are marked as the newest.
//! 3. Clients see a primary.
//! 4. At a go-live: disk requests are issued again, outputs emitted again, entropy asked for again (PROTOCOL 7, 8).
//! 5. Inputs are taken, and backups may join.
//!
//! By then this side has won the right to live: by the start's or by its claim's test-and-set.

use std::collections::VecDeque;

use ftvm_schema::entry::Generation;
use shared_disk::plan::Gate;

use super::primary::{ANNOUNCEMENTS, PrimaryLink};
use super::world::{Call, PrimaryWorld};
use crate::disks::DiskShell;
use crate::disks::Writes;
use crate::event::Event;
use crate::following::Takeover;
use crate::primary::Primary;
use crate::terms::Terms;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::{Emission, Output};

/// How a primary came to be one.
#[derive(Debug)]
pub enum Beginning {
    /// The guest is started here.
    Started,
    /// It goes live here, at its horizon.
    WentLive(Box<Takeover>),
}

/// How far a primary's beginning has come.
#[derive(Debug)]
pub(super) enum LinkStage {
    /// Disks whose device can do it are being reserved for this host.
    Reserving(Beginning),
    /// Outputs of the old life are emitted again.
    Resuming(Box<Resuming>),
    /// The guest lives here.
    Leading,
}

/// A new life that takes up what the old one has left.
#[derive(Debug)]
pub(super) struct Resuming {
    outputs: VecDeque<Output>,
    entropy: Option<u32>,
    reissued: u64,
    reemitted: u64,
}

impl Resuming {
    pub fn emitted_again(&mut self, output: &Output) {
        // Disk requests are issued again, by their place in the plan.
        self.reemitted += u64::from(!matches!(output.emission, Emission::Disk(_)));
    }
}

/// Whether there is a guest already.
#[derive(Clone, Copy, Debug)]
enum Guest {
    /// Somebody waits for its start, who can mend what is wrong.
    NotYet,
    /// It lives, and nobody else carries it on.
    Lives,
}

impl Guest {
    /// What a start fails for, and a guest that lives has to go without.
    fn needs<E: std::error::Error>(self, done: Result<(), E>, without: &str) -> Result<(), E> {
        match (self, done) {
            (Guest::Lives, Err(error)) => {
                tracing::warn!("{without}: {error}");
                Ok(())
            }
            (_, done) => done,
        }
    }
}

impl<H: DiskShell> PrimaryLink<H> {
    /// A primary begins under the generation of `terms`, which it has won; `boot` has the state to reset to, or will have
    /// it. Nothing runs or is written before [`PrimaryLink::disks_reserved`].
    ///
    /// # Errors
    /// A disk cannot be opened.
    pub fn begin<W: PrimaryWorld<Hands = H>>(
        terms: Terms,
        boot: BootCell,
        beginning: Beginning,
        world: &mut W,
    ) -> Result<Self, W::Error> {
        let paused = match &beginning {
            Beginning::Started => false,
            Beginning::WentLive(takeover) => takeover.paused,
        };
        let disks = world.open_disks()?;
        let core = Primary::new(terms)
            .with(boot, paused)
            .with_private_disks(disks.private_count());
        world.reserve_disks();
        Ok(PrimaryLink::new(core, terms, LinkStage::Reserving(beginning), disks))
    }

    /// Nobody else writes to the disks any more: the guest may live here.
    ///
    /// # Errors
    /// The guest cannot live here.
    pub fn disks_reserved<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) -> Result<(), W::Error> {
        let LinkStage::Reserving(beginning) = std::mem::replace(&mut self.stage, LinkStage::Leading) else {
            return Ok(());
        };
        let generation = self.core.generation();
        let guest = match &beginning {
            Beginning::Started => Guest::NotYet,
            Beginning::WentLive(_) => Guest::Lives,
        };
        let marked = world.mark_current(generation);
        guest.needs(marked, "a private disk is not marked as the newest")?;
        world.take_operations(&self.core);
        match beginning {
            Beginning::Started => {
                self.take_up(guest, world)?;
                let Generation(generation) = generation;
                world.report(Event::Leading { generation });
            }
            Beginning::WentLive(takeover) => {
                self.core.came_over(world.now_ns());
                self.resume(*takeover)?;
            }
        }
        self.finish_turn(world)
    }

    /// From here on the guest hears what happens outside, and whoever hears of it may ask, give orders and join.
    fn take_up<W: PrimaryWorld<Hands = H>>(&mut self, guest: Guest, world: &mut W) -> Result<(), W::Error> {
        world.take_inputs()?;
        guest.needs(world.listen_for_backups(), "no backup can join")
    }

    /// Disk requests again, in the order of the plan; outputs again, which follow in the turn.
    fn resume<E>(&mut self, takeover: Takeover) -> Result<(), E>
    where
        E: From<crate::disks::DisksError<H::Error>>,
    {
        let reissued = takeover.requests.len() as u64;
        for request in &takeover.requests {
            self.disks.accept(request, Gate::Open)?;
        }
        self.disks.start_ready(|| Writes::Freely)?;
        self.stage = LinkStage::Resuming(Box::new(Resuming {
            outputs: takeover.outputs.into(),
            entropy: takeover.entropy,
            reissued,
            reemitted: 0,
        }));
        Ok(())
    }

    /// Takes up what the old life has left, before anything new; false while a system call is under way.
    pub(super) fn come_live<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) -> Result<bool, W::Error> {
        let LinkStage::Resuming(resuming) = &mut self.stage else {
            return Ok(true);
        };
        while let Some(output) = resuming.outputs.pop_front() {
            match world.release(&output)? {
                Call::Over => resuming.emitted_again(&output),
                Call::UnderWay => {
                    self.call = Some(output);
                    return Ok(false);
                }
            }
        }
        let (entropy, reissued, reemitted) = (resuming.entropy, resuming.reissued, resuming.reemitted);
        self.stage = LinkStage::Leading;
        if let Some(len) = entropy {
            world.want_entropy(len)?;
        }
        let Generation(generation) = self.core.generation();
        self.report(
            Event::WentLive {
                generation,
                reissued,
                reemitted,
            },
            world,
        );
        self.first_output = reemitted == 0;
        if reemitted > 0 {
            world.report(Event::FirstOutput);
        }
        self.announcements = ANNOUNCEMENTS;
        self.take_up(Guest::Lives, world)?;
        tracing::debug!(reissued, reemitted, "resumed");
        Ok(true)
    }
}
