//! Bare-metal 64-bit ELF guests, entered by the contract of the `abi` crate (guest-images/guests/abi): long mode, CPL0, the first 4 GiB
//! mapped one to one.

use std::io::Cursor;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{BootError, tables};
use crate::hypervisor::GuestMemory;
use crate::hypervisor::kvm::EntryState;
use crate::machine::config::MachineConfig;

/// Where the first argument stands in a register file.
const RDI: usize = 5;

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
    let (cr3, gdt) = tables::write(memory).map_err(|e| too_big(e.to_string()))?;
    write(abi::CMDLINE_ADDR, config.cmdline.as_bytes())?;
    let info = abi::BootInfo::new(config.memory, config.seed, config.cmdline.len() as u64);
    write(abi::BOOT_INFO_ADDR, &info.to_bytes())?;
    let mut entry = EntryState::long_mode(
        loaded.kernel_load.raw_value(),
        abi::STACK_TOP,
        cr3,
        gdt,
        abi::BOOT_INFO_ADDR,
    );
    entry.registers[RDI] = abi::BOOT_INFO_ADDR;
    Ok(entry)
}
