//! The boot contract between ftvm and its bare-metal guests: what the VMM guarantees at the entry point.
//!
//! A guest is a static ELF64 executable whose PT_LOAD segments are copied to their physical addresses. Its entry point
//! is called in 64-bit mode at CPL0 with RDI = the physical address of [`BootInfo`], RSP = [`STACK_TOP`], IF = DF = 0,
//! the control registers as in [`CR0`], [`CR4`] and [`EFER`], no IDT and no TSS. The first 4 GiB are mapped one to one
//! with 2 MiB pages whose accessed and dirty bits are preset on every level, because hardware that sets them by itself
//! would make guest memory depend on the host's paging history (see the determinism notes of the VMM).
//! The crate has no code that needs an operating system, so that both sides share one definition.

#![no_std]

/// First eight bytes of [`BootInfo`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"ftvmboot");
/// Version of this contract; a guest refuses any other.
pub const VERSION: u32 = 1;

/// Physical address of the boot GDT, in Linux's layout (see the selectors). The guest loads its own before it uses a TSS.
pub const GDT_ADDR: u64 = 0x500;
/// Physical address of [`BootInfo`].
pub const BOOT_INFO_ADDR: u64 = 0x7000;
/// Where the VMM puts the command line; the guest takes the address from [`BootInfo::cmdline_addr`].
pub const CMDLINE_ADDR: u64 = 0x8000;
/// Longest command line in bytes.
pub const CMDLINE_MAX: u64 = 0x1000;
/// First byte of the page tables: PML4, PDPT and four page directories.
pub const PAGE_TABLES_ADDR: u64 = 0x10000;
/// First byte behind the area reserved for page tables.
pub const PAGE_TABLES_END: u64 = 0x18000;
/// Lowest byte of the boot stack.
pub const STACK_BOTTOM: u64 = 0x70000;
/// RSP at entry.
pub const STACK_TOP: u64 = 0x80000;
/// Guests are linked at this physical address; everything below belongs to the boot contract.
pub const IMAGE_BASE: u64 = 0x20_0000;
/// No segment of a guest reaches this address; free memory for its heap starts here.
pub const IMAGE_LIMIT: u64 = 0x80_0000;
/// Least memory a guest may be given, in bytes.
pub const MIN_MEMORY: u64 = 0x100_0000;

/// Flags of a non-leaf page-table entry: present, writable, user, accessed (SDM vol. 3, 4.5).
pub const PTE_TABLE: u64 = 0x27;
/// Flags of a 2 MiB leaf: present, writable, user, accessed, dirty, page size.
pub const PTE_LEAF_2M: u64 = 0xe7;

/// CR0 at entry: PE, MP, ET, NE, WP, AM, PG.
pub const CR0: u64 = 0x8005_0033;
/// CR4 at entry: PAE, OSFXSR, OSXMMEXCPT.
pub const CR4: u64 = 0x620;
/// EFER at entry: SCE, LME, LMA, NXE.
pub const EFER: u64 = 0xd01;

/// 64-bit kernel code.
pub const KERNEL_CODE: u16 = 0x10;
/// Kernel data, in SS at entry; DS, ES, FS and GS are null.
pub const KERNEL_DATA: u16 = 0x18;
/// 32-bit user code, with RPL 3.
pub const USER_CODE_32: u16 = 0x23;
/// User data, with RPL 3.
pub const USER_DATA: u16 = 0x2b;
/// 64-bit user code, with RPL 3.
pub const USER_CODE: u16 = 0x33;
/// The guest's own TSS; not in the boot GDT.
pub const TSS: u16 = 0x40;

/// Segment descriptors of the boot GDT, by index (selector / 8): null, unused, 0x10 to 0x33 as above.
pub const GDT: [u64; 7] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

