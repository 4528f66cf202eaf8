//! The zero page (`struct boot_params`) and everything it points to, and where the parts of a guest lie in memory.
//!
//! Offsets are those of Documentation/arch/x86/boot.rst and zero-page.rst. Below 640 KiB: GDT 0x500, zero page 0x7000,
//! command line 0x8000, page tables 0x10000, random seed 0x20000. The kernel lies where it was linked, the initrd as
//! high as its header allows. RAM ends below the PCI hole (MAX_MEMORY), so e820 has two ranges.

use sha2::{Digest as _, Sha256};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::bzimage::{SETUP_HEADER, SETUP_HEADER_END};
use super::rewrite::TSD;
use super::vmlinux::Layout;
use crate::boot::tables;
use crate::config::{MAX_CMDLINE, MachineConfig};
use ftvm_hypervisor::GuestMemory;
use ftvm_hypervisor::entry::EntryState;

const ZERO_PAGE: u64 = abi::BOOT_INFO_ADDR;
const CMDLINE: u64 = abi::CMDLINE_ADDR;
const SETUP_DATA: u64 = 0x2_0000;

/// The end of conventional memory; above it the EBDA, the VGA hole and ROMs would be.
const LOW_END: u64 = 0x9_fc00;

/// The first MiB ends here, and extended memory begins.
const HIGH_BEGIN: u64 = 0x10_0000;

/// A page.
const PAGE: u64 = 0x1000;

/// Fields of the zero page.
const E820_ENTRIES: usize = 0x1e8;
const SENTINEL: usize = 0x1ef;
const E820_TABLE: usize = 0x2d0;
/// Fields of the setup header.
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA_PTR: usize = 0x250;

/// An e820 range that is RAM.
const E820_RAM: u32 = 1;
/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// LOADED_HIGH in `loadflags`.
const LOADED_HIGH: u8 = 1;
/// The protocol that a vmlinux without header is given.
const PROTOCOL: u16 = 0x020f;
/// Linux's own value where a header names none.
const DEFAULT_INITRD_MAX: u32 = 0x7fff_ffff;
/// `setup_data` type SETUP_RNG_SEED, and the bytes of its seed.
const SETUP_RNG_SEED: u32 = 9;
const SEED_BYTES: u32 = 32;

/// The zero page in the making.
struct ZeroPage([u8; 0x1000]);

impl ZeroPage {
    fn set<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.set(at, value.to_le_bytes());
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// From a bzImage's header, or with what Linux reads of it when a vmlinux has none.
    fn new(setup_header: Option<&[u8]>) -> Self {
        let mut page = ZeroPage([0; 0x1000]);
        match setup_header {
            Some(header) => {
                let end = (SETUP_HEADER + header.len()).min(SETUP_HEADER_END);
                page.0[SETUP_HEADER..end].copy_from_slice(&header[..end - SETUP_HEADER]);
            }
            None => {
                page.set(BOOT_FLAG, 0xaa55_u16.to_le_bytes());
                page.set(HEADER, *b"HdrS");
                page.set(VERSION, PROTOCOL.to_le_bytes());
                page.set_u32(KERNEL_ALIGNMENT, 2 << 20);
                page.set_u32(CMDLINE_SIZE, u32::try_from(MAX_CMDLINE).unwrap_or_default());
            }
        }
        if page.u32(INITRD_ADDR_MAX) == 0 {
            page.set_u32(INITRD_ADDR_MAX, DEFAULT_INITRD_MAX);
        }
        page.set(SENTINEL, [0]);
        page.set(TYPE_OF_LOADER, [LOADER_UNDEFINED]);
        page.0[LOADFLAGS] |= LOADED_HIGH;
        page.set_u32(CMD_LINE_PTR, u32::try_from(CMDLINE).unwrap_or_default());
        page.set(SETUP_DATA_PTR, SETUP_DATA.to_le_bytes());
        page
    }

    fn set_e820(&mut self, memory: u64) {
        let ranges = [(0, LOW_END), (HIGH_BEGIN, memory)];
        for (index, (begin, end)) in ranges.into_iter().enumerate() {
            let at = E820_TABLE + 20 * index;
            self.set(at, begin.to_le_bytes());
            self.set(at + 8, (end - begin).to_le_bytes());
            self.set_u32(at + 16, E820_RAM);
        }
        self.set(E820_ENTRIES, [2]);
    }
}

/// `setup_data` with 32 bytes for the kernel's random generator, expanded from the logged seed.
fn rng_seed(seed: u64) -> Vec<u8> {
    let bytes = Sha256::new()
        .chain_update(b"ftvm SETUP_RNG_SEED")
        .chain_update(seed.to_le_bytes())
        .finalize();
    let mut data = Vec::new();
    data.extend_from_slice(&0_u64.to_le_bytes()); // no next one
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&SEED_BYTES.to_le_bytes());
    data.extend_from_slice(&bytes);
    data
}

/// Where the initrd goes: page-aligned, as high as RAM and `addr_max` (its last byte) allow, above the kernel.
fn initrd_address(size: u64, kernel_end: u64, memory: u64, addr_max: u32) -> Option<u64> {
    let top = memory.min(u64::from(addr_max) + 1);
    let address = top.checked_sub(size)? & !(PAGE - 1);
    (address >= kernel_end).then_some(address)
}

