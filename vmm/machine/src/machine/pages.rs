//! Guest pages in state records: whole, or as differences against the copy that the last checkpoint carried.
//!
//! A CPU-bound guest dirties the same few pages again and again and changes few bytes of each. Both sides keep the
//! pages that checkpoints have carried, so a record needs only what differs from that copy, compressed. A difference
//! against anything that the other side does not hold, such as what the page was at the last harvest, would be unsound:
//! where a page goes from A to B and back to A it would say "no change" to a backup that still has B (LINUX-FACTS).
//! A page without a copy is taken as zeros before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use ftvm_hypervisor::{GuestMemory, PAGE_SIZE};

/// Bytes of a guest page.
#[allow(clippy::cast_possible_truncation, reason = "4096")]
pub const PAGE: usize = PAGE_SIZE as usize;

/// Most copies kept: 32 MiB on each side. A guest that dirties more between two ticks pays for whole pages.
const MAX_COPIES: usize = 8192;

/// Page numbers, and the pages' content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pages {
    pub numbers: Vec<u64>,
    content: Content,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Content {
    /// The pages one after the other.
    Whole(serde_bytes::ByteBuf),
    /// The same in LZ4's block format.
    Compressed(serde_bytes::ByteBuf),
    /// The same, each XORed with its copy; in LZ4's block format.
    Differences(serde_bytes::ByteBuf),
}

/// Why pages cannot be had from a record.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A number beyond RAM.
    #[error("page {number} is named, but the guest has {count} pages")]
    NoSuchPage { number: u64, count: u64 },
    /// Numbers out of order.
    #[error("page {after} is named behind page {before}; they must ascend")]
    Order { before: u64, after: u64 },
    /// More or less content than the numbers need.
    #[error("{pages} pages come with {found} bytes, {expected} are needed")]
    Length {
        pages: usize,
        expected: usize,
        found: usize,
    },
    /// The content is no LZ4 block.
    #[error("the pages do not decompress: {0}")]
    Compression(#[from] lz4_flex::block::DecompressError),
    /// RAM ends before the page.
    #[error("page {number}: {source}")]
    Ram { number: u64, source: GuestMemoryError },
}

impl Pages {
    /// Whole pages: `bytes` holds them in the order of `numbers`.
    pub(super) fn whole(numbers: Vec<u64>, bytes: Vec<u8>) -> Self {
        Pages {
            numbers,
            content: Content::Whole(bytes.into()),
        }
    }

    /// The same in LZ4's block format, as [`copy_pages`] makes it.
    pub(super) fn compressed(numbers: Vec<u64>, content: Vec<u8>) -> Self {
        Pages {
            numbers,
            content: Content::Compressed(content.into()),
        }
    }

    /// The same as differences against `copies`, which then hold these pages; and which of them differ.
    pub(super) fn differences(numbers: Vec<u64>, mut bytes: Vec<u8>, copies: &mut PageCopies) -> (Self, Vec<bool>) {
        copies.exchange(&numbers, &mut bytes, Given::Pages);
        let differ = bytes.as_chunks::<PAGE>().0.iter().map(|page| *page != [0; PAGE]);
        let differ = differ.collect();
        let content = Content::Differences(lz4_flex::block::compress(&bytes).into());
        (Pages { numbers, content }, differ)
    }

    /// The pages' bytes, in the order of `numbers`, for a guest of `count` pages. `copies` must have seen the records
    /// that the writer's had seen; they change only if all is well.
    pub(super) fn bytes(&self, count: u64, copies: &mut PageCopies) -> Result<Vec<u8>, PagesError> {
        if let Some(number) = self.numbers.iter().copied().find(|number| *number >= count) {
            return Err(PagesError::NoSuchPage { number, count });
        }
        if let Some([before, after]) = self
            .numbers
            .array_windows()
            .find(|[before, after]| before >= after)
            .copied()
        {
            return Err(PagesError::Order { before, after });
        }
        let (pages, expected) = (self.numbers.len(), self.numbers.len() * PAGE);
        let length = |found| {
            if found == expected {
                Ok(())
            } else {
                Err(PagesError::Length { pages, expected, found })
            }
        };
        match &self.content {
            Content::Whole(bytes) => {
                length(bytes.len())?;
                Ok(bytes.to_vec())
            }
            Content::Compressed(compressed) => {
                let mut bytes = vec![0; expected];
                length(lz4_flex::block::decompress_into(compressed, &mut bytes)?)?;
                Ok(bytes)
            }
            Content::Differences(compressed) => {
                let mut bytes = vec![0; expected];
                length(lz4_flex::block::decompress_into(compressed, &mut bytes)?)?;
                copies.exchange(&self.numbers, &mut bytes, Given::Differences);
                Ok(bytes)
            }
        }
    }
}

/// Some pages of `memory` as they are at this moment, with the numbers of those taken, for [`Machine::write_pages`] on
/// the other side. With [`Zeros::LeftOut`], pages of zeros are not taken: a new machine has them. The guest may be
/// running: what it writes meanwhile is in its dirty log, and the page comes again.
///
/// # Errors
/// If `numbers` are not the guest's.
///
/// [`Machine::write_pages`]: super::Machine::write_pages
pub fn copy_pages(memory: &GuestMemory, numbers: &[u64], zeros: Zeros) -> Result<(Vec<u64>, Vec<u8>), PagesError> {
    let mut taken = Vec::with_capacity(numbers.len());
    let mut bytes = Vec::with_capacity(numbers.len() * PAGE);
    let mut page = [0; PAGE];
    for number in numbers {
        memory
            .read_slice(&mut page, GuestAddress(number * PAGE as u64))
            .map_err(|source| PagesError::Ram {
                number: *number,
                source,
            })?;
        if zeros == Zeros::Taken || page.iter().any(|byte| *byte != 0) {
            taken.push(*number);
            bytes.extend_from_slice(&page);
        }
    }
    Ok((taken, lz4_flex::block::compress(&bytes)))
}

