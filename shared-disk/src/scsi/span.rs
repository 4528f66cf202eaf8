//! Where a block device lies on the SCSI disk that answers commands to it.

use std::fs;
use std::io;
use std::path::Path;

use super::cdb::Capacity;
use super::device::Unfit;
use crate::SECTOR;

/// How much of a disk a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskPart {
    Whole,
    Partition,
}

/// Where a device lies on its disk, by what the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskSpan {
    pub(super) part: DiskPart,
    /// In sectors of 512 bytes.
    start: u64,
    /// Its size, likewise.
    sectors: u64,
}

impl DiskSpan {
    /// From a device's folder in `/sys/dev/block`.
    pub(super) fn read(sysfs: &Path) -> io::Result<DiskSpan> {
        let number = |name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(sysfs.join(name))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let (part, start) = match sysfs.join("partition").exists() {
            true => (DiskPart::Partition, number("start")?),
            false => (DiskPart::Whole, 0),
        };
        let sectors = number("size")?;
        Ok(DiskSpan { part, start, sectors })
    }

    /// The first block and the size of the device, on a disk of that size.
    pub(super) fn on(self, disk: Capacity) -> Result<(u64, Capacity), Unfit> {
        let sectors = u64::from(disk.block_bytes) / SECTOR;
        if !self.start.is_multiple_of(sectors) || !self.sectors.is_multiple_of(sectors) {
            let block_bytes = disk.block_bytes;
            return Err(Unfit::PartOfBlock { block_bytes });
        }
        let (first, blocks) = (self.start / sectors, self.sectors / sectors);
        let fits = match self.part {
            DiskPart::Whole => blocks == disk.blocks,
            DiskPart::Partition => first.checked_add(blocks).is_some_and(|end| end <= disk.blocks),
        };
        if !fits {
            let disk_blocks = disk.blocks;
            return Err(Unfit::NotOneDisk { blocks, disk_blocks });
        }
        let block_bytes = disk.block_bytes;
        Ok((first, Capacity { blocks, block_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Capacity = Capacity {
        blocks: 1000,
        block_bytes: 4096,
    };

    fn placed(part: DiskPart, start: u64, sectors: u64) -> Result<(u64, u64), Unfit> {
        let placed = DiskSpan { part, start, sectors }.on(DISK);
        placed.map(|(first, capacity)| (first, capacity.blocks))
    }

    #[test]
    fn partitions_lie_where_the_kernel_says() {
        assert_eq!(placed(DiskPart::Whole, 0, 8000), Ok((0, 1000)));
        assert_eq!(placed(DiskPart::Partition, 80, 7920), Ok((10, 990)));
        for (start, sectors) in [(80, 7928), (81, 7920), (80, 7921), (u64::MAX - 7, 8)] {
            assert!(
                placed(DiskPart::Partition, start, sectors).is_err(),
                "{start} {sectors}"
            );
        }
    }

    #[test]
    fn what_is_no_whole_disk_is_refused() {
        // A logical volume, for one, passes commands on to a larger disk.
        for sectors in [7992, 8008] {
            let why = placed(DiskPart::Whole, 0, sectors).unwrap_err().to_string();
            assert!(why.contains("not one SCSI disk"), "{why}");
        }
    }
}
