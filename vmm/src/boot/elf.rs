//! Bare-metal 64-bit ELF guests, entered by the contract of the `abi` crate (guest-images/guests/abi): long mode, CPL0, the first 4 GiB
//! mapped one to one with Accessed and Dirty preset in every entry (a host sets them as it pleases: KVM-FACTS).

use std::io::Cursor;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::BootError;
use crate::hypervisor::GuestMemory;
use crate::hypervisor::kvm::{DescriptorTable, EntryState};
use crate::machine::config::MachineConfig;

/// The GDT's limit: its last byte.
#[allow(clippy::cast_possible_truncation, reason = "56 bytes")]
const GDT_LIMIT: u16 = (size_of_val(&abi::GDT) - 1) as u16;

/// Where the first argument stands in a register file.
const RDI: usize = 5;

/// Bytes of one page table.
const TABLE: u64 = 0x1000;

pub(super) fn load(
    name: &str,
    image: &[u8],
    config: &MachineConfig,
    memory: &GuestMemory,
) -> Result<EntryState, BootError> {
    let too_big = |what: String| BootError::Memory {
        name: name.to_owned(),
        memory: config.memory,
        what,
    };
    let loaded = Elf::load(
        memory,
        None,
        &mut Cursor::new(image),
        Some(GuestAddress(abi::IMAGE_BASE)),
    )
    .map_err(|e| BootError::Image {
        name: name.to_owned(),
        what: format!("no bootable 64-bit ELF: {e}"),
    })?;
    let write = |addr: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(addr))
            .map_err(|e| too_big(e.to_string()))
    };
    for (index, descriptor) in abi::GDT.iter().enumerate() {
        write(abi::GDT_ADDR + 8 * index as u64, &descriptor.to_le_bytes())?;
    }
    let pml4 = abi::PAGE_TABLES_ADDR;
    let (pdpt, directories) = (pml4 + TABLE, pml4 + 2 * TABLE);
    write(pml4, &(pdpt | abi::PTE_TABLE).to_le_bytes())?;
    for gib in 0..4u64 {
        let directory = directories + gib * TABLE;
        write(pdpt + 8 * gib, &(directory | abi::PTE_TABLE).to_le_bytes())?;
        for entry in 0..512u64 {
            let page = (gib << 30) | (entry << 21);
            write(directory + 8 * entry, &(page | abi::PTE_LEAF_2M).to_le_bytes())?;
        }
    }
    write(abi::CMDLINE_ADDR, config.cmdline.as_bytes())?;
    let info = abi::BootInfo::new(config.memory, config.seed, config.cmdline.len() as u64);
    write(abi::BOOT_INFO_ADDR, &info.to_bytes())?;
    let gdt = DescriptorTable {
        base: abi::GDT_ADDR,
        limit: GDT_LIMIT,
    };
    let mut entry = EntryState::long_mode(
        loaded.kernel_load.raw_value(),
        abi::STACK_TOP,
        pml4,
        gdt,
        abi::BOOT_INFO_ADDR,
    );
    entry.registers[RDI] = abi::BOOT_INFO_ADDR;
    Ok(entry)
}