/// The console, a 16550 UART.
pub const UART_PORT: u16 = 0x3f8;
/// `outb` here ends the guest with that exit status.
pub const EXIT_PORT: u16 = 0xf4;
/// `outw` of [`POWER_OFF_VALUE`] here is a plain power-off (ACPI PM1a control).
pub const POWER_OFF_PORT: u16 = 0x604;
/// SLP_EN with sleep type 0.
pub const POWER_OFF_VALUE: u16 = 0x2000;
/// `outb` of [`RESET_VALUE`] here asks for a reset (keyboard controller).
pub const RESET_PORT: u16 = 0x64;
/// Pulse the reset line.
pub const RESET_VALUE: u8 = 0xfe;
/// The ACPI PM timer: a 32-bit read gives a 24-bit counter of [`PM_TIMER_HZ`].
pub const PM_TIMER_PORT: u16 = 0x608;
/// Frequency of the PM timer.
pub const PM_TIMER_HZ: u32 = 3_579_545;
/// The PM timer counts modulo this mask + 1: it wraps every 4.69 s.
pub const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// Input clock of the PIT (ports 0x40 to 0x43).
pub const PIT_HZ: u32 = 1_193_182;
/// BARs are assigned from here upwards.
pub const PCI_HOLE_ADDR: u64 = 0xe000_0000;

/// Exit statuses that every guest uses alike.
pub mod status {
    /// The guest did what it was asked for.
    pub const OK: u8 = 0;
    /// A check of the guest's own work failed: the machine computed or remembered something wrong.
    pub const MISMATCH: u8 = 1;
    /// The command line or a device cannot be used; the console says why.
    pub const USAGE: u8 = 2;
    /// The guest's program panicked or met an unexpected exception.
    pub const PANIC: u8 = 101;
}

/// What the VMM tells the guest, at [`BOOT_INFO_ADDR`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// [`BootInfo::SIZE`].
    pub size: u32,
    /// RAM in bytes, contiguous from address 0, at least [`MIN_MEMORY`] and at most [`PCI_HOLE_ADDR`].
    pub memory_bytes: u64,
    /// Seed of everything random in the guest; part of the logged inputs.
    pub seed: u64,
    /// Physical address of the command line.
    pub cmdline_addr: u64,
    /// Its length in bytes, at most [`CMDLINE_MAX`]; UTF-8, no terminating zero.
    pub cmdline_len: u64,
}

/// Why a boot information block cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// `magic` is something else.
    Magic(u64),
    /// `version` or `size` belong to another contract.
    Version { version: u32, size: u32 },
    /// `memory_bytes` is outside its range.
    Memory(u64),
    /// The command line is too long or not inside RAM.
    Cmdline { addr: u64, len: u64 },
}

impl core::fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            BootInfoError::Magic(found) => {
                write!(
                    f,
                    "boot information at {BOOT_INFO_ADDR:#x}: magic {found:#x}, expected {MAGIC:#x}"
                )
            }
            BootInfoError::Version { version, size } => write!(
                f,
                "boot information of version {version} with {size} bytes, expected version {VERSION} with {} bytes: \
                 guest and VMM were built from different sources",
                BootInfo::SIZE
            ),
            BootInfoError::Memory(bytes) => {
                write!(f, "{bytes} bytes of memory, expected {MIN_MEMORY} to {PCI_HOLE_ADDR}")
            }
            BootInfoError::Cmdline { addr, len } => {
                write!(
                    f,
                    "command line of {len} bytes at {addr:#x} is longer than {CMDLINE_MAX} or not in memory"
                )
            }
        }
    }
}

impl core::error::Error for BootInfoError {}

impl BootInfo {
    /// Bytes that the structure takes in guest memory.
    pub const SIZE: u32 = 48;

