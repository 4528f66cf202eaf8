//! The entry point: from the boot contract to the guest's main function.

use core::arch::naked_asm;

use guest_abi::{BootInfo, status};

use crate::memory::FreeMemory;
use crate::{Boot, CommandLine, console, interrupts, power};

unsafe extern "Rust" {
    safe fn guest_main(boot: Boot) -> u8;
}

/// The ELF entry point; the stack and RDI are as the boot contract says.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("cld", "xor ebp, ebp", "call {run}", "ud2", run = sym run)
}

pub(crate) extern "C" fn run(info: &'static BootInfo) -> ! {
    console::init();
    interrupts::init();
    if let Err(error) = info.check() {
        console::print(format_args!("{error}\n"));
        power::exit(status::USAGE);
    }
    // SAFETY: the boot information has been checked, and `run` is called once.
    let memory = unsafe { FreeMemory::new(info) };
    let boot = Boot {
        info,
        cmdline: CommandLine::new(cmdline(info)),
        memory,
    };
    power::exit(guest_main(boot))
}

fn cmdline(info: &BootInfo) -> &'static str {
    let (Ok(addr), Ok(len)) = (usize::try_from(info.cmdline_addr), usize::try_from(info.cmdline_len)) else {
        return "";
    };
    if len == 0 {
        return "";
    }
    // SAFETY: `BootInfo::check` found the range inside RAM, which is mapped one to one and not written by the guest.
    let bytes = unsafe { core::slice::from_raw_parts(addr as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or_else(|error| {
        console::print(format_args!("command line at {addr:#x}: {error}\n"));
        power::exit(status::USAGE)
    })
}
