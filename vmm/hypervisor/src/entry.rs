//! How a guest that brings its own page tables is entered: 64-bit mode at CPL0.

use ftvm_schema::entry::RegisterFile;
use ftvm_schema::entry::register::{RFLAGS, RIP, RSI, RSP};

/// CR0: PE, MP, ET, NE, WP, AM, PG (SDM volume 3, 2.5).
const CR0: u64 = 0x8005_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const INITIAL_FLAGS: u64 = 2;

/// Base (linear address) and limit (last valid byte) of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// The state in which a guest starts: 64-bit mode at CPL0, flat CS 0x10 and SS 0x18, null DS, ES, FS and GS.
///
/// The task register holds a busy TSS at 0 without an I/O bitmap, because VMX enters no guest without one (SDM volume
/// 3, 27.3.1.2); the guest loads its own when it needs one. Selectors 0x10 and 0x18 of the GDT should be what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    pub registers: RegisterFile,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
}

impl EntryState {
    /// Enters at `rip` with stack `rsp` and page tables at `cr3`; `argument` is in RSI (Linux: the boot parameters).
    #[must_use]
    pub fn long_mode(rip: u64, rsp: u64, cr3: u64, gdt: DescriptorTable, argument: u64) -> Self {
        let mut registers = [0; 18];
        registers[RSI] = argument;
        registers[RSP] = rsp;
        registers[RIP] = rip;
        registers[RFLAGS] = INITIAL_FLAGS;
        EntryState {
            registers,
            cr0: CR0,
            cr3,
            cr4: CR4,
            efer: EFER,
            gdt,
            idt: DescriptorTable::default(),
        }
    }
}
