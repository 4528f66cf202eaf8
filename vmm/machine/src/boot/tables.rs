//! GDT and page tables of every guest's start: Linux's selectors, the first 4 GiB mapped one to one with Accessed and
//! Dirty preset in every entry (a host sets them as it pleases: KVM-FACTS).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use ftvm_hypervisor::GuestMemory;
use ftvm_hypervisor::entry::DescriptorTable;

/// The GDT's limit: its last byte.
#[allow(clippy::cast_possible_truncation, reason = "56 bytes")]
const GDT_LIMIT: u16 = (size_of_val(&abi::GDT) - 1) as u16;

/// Bytes of one page table.
const TABLE: u64 = 0x1000;

/// Writes them where the `abi` crate says. Returns the value of CR3 and the GDT.
///
/// # Errors
/// If memory ends before.
pub(super) fn write(memory: &GuestMemory) -> Result<(u64, DescriptorTable), GuestMemoryError> {
    let write = |address: u64, value: u64| memory.write_slice(&value.to_le_bytes(), GuestAddress(address));
    for (index, descriptor) in abi::GDT.iter().enumerate() {
        write(abi::GDT_ADDR + 8 * index as u64, *descriptor)?;
    }
    let pml4 = abi::PAGE_TABLES_ADDR;
    let (pdpt, directories) = (pml4 + TABLE, pml4 + 2 * TABLE);
    write(pml4, pdpt | abi::PTE_TABLE)?;
    for gib in 0..4u64 {
        let directory = directories + gib * TABLE;
        write(pdpt + 8 * gib, directory | abi::PTE_TABLE)?;
        for entry in 0..512u64 {
            let page = (gib << 30) | (entry << 21);
            write(directory + 8 * entry, page | abi::PTE_LEAF_2M)?;
        }
    }
    let gdt = DescriptorTable {
        base: abi::GDT_ADDR,
        limit: GDT_LIMIT,
    };
    Ok((pml4, gdt))
}
