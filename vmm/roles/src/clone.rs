//! The rounds of a live clone: a joining backup gets the guest's pages, and the blocks of its private disks, while the guest
//! runs on (the paper's FT VMotion, section 3.1).
//!
//! First all of them, then again and again those written meanwhile, until so little is left that the pages can go with the
//! state record, for which the guest stops, and the blocks right before it, for which its writes wait. A guest that writes
//! faster than the link carries is slowed, step by step, until its rounds shrink (VMware's "stun during page send"): a
//! second at a tenth of its speed is better than a stop of a second. One for which that does not help is stopped all the same:
//! then the stop is as long as its last round. In each round blocks come first: they take longest, and what is written
//! meanwhile is in the round's pages. Pure: what was written comes in, what to send comes out.

use ftvm_machine::machine::state::PAGE;

/// So little left over is sent in the last round; what is written meanwhile goes with the state record. 2 MiB, some
/// 20 ms on a link of 1 Gbit/s, in which a guest that writes 20 MiB/s makes a hundred more pages.
const FEW: u64 = 2 << 20;

/// Rounds at most.
const ROUNDS: u32 = 16;

/// From this round on, one that does not leave at most three quarters of the last one's bytes does not shrink: the guest
/// writes as fast as the link carries.
const PATIENT_ROUNDS: u32 = 4;

/// How much a guest is slowed whose rounds do not shrink: thousandths of the time that it stands still, first, then, and at last.
const SLOWED: [u32; 3] = [500, 800, 900];

/// Which pages to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those that are not all zeros.
    All,
    These(Vec<u64>),
}

/// Which blocks of the private disks to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    All,
    /// Those written since this was last said.
    Written,
}

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Another round: look which pages have been written since the last look.
    Look,
    /// The state record: only what has been written since the last look is missing.
    State,
}

/// How far a clone has come.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    round: u32,
    /// Bytes that the round before this one had to carry.
    left: u64,
    /// What this one has to.
    carries: u64,
    pages: u64,
    bytes: u64,
    disk_bytes: u64,
    /// Steps of [`SLOWED`] taken.
    slowed: usize,
    /// The next round still carries what was written before the guest was slowed further, so its size is not judged.
    stale: bool,
}

impl Rounds {
    /// For how many thousandths of the time the guest is to stand still, from now until its state is saved.
    #[must_use]
    pub fn idle(&self) -> u32 {
        self.slowed.checked_sub(1).map_or(0, |step| SLOWED[step])
    }

    /// The blocks that begin the next round, or that follow the last one.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        if self.round == 0 { Blocks::All } else { Blocks::Written }
    }

    /// The backup has written the blocks that [`Rounds::blocks`] named: so many bytes of its disks.
    pub fn blocks_sent(&mut self, bytes: u64) {
        self.carries += bytes;
        self.disk_bytes += bytes;
    }

    /// The dirty log has been read, and begun anew: it named `pages`.
    pub fn looked(&mut self, pages: Vec<u64>) -> Selection {
        self.round += 1;
        if self.round == 1 {
            return Selection::All;
        }
        self.carries += (pages.len() * PAGE) as u64;
        Selection::These(pages)
    }

    /// A round's pages, in so many bytes, are on their way.
    pub fn sent(&mut self, pages: u64, bytes: u64) -> After {
        self.pages += pages;
        self.bytes += bytes;
        let carried = std::mem::take(&mut self.carries);
        if self.round == 1 {
            self.left = u64::MAX;
            return After::Look;
        }
        let shrinks = carried <= self.left / 4 * 3;
        self.left = carried;
        if carried <= FEW || self.round >= ROUNDS {
            return After::State;
        }
        if std::mem::take(&mut self.stale) || shrinks || self.round < PATIENT_ROUNDS {
            return After::Look;
        }
        if self.slowed == SLOWED.len() {
            return After::State;
        }
        (self.slowed, self.stale) = (self.slowed + 1, true);
        After::Look
    }

    /// Rounds begun, pages and bytes sent in them, and bytes of private disks.
    #[must_use]
    pub fn totals(&self) -> (u32, u64, u64, u64) {
        (self.round, self.pages, self.bytes, self.disk_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In pages.
    const FEW: usize = 512;

    /// The rounds of a guest that has written `written[n]` pages when the dirty log is read for the n-th time.
    fn rounds(written: impl IntoIterator<Item = usize>) -> u32 {
        let mut rounds = Rounds::default();
        for (index, pages) in written.into_iter().enumerate() {
            let selection = rounds.looked((0..pages as u64).collect());
            assert_eq!(selection == Selection::All, index == 0);
            if rounds.sent(1, 1) == After::State {
                return rounds.totals().0;
            }
        }
        panic!("no end")
    }

    #[test]
    fn a_quiet_guest_needs_two_rounds() {
        assert_eq!(rounds([70_000, FEW, 0]), 2);
        assert_eq!(rounds([70_000, FEW + 1, FEW, 0]), 3);
    }

    /// How much the guest is slowed in each round after the first three, in which it is never slowed.
    fn slowed(written: impl IntoIterator<Item = usize>) -> Vec<u32> {
        let mut rounds = Rounds::default();
        let mut slowed = Vec::new();
        for pages in written {
            rounds.looked((0..pages as u64).collect());
            slowed.push(rounds.idle());
            if rounds.sent(1, 1) == After::State {
                break;
            }
        }
        assert_eq!(slowed[..3], [0; 3]);
        slowed.split_off(3)
    }

    #[test]
    fn who_writes_as_fast_as_the_link_carries_is_slowed_before_it_is_stopped() {
        // A round after each step carries what was written before it, and is not judged.
        let never = [0, 500, 500, 800, 800, 900, 900];
        assert_eq!(slowed([9000; 20]), never);
        assert_eq!(rounds([9000; 20]), 10);
        assert_eq!(slowed([9000, 8000, 8000, 6001, 4600, 3400, FEW]), [0, 500, 500, 500]);
        assert_eq!(
            slowed([9000, 8000, 8000, 6000, 4500, 3000, FEW]),
            [0; 4],
            "6000 is three quarters"
        );
        assert_eq!(
            slowed([9000, 8000, 8000, 8000, 8000, 4000, 4000, 4000, 400]),
            [0, 500, 500, 500, 800, 800]
        );
    }

    /// The rounds of a guest that has written `written[n]` bytes of its disk, and no pages, when the n-th round begins.
    fn block_rounds(written: impl IntoIterator<Item = u64>) -> (u32, u64) {
        let mut rounds = Rounds::default();
        for (index, bytes) in written.into_iter().enumerate() {
            assert_eq!(rounds.blocks() == Blocks::All, index == 0);
            rounds.blocks_sent(bytes);
            rounds.looked(vec![]);
            if rounds.sent(0, 0) == After::State {
                return (rounds.totals().0, rounds.totals().3);
            }
        }
        panic!("no end")
    }

    #[test]
    fn blocks_count_as_pages_do() {
        let few = 2 << 20;
        assert_eq!(block_rounds([1 << 40, few, 0]), (2, (1 << 40) + few));
        assert_eq!(block_rounds([1 << 40, few + 1, few, 0]).0, 3);
        assert_eq!(block_rounds([900 << 20; 20]).0, 10, "as pages that do not shrink");
    }

    #[test]
    fn shrinking_rounds_end_too() {
        assert_eq!(rounds((0..100).map(|n| 3_000_000 >> n.min(11))), ROUNDS);
    }
}
