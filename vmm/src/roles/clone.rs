//! The rounds of a live clone: a joining backup gets the guest's pages while the guest runs on (the paper's FT VMotion,
//! section 3.1).
//!
//! First all pages, then again and again those written meanwhile, until so few are left that they can go with the state
//! record, for which the guest stops. A guest that writes faster than the link carries is stopped all the same after a few
//! rounds: then the stop is as long as its last round. Pure: what the dirty log said comes in, what to send comes out.

/// So few pages left over are sent in the last round; what is written meanwhile goes with the state record. 2 MiB, some
/// 20 ms on a link of 1 Gbit/s, in which a guest that writes 20 MiB/s makes a hundred more.
const FEW: usize = 512;

/// Rounds at most.
const ROUNDS: u32 = 12;

/// From this round on, one that does not leave at most three quarters of the last one's pages ends the rounds: the guest
/// writes as fast as the link carries.
const PATIENT_ROUNDS: u32 = 4;

/// Which pages to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those that are not all zeros.
    All,
    These(Vec<u64>),
}

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The dirty log is to be read again.
    Look,
    /// The state record: only what has been written since the last look is missing.
    State,
}

/// How far a clone has come.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    round: u32,
    left: usize,
    last: bool,
    pages: u64,
    bytes: u64,
}

impl Rounds {
    /// The dirty log has been read, and begun anew: it named `pages`.
    pub fn looked(&mut self, pages: Vec<u64>) -> Selection {
        self.round += 1;
        if self.round == 1 {
            self.left = usize::MAX;
            return Selection::All;
        }
        let converges = pages.len() <= self.left / 4 * 3;
        self.last = pages.len() <= FEW || self.round >= ROUNDS || (self.round >= PATIENT_ROUNDS && !converges);
        self.left = pages.len();
        Selection::These(pages)
    }

    /// A round's pages, in so many bytes, are on their way.
    pub fn sent(&mut self, pages: u64, bytes: u64) -> After {
        self.pages += pages;
        self.bytes += bytes;
        if self.last { After::State } else { After::Look }
    }

    /// Rounds begun, and pages and bytes sent in them.
    #[must_use]
    pub fn totals(&self) -> (u32, u64, u64) {
        (self.round, self.pages, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn rounds_that_do_not_shrink_end_soon() {
        assert_eq!(rounds([9000, 8000, 8000, 8000, 8000]), PATIENT_ROUNDS);
        assert_eq!(rounds([9000, 8000, 8000, 6001, 8000]), PATIENT_ROUNDS);
        assert_eq!(
            rounds([9000, 8000, 8000, 6000, 4501]),
            PATIENT_ROUNDS + 1,
            "6000 is three quarters"
        );
    }

    #[test]
    fn shrinking_rounds_end_too() {
        assert_eq!(rounds((0..100).map(|n| 3_000_000 >> n.min(11))), ROUNDS);
    }
}
