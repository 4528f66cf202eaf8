//! Disks that do not answer: requests neither done nor failed, for longer than a disk at work takes (PROTOCOL 32).
//!
//! A request that hangs in the kernel cannot be called back. If it reads, or flushes, nobody is hurt when it ends after all:
//! the guest can be handed over, and the new host issues it again. A write may land at any later time, over what the new
//! host has written meanwhile; so nothing is handed over before it has ended, and what this side can do is say so.

use std::collections::BTreeMap;

use super::super::disks::{LateEffect, UnderWay};
use super::super::event::Event;
use super::{Primary, PrimaryAction};

/// A request that is under way for so many nanoseconds has met a disk that does not answer. A backup whose disk hangs has said
/// so by then: it looks every second, and takes 5 s without an answer for a loss.
pub const DISK_SILENCE: u64 = 7_000_000_000;

impl Primary {
    /// Which requests are under way, at every tick. Says which disks do not answer, and hands the guest over where that helps
    /// and does no harm.
    pub(crate) fn disks_under_way(&mut self, now: u64, under_way: &[UnderWay], actions: &mut Vec<PrimaryAction>) {
        let mut silent: BTreeMap<u8, (LateEffect, u64)> = BTreeMap::new();
        for request in under_way {
            let age = now.saturating_sub(request.since_ns);
            if age >= DISK_SILENCE {
                let (effect, longest) = silent.entry(request.disk).or_insert((request.effect, age));
                (*effect, *longest) = (request.effect.max(*effect), age.max(*longest));
            }
        }
        for disk in self.silent.keys().filter(|disk| !silent.contains_key(disk)) {
            actions.push(PrimaryAction::Report(Event::DiskAnswers { disk: *disk }));
        }
        let harmless = silent.values().all(|(effect, _)| *effect == LateEffect::Nothing);
        let hands_over = !silent.is_empty() && harmless && self.would_hand_over(now);
        for (disk, (effect, longest)) in &silent {
            if hands_over || self.silent.get(disk) != Some(effect) {
                actions.push(PrimaryAction::Report(Event::DiskSilent {
                    disk: *disk,
                    silent_ms: longest / 1_000_000,
                    write: *effect == LateEffect::Lands,
                    hands_over,
                }));
            }
        }
        self.silent = silent.into_iter().map(|(disk, (effect, _))| (disk, effect)).collect();
        if hands_over {
            self.hand_over(
                "a disk does not answer here, and the backup reaches everything",
                now,
                actions,
            );
        }
    }

    /// Disks that do not answer.
    pub fn silent_disks(&self) -> impl Iterator<Item = u8> {
        self.silent.keys().copied()
    }

    /// A disk that does not answer a write, if there is one: no state can be saved before that has ended (PROTOCOL 17).
    pub(super) fn hanging_write(&self) -> Option<u8> {
        let mut hanging = self.silent.iter().filter(|(_, effect)| **effect == LateEffect::Lands);
        hanging.next().map(|(disk, _)| *disk)
    }
}