    /// Boot information for a command line of `cmdline_len` bytes at [`CMDLINE_ADDR`].
    #[must_use]
    pub const fn new(memory_bytes: u64, seed: u64, cmdline_len: u64) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            size: Self::SIZE,
            memory_bytes,
            seed,
            cmdline_addr: CMDLINE_ADDR,
            cmdline_len,
        }
    }

    /// Says whether the block follows this contract.
    ///
    /// # Errors
    /// The first field that does not.
    pub const fn check(&self) -> Result<(), BootInfoError> {
        if self.magic != MAGIC {
            return Err(BootInfoError::Magic(self.magic));
        }
        if self.version != VERSION || self.size != Self::SIZE {
            return Err(BootInfoError::Version {
                version: self.version,
                size: self.size,
            });
        }
        if self.memory_bytes < MIN_MEMORY || self.memory_bytes > PCI_HOLE_ADDR {
            return Err(BootInfoError::Memory(self.memory_bytes));
        }
        let in_memory = match self.cmdline_addr.checked_add(self.cmdline_len) {
            Some(end) => end <= self.memory_bytes,
            None => false,
        };
        if self.cmdline_len > CMDLINE_MAX || !in_memory {
            return Err(BootInfoError::Cmdline {
                addr: self.cmdline_addr,
                len: self.cmdline_len,
            });
        }
        Ok(())
    }

    /// The bytes as they lie in guest memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE as usize] {
        let mut bytes = [0; Self::SIZE as usize];
        let (head, tail) = bytes.split_at_mut(16);
        head[..8].copy_from_slice(&self.magic.to_le_bytes());
        head[8..12].copy_from_slice(&self.version.to_le_bytes());
        head[12..].copy_from_slice(&self.size.to_le_bytes());
        let fields = [self.memory_bytes, self.seed, self.cmdline_addr, self.cmdline_len];
        for (to, field) in tail.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

const _: () = assert!(size_of::<BootInfo>() == BootInfo::SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: BootInfo = BootInfo::new(64 << 20, 7, 9);

    #[test]
    fn bytes_are_the_structure_in_memory() {
        let info = BootInfo {
            magic: 0x0807_0605_0403_0201,
            version: 0x0c0b_0a09,
            size: 0x100f_0e0d,
            memory_bytes: 0x1817_1615_1413_1211,
            seed: 0x201f_1e1d_1c1b_1a19,
            cmdline_addr: 0x2827_2625_2423_2221,
            cmdline_len: 0x302f_2e2d_2c2b_2a29,
        };
        let expected: [u8; 48] = core::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        assert_eq!(info.to_bytes(), expected);
        assert_eq!(core::mem::offset_of!(BootInfo, cmdline_len), 40);
    }

    #[test]
    fn check_accepts_its_bounds_and_nothing_beyond() {
        for memory_bytes in [MIN_MEMORY, PCI_HOLE_ADDR] {
            assert_eq!(BootInfo { memory_bytes, ..GOOD }.check(), Ok(()));
        }
        for memory_bytes in [MIN_MEMORY - 1, PCI_HOLE_ADDR + 1] {
            assert_eq!(
                BootInfo { memory_bytes, ..GOOD }.check(),
                Err(BootInfoError::Memory(memory_bytes))
            );
        }
        assert_eq!(
            BootInfo {
                cmdline_len: CMDLINE_MAX,
                ..GOOD
            }
            .check(),
            Ok(())
        );
        for (cmdline_addr, cmdline_len) in [(CMDLINE_ADDR, CMDLINE_MAX + 1), (64 << 20, 1), (u64::MAX, 1)] {
            let info = BootInfo {
                cmdline_addr,
                cmdline_len,
                ..GOOD
            };
            assert_eq!(
                info.check(),
                Err(BootInfoError::Cmdline {
                    addr: cmdline_addr,
                    len: cmdline_len
                })
            );
        }
        assert_eq!(BootInfo { magic: 1, ..GOOD }.check(), Err(BootInfoError::Magic(1)));
        assert_eq!(
            BootInfo { version: 2, ..GOOD }.check(),
            Err(BootInfoError::Version {
                version: 2,
                size: BootInfo::SIZE
            })
        );
        assert_eq!(
            BootInfo { size: 40, ..GOOD }.check(),
            Err(BootInfoError::Version { version: 1, size: 40 })
        );
    }
}