/// What becomes of pages of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    Taken,
    LeftOut,
}

/// What [`PageCopies::exchange`] is given, and turns into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Pages,
    Differences,
}

/// The pages as the checkpoints so far have carried them.
#[derive(Debug, Default)]
pub(super) struct PageCopies {
    /// Each with the number of the record that carried it last.
    pages: BTreeMap<u64, (u64, Box<[u8; PAGE]>)>,
    record: u64,
}

impl PageCopies {
    /// Forgets everything: the other side starts from a whole state.
    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }

    /// Turns pages into differences or back, and keeps the pages.
    fn exchange(&mut self, numbers: &[u64], bytes: &mut [u8], given: Given) {
        self.record += 1;
        for (number, bytes) in numbers.iter().zip(bytes.as_chunks_mut::<PAGE>().0) {
            let (record, copy) = self.pages.entry(*number).or_insert_with(|| (0, Box::new([0; PAGE])));
            *record = self.record;
            for (byte, copy) in bytes.iter_mut().zip(copy.iter_mut()) {
                let other = *byte ^ *copy;
                *copy = match given {
                    Given::Pages => *byte,
                    Given::Differences => other,
                };
                *byte = other;
            }
        }
        self.evict();
    }

    /// Drops the copies that records have not carried for longest, until half remain. A function of the records alone,
    /// so both sides drop the same.
    fn evict(&mut self) {
        if self.pages.len() <= MAX_COPIES {
            return;
        }
        let mut by_age: Vec<(u64, u64)> = self
            .pages
            .iter()
            .map(|(number, (record, _))| (*record, *number))
            .collect();
        by_age.sort_unstable();
        for (_, number) in &by_age[..by_age.len() - MAX_COPIES / 2] {
            self.pages.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE]
    }

    #[test]
    fn a_page_that_goes_back_is_still_carried() {
        let (mut here, mut there) = (PageCopies::default(), PageCopies::default());
        for fill in [7, 8, 7, 7] {
            let pages = Pages::differences(vec![3], page(fill), &mut here).0;
            assert_eq!(pages.bytes(4, &mut there).unwrap(), page(fill));
        }
    }

    #[test]
    fn differences_are_small_and_need_the_same_past() {
        let (mut here, mut there) = (PageCopies::default(), PageCopies::default());
        let random: Vec<u8> = (0..PAGE as u64)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0])
            .collect();
        let first = Pages::differences(vec![1], random.clone(), &mut here).0;
        let mut changed = random.clone();
        changed[99] ^= 1;
        let second = Pages::differences(vec![1], changed.clone(), &mut here).0;
        let Content::Differences(bytes) = &second.content else {
            panic!()
        };
        assert!(bytes.len() < 64, "{} bytes for one changed", bytes.len());
        assert_ne!(second.bytes(2, &mut PageCopies::default()).unwrap(), changed);
        assert_eq!(first.bytes(2, &mut there).unwrap(), random);
        assert_eq!(second.bytes(2, &mut there).unwrap(), changed);
    }

    #[test]
    fn both_sides_drop_the_same_copies() {
        let (mut here, mut there) = (PageCopies::default(), PageCopies::default());
        for number in 0..u64::try_from(MAX_COPIES).unwrap() + 10 {
            let fill = number.to_le_bytes()[0] | 1;
            let pages = Pages::differences(vec![number], page(fill), &mut here).0;
            assert_eq!(pages.bytes(1 << 20, &mut there).unwrap(), page(fill));
            assert!(here.pages.len() <= MAX_COPIES);
        }
        assert!(!here.pages.contains_key(&0) && here.pages.contains_key(&(MAX_COPIES as u64)));
        assert!(here.pages.keys().eq(there.pages.keys()));
        let again = Pages::differences(vec![0], page(1), &mut here).0;
        assert_eq!(again.bytes(1 << 20, &mut there).unwrap(), page(1));
    }

    #[test]
    fn damaged_pages_are_refused() {
        let mut copies = PageCopies::default();
        let error = |pages: &Pages| pages.bytes(2, &mut PageCopies::default()).unwrap_err().to_string();
        assert!(error(&Pages::whole(vec![1, 1], vec![0; 2 * PAGE])).contains("must ascend"));
        assert!(error(&Pages::whole(vec![2], page(0))).contains("page 2"));
        assert!(error(&Pages::whole(vec![0, 1], page(0))).contains("8192 are needed"));
        let good = Pages::differences(vec![0], page(5), &mut copies).0;
        let Content::Differences(bytes) = &good.content else {
            panic!()
        };
        let damaged = |bytes: &[u8], numbers| Pages {
            numbers,
            content: Content::Differences(bytes.to_vec().into()),
        };
        error(&damaged(&bytes[..bytes.len() - 1], vec![0]));
        error(&damaged(&[0xff; 20], vec![0]));
        assert!(error(&damaged(bytes, vec![0, 1])).contains("8192 are needed"));
        // More than fits: refused while decompressing, not allocated.
        let bomb = Pages::differences(vec![0, 1], vec![1; 2 * PAGE], &mut copies).0;
        let Content::Differences(bytes) = &bomb.content else {
            panic!()
        };
        error(&damaged(bytes, vec![0]));
    }
}
