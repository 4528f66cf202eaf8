//! A guest of a few pages: identity-mapped, with descriptor tables, a task state segment and handlers.
//!
//! Its layout follows KVM-FACTS, "Contract for bare-metal guests", so that it runs on hardware and on software KVMs:
//! Linux's selectors, accessed and dirty bits preset, both IOPL and an I/O bitmap for ports at CPL3.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

pub use ftvm_hypervisor::Interrupts;

use super::programs::{self, CODE, COUNTERS, Label, TinyProgram};
use ftvm_hypervisor::entry::DescriptorTable;
use ftvm_hypervisor::entry::EntryState;
use ftvm_hypervisor::{GuestMemory, INTERRUPT_FLAG};

/// Addresses below RAM's end that everything starts with.
const GDT: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PAGE_DIRECTORY: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x8000;
const TSS_SIZE: usize = 0x68;
const IO_BITMAP_OFFSET: [u8; 2] = [0x68, 0];
const IO_BITMAP_SIZE: usize = 0x2000;
const KERNEL_STACK: u64 = 0x1_c000;
const TRAP_STACK: u64 = 0x1_e000;
/// 64 KiB that programs work on, and free RAM behind it.
pub const TABLE: u64 = 0x10_0000;
pub const FREE: u64 = 0x20_0000;
/// An address without RAM, within the identity map.
pub const MMIO: u64 = 0x3000_0000;
/// Vector of the handler that counts interrupts.
pub const VECTOR: u8 = 0x30;

const LARGE_PAGE: u64 = 0x20_0000;
/// Present, writable, user, accessed; for a large page also dirty.
const TABLE_ENTRY: u64 = 0x27;
const LARGE_ENTRY: u64 = 0xe7;
/// Selectors 0x10 kernel code, 0x18 kernel data, 0x23 user 32-bit code, 0x2b user data, 0x33 user code.
const SEGMENTS: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
const TSS_SELECTOR: usize = 0x40;
const GDT_LIMIT: u16 = 0x4f;
const IDT_VECTORS: u16 = 0x100;
const IDT_LIMIT: u16 = IDT_VECTORS * 16 - 1;
/// RFLAGS for user code: IOPL 3 and the always-set bit.
const USER_FLAGS: u64 = 0x3002;

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL0.
    Kernel,
    /// CPL3.
    User,
}

/// Argument registers of a program; see [`TinyProgram`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ArgumentRegisters {
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r14: u64,
    pub r15: u64,
}

/// RAM with a tiny guest's tables and code in it.
#[derive(Debug)]
pub struct TinyGuest {
    pub memory: GuestMemory,
}

