//! Which pages a guest writes again and again.
//!
//! A page that is to be in the next checkpoint only if it is written is write-protected, and its first write costs the
//! guest a fault. To carry a page that has not changed costs less than that, or not much more. So a page that was
//! written in one checkpoint and soon again stays writable, and is in every checkpoint, until it is seen unchanged for
//! a while. A page that is carried for nothing is harmless: a checkpoint may hold more than what was written (DESIGN,
//! idea 3).
//!
//! Only the side that makes checkpoints knows this; nothing of it is in a record.

use std::collections::BTreeMap;

/// A page stays writable once it is written again at most so many checkpoints after the last time, until more than so
/// many in a row have found it unchanged.
const AGAIN_WITHIN: u64 = 4;

/// Most pages that stay writable: what carrying them unchanged costs a checkpoint is bounded by this.
const MOST_KEPT: usize = 2048;

/// What is known of a page.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// The last checkpoint that found it written.
    written: u64,
    /// Whether it has been writable since.
    kept: bool,
}

/// What is known of pages that were in checkpoints; the module's text says what for.
#[derive(Debug, Default)]
pub(super) struct WorkingSet {
    pages: BTreeMap<u64, Habit>,
    kept: usize,
    checkpoint: u64,
}

impl WorkingSet {
    /// Forgets everything: every page is write-protected now.
    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.kept = 0;
    }

    /// Whether a page is to stay writable.
    pub(super) fn keeps(&self, page: u64) -> bool {
        self.pages.get(&page).is_some_and(|habit| habit.kept)
    }

    /// The next checkpoint carries these pages, each changed or not: those that are to be write-protected again, in
    /// their order.
    pub(super) fn carried(&mut self, pages: impl Iterator<Item = (u64, bool)>) -> Vec<u64> {
        self.checkpoint += 1;
        let now = self.checkpoint;
        let mut protect = Vec::new();
        for (page, changed) in pages {
            let room = self.kept < MOST_KEPT;
            let keep = match self.pages.get_mut(&page) {
                None => {
                    let (written, kept) = (now, false);
                    self.pages.insert(page, Habit { written, kept });
                    false
                }
                Some(habit) => {
                    let keep = now - habit.written <= AGAIN_WITHIN && (habit.kept || room);
                    // A page that was protected is only here because it was written.
                    if changed || !habit.kept {
                        habit.written = now;
                    }
                    self.kept = self.kept - usize::from(habit.kept) + usize::from(keep);
                    habit.kept = keep;
                    keep
                }
            };
            if !keep {
                protect.push(page);
            }
        }
        self.pages
            .retain(|_, habit| habit.kept || now - habit.written < AGAIN_WITHIN);
        protect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of one page, changed or not, in checkpoints in a row becomes protected; `None` where it is not in a
    /// checkpoint.
    fn protected(changes: &[Option<bool>]) -> Vec<bool> {
        let mut set = WorkingSet::default();
        let mut next = |change: &Option<bool>| {
            let protected = set.carried(change.iter().map(|changed| (7, *changed)));
            assert_eq!(set.keeps(7), change.is_some() && protected.is_empty());
            assert_eq!(set.kept, usize::from(set.keeps(7)));
            protected == [7]
        };
        changes.iter().map(&mut next).collect()
    }

    const YES: Option<bool> = Some(true);
    const NO: Option<bool> = Some(false);

    #[test]
    fn a_page_written_twice_in_a_while_stays_writable() {
        assert_eq!(protected(&[YES, YES]), [true, false]);
        assert_eq!(protected(&[NO, NO]), [true, false], "it was written, if with the same");
        assert_eq!(
            protected(&[YES, None, None, None, YES]),
            [true, false, false, false, false]
        );
        assert_eq!(
            protected(&[YES, None, None, None, None, YES, YES]),
            [true, false, false, false, false, true, false],
            "too long ago"
        );
    }

    #[test]
    fn until_it_has_not_changed_for_a_while() {
        let still = [YES, YES, NO, NO, NO, NO, NO];
        assert_eq!(protected(&still), [true, false, false, false, false, false, true]);
        let again = [YES, YES, NO, NO, NO, YES, NO, NO, NO, NO, NO];
        let expected = [
            true, false, false, false, false, false, false, false, false, false, true,
        ];
        assert_eq!(protected(&again), expected);
    }

    #[test]
    fn the_number_of_pages_kept_and_known_is_bounded() {
        let mut set = WorkingSet::default();
        let most = MOST_KEPT as u64;
        let all = |set: &mut WorkingSet, changed| set.carried((0..most + 2).map(|page| (page, changed)));
        assert_eq!(all(&mut set, true).len(), MOST_KEPT + 2);
        assert_eq!(all(&mut set, true), [most, most + 1]);
        assert_eq!(set.kept, MOST_KEPT);
        for _ in 0..AGAIN_WITHIN {
            assert!(set.carried((0..most).map(|page| (page, false))).is_empty());
        }
        assert_eq!(set.pages.len(), MOST_KEPT, "the others are forgotten");
        assert_eq!(set.carried((0..most).map(|page| (page, false))).len(), MOST_KEPT);
        assert_eq!(set.kept, 0);
        set.carried((0..2).map(|page| (page, true)));
        set.clear();
        assert!(!set.keeps(0) && set.kept == 0);
    }
}