/// What does not fit into memory.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// A kernel that lies where the boot information is.
    #[error("its first segment lies at {begin:#x}, below 1 MiB")]
    BelowOneMib { begin: u64 },
    /// Too little RAM.
    #[error("kernel and initrd reach up to {needed} MiB, but the guest has {memory} MiB: give it more with --memory")]
    Memory {
        /// In MiB.
        needed: u64,
        /// In MiB.
        memory: u64,
    },
    /// The kernel takes an initrd only at addresses that are not free.
    #[error("no room for an initrd of {size} bytes above the kernel")]
    Initrd { size: u64 },
    /// Memory ends before what is written to it.
    #[error(transparent)]
    Write(#[from] GuestMemoryError),
}

fn check_room(layout: &Layout, initrd: u64, memory: u64) -> Result<(), RoomError> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let begin = layout.begin();
    if begin < HIGH_BEGIN {
        return Err(RoomError::BelowOneMib { begin });
    }
    let needed = layout.end().saturating_add(initrd);
    if needed > memory {
        return Err(RoomError::Memory {
            needed: mib(needed),
            memory: mib(memory),
        });
    }
    Ok(())
}

/// Fills fresh memory, and tells how to enter.
///
/// # Errors
/// If something does not fit.
pub(super) fn load(
    vmlinux: &[u8],
    layout: &Layout,
    setup_header: Option<&[u8]>,
    initrd: Option<&[u8]>,
    config: &MachineConfig,
    memory: &GuestMemory,
) -> Result<EntryState, RoomError> {
    let size = initrd.map_or(0, |initrd| initrd.len() as u64);
    check_room(layout, size, config.memory)?;
    let write = |address: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address));
    for segment in &layout.segments {
        write(segment.phys, &vmlinux[segment.file.clone()])?;
    }
    let mut page = ZeroPage::new(setup_header);
    page.set_e820(config.memory);
    if let Some(initrd) = initrd {
        let place = initrd_address(size, layout.end(), config.memory, page.u32(INITRD_ADDR_MAX))
            .and_then(|address| Some((u32::try_from(address).ok()?, u32::try_from(size).ok()?)));
        let (address, length) = place.ok_or(RoomError::Initrd { size })?;
        page.set_u32(RAMDISK_IMAGE, address);
        page.set_u32(RAMDISK_SIZE, length);
        write(u64::from(address), initrd)?;
    }
    write(CMDLINE, config.cmdline.as_bytes())?;
    write(SETUP_DATA, &rng_seed(config.seed))?;
    write(ZERO_PAGE, &page.0)?;
    let (cr3, gdt) = tables::write(memory)?;
    let mut entry = EntryState::long_mode(layout.entry, abi::STACK_TOP, cr3, gdt, ZERO_PAGE);
    entry.cr4 |= TSD;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_lies_as_high_as_allowed_and_above_the_kernel() {
        let (end, memory) = (0x400_0000, 0x800_0000);
        assert_eq!(initrd_address(1, end, memory, u32::MAX), Some(memory - PAGE));
        assert_eq!(initrd_address(PAGE, end, memory, u32::MAX), Some(memory - PAGE));
        assert_eq!(initrd_address(PAGE + 1, end, memory, u32::MAX), Some(memory - 2 * PAGE));
        assert_eq!(initrd_address(PAGE, end, memory, 0x5ff_ffff), Some(0x600_0000 - PAGE));
        assert_eq!(initrd_address(memory - end, end, memory, u32::MAX), Some(end));
        assert_eq!(initrd_address(memory - end + 1, end, memory, u32::MAX), None);
        assert_eq!(initrd_address(memory + 1, end, memory, u32::MAX), None);
    }

    #[test]
    fn the_seed_is_a_function_of_the_logged_one() {
        let seed = rng_seed(7);
        assert_eq!(seed.len(), 48);
        assert_eq!(seed[..16], [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(seed, rng_seed(7));
        assert_ne!(seed[16..], rng_seed(8)[16..]);
    }

    #[test]
    fn e820_leaves_out_the_legacy_hole() {
        let mut page = ZeroPage::new(None);
        page.set_e820(0x1000_0000);
        assert_eq!(page.0[E820_ENTRIES], 2);
        assert_eq!((page.u32(E820_TABLE + 8), page.u32(E820_TABLE + 16)), (0x9_fc00, 1));
        assert_eq!(
            (page.u32(E820_TABLE + 20), page.u32(E820_TABLE + 28)),
            (0x10_0000, 0xff0_0000)
        );
    }

    #[test]
    fn a_header_is_copied_and_never_beyond_its_room() {
        let page = ZeroPage::new(Some(&[0xff; 4096]));
        assert_eq!((page.0[SETUP_HEADER - 1], page.0[SETUP_HEADER]), (0, 0xff));
        assert_eq!((page.0[SETUP_HEADER_END - 1], page.0[SETUP_HEADER_END]), (0xff, 0));
        assert_eq!(page.u32(CMD_LINE_PTR), 0x8000);
        assert_eq!(ZeroPage::new(None).u32(INITRD_ADDR_MAX), 0x7fff_ffff);
    }
}