impl TinyGuest {
    /// Lays the guest out in `ram` bytes of fresh memory (at least 4 MiB, whole large pages).
    ///
    /// # Panics
    /// If the memory cannot be had or is too small.
    #[must_use]
    pub fn new(ram: usize) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), ram)]).expect("a few MiB of memory");
        let guest = TinyGuest { memory };
        guest.write_page_tables();
        guest.write_segments();
        guest.write_slice(programs::code(), CODE);
        for vector in 0..48 {
            guest.set_handler(vector, Label::Stubs.address() + 8 * u64::from(vector));
        }
        guest.set_handler(6, Label::MedleyTrap.address());
        guest.set_handler(13, Label::SkipTwoBytes.address());
        guest.set_handler(VECTOR, Label::Interrupt.address());
        guest
    }

    fn write_page_tables(&self) {
        self.write(PML4, PDPT | TABLE_ENTRY);
        self.write(PDPT, PAGE_DIRECTORY | TABLE_ENTRY);
        for index in 0..512 {
            self.map_large_page(index * LARGE_PAGE, index * LARGE_PAGE);
        }
    }

    fn write_segments(&self) {
        for (descriptor, address) in SEGMENTS.into_iter().zip((GDT..).step_by(8)) {
            self.write(address, descriptor);
        }
        self.free_task_segment();
        let mut tss = [0; TSS_SIZE + IO_BITMAP_SIZE + 1];
        tss[4..12].copy_from_slice(&TRAP_STACK.to_le_bytes());
        tss[0x66..0x68].copy_from_slice(&IO_BITMAP_OFFSET);
        // The I/O bitmap ends in a byte of ones (SDM volume 1, 19.5.2).
        tss[TSS_SIZE + IO_BITMAP_SIZE] = 0xff;
        self.write_slice(&tss, TSS);
    }

    /// Marks the task state segment available again: loading it made it busy, and a busy one cannot be loaded.
    pub fn free_task_segment(&self) {
        let limit = (TSS_SIZE + IO_BITMAP_SIZE) as u64;
        self.write(GDT + TSS_SELECTOR as u64, limit | TSS << 16 | 0x89 << 40);
    }

    /// Maps the large page at linear address `from` to physical address `to`.
    pub fn map_large_page(&self, from: u64, to: u64) {
        let (address, entry) = Self::large_page_entry(from, to);
        self.write(address, entry);
    }

    /// Where the page table entry for linear address `from` is, and what it must be to map `to`.
    #[must_use]
    pub fn large_page_entry(from: u64, to: u64) -> (u64, u64) {
        (PAGE_DIRECTORY + from / LARGE_PAGE * 8, to | LARGE_ENTRY)
    }

    /// Makes `handler` that of `vector`: an interrupt gate to CPL0, usable from CPL3.
    pub fn set_handler(&self, vector: u8, handler: u64) {
        let low = handler & 0xffff | 0x10 << 16 | 0xee << 40 | (handler >> 16 & 0xffff) << 48;
        self.write(IDT + u64::from(vector) * 16, low);
        self.write(IDT + u64::from(vector) * 16 + 8, handler >> 32);
    }

    /// Writes a quadword.
    pub fn write(&self, address: u64, value: u64) {
        self.write_slice(&value.to_le_bytes(), address);
    }

    /// Reads a quadword.
    #[must_use]
    pub fn read(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).expect("an address in RAM")
    }

    /// Interrupts and traps that handlers have counted, and their running mix.
    #[must_use]
    pub fn counters(&self) -> [u64; 3] {
        [
            self.read(COUNTERS + 8),
            self.read(COUNTERS + 16),
            self.read(COUNTERS + 24),
        ]
    }

    fn write_slice(&self, bytes: &[u8], address: u64) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("an address in RAM");
    }

    /// Zeroes `len` bytes.
    pub fn clear(&self, address: u64, len: usize) {
        self.write_slice(&vec![0; len], address);
    }

    /// Reads `len` bytes.
    #[must_use]
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("an address in RAM");
        bytes
    }

    /// All of RAM.
    #[must_use]
    pub fn ram(&self) -> Vec<u8> {
        let len = usize::try_from(self.memory.last_addr().0 + 1).expect("usize has 64 bits");
        self.bytes(0, len)
    }

    /// Copies the first `len` bytes of another guest's RAM.
    pub fn copy_from(&self, other: &TinyGuest, len: u64) {
        self.write_slice(&other.bytes(0, usize::try_from(len).expect("usize has 64 bits")), 0);
    }

    /// The state in which `program` starts.
    #[must_use]
    pub fn entry(
        program: TinyProgram,
        privilege: Privilege,
        interrupts: Interrupts,
        arguments: ArgumentRegisters,
    ) -> EntryState {
        let start = match privilege {
            Privilege::Kernel => Label::StartKernel,
            Privilege::User => Label::StartUser,
        };
        let gdt = DescriptorTable {
            base: GDT,
            limit: GDT_LIMIT,
        };
        let mut entry = EntryState::long_mode(start.address(), KERNEL_STACK, PML4, gdt, arguments.rsi);
        entry.idt = DescriptorTable {
            base: IDT,
            limit: IDT_LIMIT,
        };
        let interrupt_flag = if interrupts == Interrupts::On {
            INTERRUPT_FLAG
        } else {
            0
        };
        let ArgumentRegisters {
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            r14,
            r15,
        } = arguments;
        let (rsp, rip, r10, r11) = (
            KERNEL_STACK,
            start.address(),
            USER_FLAGS | interrupt_flag,
            program.address(),
        );
        // CPL3 gets its flags by IRETQ; until then interrupts stay off.
        let flags = if privilege == Privilege::Kernel {
            2 | interrupt_flag
        } else {
            2
        };
        entry.registers = [
            0, rbx, rcx, rdx, rsi, rdi, rsp, rbp, 0, 0, r10, r11, 0, 0, r14, r15, rip, flags,
        ];
        entry
    }
}
