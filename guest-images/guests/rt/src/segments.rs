//! The guest's own GDT and TSS.
//!
//! The GDT repeats the boot GDT, so no segment register needs reloading, and adds a TSS. That one holds the stack for
//! entries from CPL3 and an I/O bitmap of zeros: a software KVM wants it in addition to IOPL = 3 for ports at CPL3.

use core::arch::asm;
use core::cell::UnsafeCell;

use guest_abi::{GDT as BOOT_GDT, TSS as TSS_SELECTOR};

/// Size of a TSS without I/O bitmap (SDM vol. 3, 8.7).
const TSS_BASE_SIZE: u16 = 0x68;
const IO_BITMAP_SIZE: u16 = 8192;
/// Position of the TSS's RSP0.
const RSP0: usize = 4;
/// Position of the I/O bitmap's offset.
const IO_BITMAP_BASE: usize = 0x66;

/// A static that the CPU reads on its own, and that one CPU writes with interrupts disabled.
#[repr(C, align(16))]
pub(crate) struct Table<T>(pub(crate) UnsafeCell<T>);

// SAFETY: there is one CPU, and the tables are written only where no interrupt handler can come between.
unsafe impl<T> Sync for Table<T> {}

type Tss = [u8; (TSS_BASE_SIZE + IO_BITMAP_SIZE) as usize + 1];

static TSS: Table<Tss> = Table(UnsafeCell::new([0; _]));
static GDT: Table<[u64; 10]> = Table(UnsafeCell::new([0; _]));

/// Operand of `lgdt` and `lidt`.
#[repr(C, packed)]
pub(crate) struct TablePointer {
    pub(crate) limit: u16,
    pub(crate) base: u64,
}

/// Where the stack pointer for entries from CPL3 is kept; it is 4-byte aligned only.
pub(crate) fn rsp0() -> *mut u64 {
    TSS.0.get().cast::<u8>().wrapping_add(RSP0).cast()
}

pub(crate) fn init() {
    let tss_limit = TSS_BASE_SIZE + IO_BITMAP_SIZE;
    // SAFETY: interrupts are still disabled, and nothing else refers to the TSS.
    let tss = unsafe { &mut *TSS.0.get() };
    tss[IO_BITMAP_BASE..IO_BITMAP_BASE + 2].copy_from_slice(&TSS_BASE_SIZE.to_le_bytes());
    tss[usize::from(tss_limit)] = 0xff;

    let base = TSS.0.get().addr() as u64;
    // SAFETY: as above.
    let gdt = unsafe { &mut *GDT.0.get() };
    gdt[..BOOT_GDT.len()].copy_from_slice(&BOOT_GDT);
    let index = usize::from(TSS_SELECTOR / 8);
    gdt[index] = u64::from(tss_limit) | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    gdt[index + 1] = base >> 32;

    let limit = 10 * 8 - 1;
    let pointer = TablePointer {
        limit,
        base: GDT.0.get().addr() as u64,
    };
    // SAFETY: the loaded segments have the same descriptors in the new table, and the TSS descriptor is valid.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
        asm!("ltr {:x}", in(reg) TSS_SELECTOR, options(nostack, preserves_flags));
    }
}
