//! How many acknowledgements came when: what the picture of a failover is drawn from. Pure.

use std::collections::VecDeque;

/// Resolution of the history, in nanoseconds.
const BUCKET_NS: u64 = 1_000_000;

/// Buckets kept: the latest two minutes.
const MAX_BUCKETS: usize = 120_000;

/// How many acknowledgements came in each millisecond of the latest two minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckHistory {
    /// Number of the oldest kept bucket since time 0.
    first: u64,
    counts: VecDeque<u32>,
}

impl AckHistory {
    /// Counts an acknowledgement at `now_ns`, which never decreases.
    pub(super) fn add(&mut self, now_ns: u64) {
        let bucket = now_ns / BUCKET_NS;
        if self.counts.is_empty() {
            self.first = bucket;
        }
        let kept = u64::try_from(MAX_BUCKETS).expect("a small constant");
        if bucket >= self.first + kept {
            let forgotten = (bucket + 1 - kept) - self.first;
            let forgotten = usize::try_from(forgotten).unwrap_or(usize::MAX).min(self.counts.len());
            self.counts.drain(..forgotten);
            self.first = bucket + 1 - kept;
        }
        let index = usize::try_from(bucket - self.first).expect("less than MAX_BUCKETS");
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(1);
    }

    /// The longest time between two acknowledgements of which the later came at or after `from_ns`, in nanoseconds, to the
    /// millisecond and as far back as is kept; 0 if there are no two.
    #[must_use]
    pub fn longest_gap_ns(&self, from_ns: u64) -> u64 {
        let mut last = None;
        let mut longest = 0;
        for (bucket, count) in (self.first..).zip(&self.counts) {
            if *count == 0 {
                continue;
            }
            if bucket * BUCKET_NS >= from_ns / BUCKET_NS * BUCKET_NS {
                longest = longest.max(bucket - last.unwrap_or(bucket));
            }
            last = Some(bucket);
        }
        longest * BUCKET_NS
    }

    /// Acknowledgements in `columns` equal parts of the time from `from_ns` to `to_ns`, in nanoseconds since the
    /// client's start, to the millisecond. Empty if there is no such time.
    #[must_use]
    pub fn columns(&self, from_ns: u64, to_ns: u64, columns: usize) -> Vec<u32> {
        let Some(span) = to_ns.checked_sub(from_ns).filter(|span| *span > 0) else {
            return Vec::new();
        };
        let mut sums = vec![0u32; columns];
        for (bucket, count) in (self.first..).zip(&self.counts) {
            let at = bucket * BUCKET_NS;
            if *count == 0 || at < from_ns / BUCKET_NS * BUCKET_NS || at >= to_ns {
                continue;
            }
            let place = u128::from(at.saturating_sub(from_ns)) * columns as u128 / u128::from(span);
            let place = usize::try_from(place).expect("less than `columns`");
            sums[place] = sums[place].saturating_add(*count);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn history_is_summed_into_columns() {
        let mut history = AckHistory::default();
        for at in [100, 100, 101, 109, 110, 119] {
            history.add(at * MS + 5);
        }
        assert_eq!(history.columns(100 * MS, 120 * MS, 4), [3, 1, 1, 1]);
        assert_eq!(history.columns(100 * MS, 110 * MS, 2), [3, 1]);
        assert_eq!(history.columns(0, 50 * MS, 2), [0, 0]);
        assert_eq!(history.columns(120 * MS, 120 * MS, 2), [0; 0]);
        assert_eq!(history.columns(200 * MS, 100 * MS, 2), [0; 0]);
    }

    #[test]
    fn the_longest_gap_ends_at_or_after_a_time() {
        let mut history = AckHistory::default();
        assert_eq!(history.longest_gap_ns(0), 0);
        for at in [100, 900, 910, 1200, 1210] {
            history.add(at * MS + 5);
        }
        assert_eq!(history.longest_gap_ns(0), 800 * MS);
        assert_eq!(history.longest_gap_ns(900 * MS + 7), 800 * MS);
        assert_eq!(history.longest_gap_ns(901 * MS), 290 * MS);
        assert_eq!(history.longest_gap_ns(1300 * MS), 0);
    }

    #[test]
    fn history_is_bounded_and_keeps_the_newest() {
        let mut history = AckHistory::default();
        let long = MAX_BUCKETS as u64;
        history.add(0);
        history.add((long - 1) * MS);
        assert_eq!(history.columns(0, MS, 1), [1]);
        history.add(long * MS);
        assert_eq!(history.columns(0, MS, 1), [0], "the oldest is forgotten");
        assert_eq!(history.columns((long - 1) * MS, (long + 1) * MS, 1), [2]);
        history.add(u64::MAX / 2);
        assert!(history.counts.len() <= MAX_BUCKETS);
    }
}
