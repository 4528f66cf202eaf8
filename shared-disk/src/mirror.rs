//! Which parts of the private disks a joining backup still lacks (PROTOCOL 17).
//!
//! A private disk is copied to a joining backup while the guest goes on writing to it: first all of it, then in rounds
//! what has been written meanwhile. Each round begins with a *look*, which takes the list of extents written since the
//! last one. An extent is read some time after the look that named it, and may be read before or after a write that is
//! under way at that moment. So a write is noted when it has *landed*, before it counts as over: then the next look
//! names its extents, and once no write is under way a last look has named them all. If it were noted when it starts,
//! it would be lost whenever look and copy both come before it lands.

use std::collections::BTreeMap;

/// Bytes of an extent, the unit in which disks are copied: fine enough for a guest's small writes, and coarse enough
/// that one bit for each extent of a disk of 1 TiB makes 2 MiB.
pub const EXTENT: u64 = 64 << 10;

/// Extents in a word of the bitmap.
const WORD: u64 = u64::BITS as u64;

/// A set of extents: a bitmap for each disk. Extents are numbered from the beginning of their disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(BTreeMap<u8, Vec<u64>>);

impl Extents {
    /// No extent of disks with these sizes in bytes.
    fn none(sizes: &BTreeMap<u8, u64>) -> Self {
        let words = |size: u64| size.div_ceil(EXTENT).div_ceil(WORD);
        let empty = |size: u64| vec![0; usize::try_from(words(size)).unwrap_or(usize::MAX)];
        Extents(sizes.iter().map(|(disk, size)| (*disk, empty(*size))).collect())
    }

    /// Adds an extent, unless there is none with this number.
    fn add(&mut self, disk: u8, number: u64) {
        let word = usize::try_from(number / WORD).ok();
        let words = self.0.get_mut(&disk);
        if let Some(word) = words.and_then(|words| words.get_mut(word?)) {
            *word |= 1 << (number % WORD);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.values().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Disk and number of each, ascending by disk, then by number.
    pub fn iter(&self) -> impl Iterator<Item = (u8, u64)> {
        self.0.iter().flat_map(|(disk, words)| {
            let words = (0u64..).zip(words).filter(|(_, word)| **word != 0);
            words.flat_map(move |(index, word)| {
                (0..WORD)
                    .filter(move |bit| word >> bit & 1 == 1)
                    .map(move |bit| (*disk, index * WORD + bit))
            })
        })
    }
}

/// Bytes of extent `number` of a disk of `size` bytes. The last one may be short, and those behind it have 0.
#[must_use]
pub fn extent_len(size: u64, number: u64) -> usize {
    let start = number.saturating_mul(EXTENT);
    usize::try_from(size.saturating_sub(start).min(EXTENT)).expect("an extent is short")
}

/// What a live guest has written to its private disks since the last look.
#[derive(Clone, Debug)]
pub struct Written {
    /// By disk, in bytes.
    sizes: BTreeMap<u8, u64>,
    noted: Extents,
    /// Writes that have begun and are not over.
    under_way: usize,
}

impl Written {
    /// No writes yet, to these disks with their sizes in bytes.
    #[must_use]
    pub fn new(sizes: BTreeMap<u8, u64>) -> Self {
        Written {
            noted: Extents::none(&sizes),
            sizes,
            under_way: 0,
        }
    }

    /// Whether `disk` is one of them.
    #[must_use]
    pub fn has(&self, disk: u8) -> bool {
        self.sizes.contains_key(&disk)
    }

    /// A write is about to start.
    pub fn begins(&mut self) {
        self.under_way += 1;
    }

    /// A write of `len` bytes at `offset` has landed, or has failed and may have landed in part.
    pub fn over(&mut self, disk: u8, offset: u64, len: u64) {
        if len > 0 {
            let last = offset.saturating_add(len - 1) / EXTENT;
            (offset / EXTENT..=last).for_each(|number| self.noted.add(disk, number));
        }
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Writes that have begun and are not over.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Looks: what has been written since the last look.
    pub fn look(&mut self) -> Extents {
        std::mem::replace(&mut self.noted, Extents::none(&self.sizes))
    }

    /// Looks for the first time: all extents, for a backup that has none.
    pub fn first_look(&mut self) -> Extents {
        self.look();
        let mut all = Extents::none(&self.sizes);
        for (disk, size) in &self.sizes {
            (0..size.div_ceil(EXTENT)).for_each(|number| all.add(*disk, number));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Written {
        Written::new(BTreeMap::from([(1, 3 * EXTENT + 512), (4, 100 * EXTENT)]))
    }

    fn named(extents: &Extents) -> Vec<(u8, u64)> {
        extents.iter().collect()
    }

    #[test]
    fn the_first_look_names_all_also_a_short_end() {
        let mut written = written();
        written.begins();
        written.over(4, 0, 512);
        let all = written.first_look();
        assert_eq!(all.count(), 4 + 100);
        let expected: Vec<_> = (0..4).map(|n| (1, n)).chain((0..100).map(|n| (4, n))).collect();
        assert_eq!(named(&all), expected);
        assert_eq!(written.look().count(), 0, "what was written before it is in it");
    }

    #[test]
    fn a_write_is_named_once_it_has_landed_on_both_sides_of_each_extent() {
        let mut written = written();
        written.begins();
        assert_eq!((written.look().count(), written.under_way()), (0, 1));
        written.over(4, 2 * EXTENT - 512, 512);
        assert_eq!((named(&written.look()), written.under_way()), (vec![(4, 1)], 0));
        written.over(4, 2 * EXTENT - 512, 1024);
        assert_eq!(named(&written.look()), [(4, 1), (4, 2)]);
        written.over(4, 62 * EXTENT, 3 * EXTENT);
        assert_eq!(named(&written.look()), [(4, 62), (4, 63), (4, 64)]);
        assert_eq!(written.look().count(), 0);
    }

    #[test]
    fn what_is_no_extent_of_these_disks_is_not_named() {
        let mut written = written();
        assert!(written.has(1) && !written.has(0));
        written.over(0, 0, 512);
        written.over(4, 0, 0);
        written.over(4, 128 * EXTENT, 512);
        assert_eq!(written.look().count(), 0);
    }

    #[test]
    fn lengths_at_the_end() {
        assert_eq!(extent_len(3 * EXTENT + 512, 2), 64 << 10);
        assert_eq!(extent_len(3 * EXTENT + 512, 3), 512);
        assert_eq!(extent_len(3 * EXTENT + 512, 4), 0);
        assert_eq!(extent_len(512, u64::MAX), 0);
    }
}
