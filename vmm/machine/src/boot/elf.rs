//! Bare-metal 64-bit ELF guests, entered by the contract of the `abi` crate (guest-images/guests/abi): long mode, CPL0,
//! the first 4 GiB mapped one to one.

use std::io::Cursor;

use ftvm_schema::entry::register::RDI;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{BootError, tables};
use crate::config::MachineConfig;
use ftvm_hypervisor::GuestMemory;
use ftvm_hypervisor::entry::EntryState;

/// Why an image is no bare-metal guest.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It does not load as an ELF file.
    #[error(transparent)]
    Load(#[from] linux_loader::loader::Error),
    /// An ELF file for another machine.
    #[error("the ELF header's {field} must be {expected}, found {found}")]
    Header {
        field: &'static str,
        expected: u8,
        found: u8,
    },
}

/// What linux-loader does not look at: class, byte order and machine (ELF header, e_ident and e_machine).
fn check_header(image: &[u8]) -> Result<(), ElfError> {
    let check = |field: &'static str, at: usize, expected: u8| match image.get(at) {
        Some(&found) if found != expected => Err(ElfError::Header { field, expected, found }),
        _ => Ok(()),
    };
    check("class", 4, 2)?;
    check("byte order", 5, 1)?;
    check("machine", 18, 62)
}

pub(super) fn load(
    name: &str,
    image: &[u8],
    config: &MachineConfig,
    memory: &GuestMemory,
) -> Result<EntryState, BootError> {
    let too_big = |source| BootError::Memory {
        name: name.to_owned(),
        memory: config.memory,
        source,
    };
    let unfit = |source| BootError::Image {
        name: name.to_owned(),
        source,
    };
    let start = Some(GuestAddress(abi::IMAGE_BASE));
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), start).map_err(|error| unfit(error.into()))?;
    check_header(image).map_err(unfit)?;
    let write = |addr: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(addr)).map_err(too_big);
    let (cr3, gdt) = tables::write(memory).map_err(too_big)?;
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
