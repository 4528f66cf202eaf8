//! What every bare-metal guest needs to run: entry, segments, interrupts, serial console, timers, CPL3.
//!
//! The runtime keeps to what every KVM can run, a software KVM's instruction emulator included: integer-only code at
//! CPL0, Linux's GDT layout, both IOPL = 3 and a zero I/O bitmap for ports at CPL3, and entry to CPL0 by `ud2` or an
//! interrupt only. A guest takes no input but interrupts, port and MMIO reads, and its boot information, so that a log
//! of those replays it. `unsafe` of all guests lives here; they themselves are safe code that begins with [`entry!`].

#![no_std]

pub mod cmdline;
pub mod console;
pub mod cpu;
pub mod interrupts;
pub mod memory;
pub mod mmio;
pub mod pic;
pub mod power;
mod pvh;
mod segments;
mod start;
pub mod timer;
pub mod user;

pub use cmdline::CommandLine;
pub use guest_abi as abi;

use guest_abi::{BootInfo, status};

/// What a guest's entry function is given.
#[derive(Debug)]
pub struct Boot {
    /// Memory size and random seed.
    pub info: &'static BootInfo,
    /// The command line.
    pub cmdline: CommandLine<'static>,
    /// RAM that belongs to nobody yet.
    pub memory: memory::FreeMemory,
}

/// Names the function a guest begins with: `fn(Boot) -> u8`. It runs at CPL0 with interrupts disabled, segments and IDT
/// set up; what it returns is the guest's exit status (see [`guest_abi::status`]).
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            #[allow(
                unsafe_code,
                reason = "the runtime finds the guest's entry function by this symbol"
            )]
            #[unsafe(no_mangle)]
            fn guest_main(boot: $crate::Boot) -> u8 {
                let main: fn($crate::Boot) -> u8 = $main;
                main(boot)
            }
        };
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print(format_args!("{info}\n"));
    power::exit(status::PANIC)
}

/// The precompiled `alloc` library refers to it in code for unwinding, which a program that aborts never reaches.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::exit(status::PANIC)
}
