//! What is tried on this host's KVM, each on a tiny guest that is kicked hard.

mod memory;
mod replay;

use std::time::{Duration, Instant};

pub use memory::{dirty_log, host_page_tables};
pub use replay::{exit_replay, fragments, save_restore};

use super::bench::VcpuBench;
use super::guest::{ArgumentRegisters, FREE, Privilege};
use super::programs::{Label, TinyProgram};
use ftvm_hypervisor::profile::{CpuProfile, CpuidEntry};
use ftvm_hypervisor::{Cpu as _, CpuError, DeliveryMode, Exit, PAGE_SIZE};
use ftvm_schema::entry::register::{RDI, RIP};

/// RAM of the bench: room for 1536 pages that are touched for the first time.
pub const RAM: usize = 8 << 20;
/// A loop iteration takes 0.3 to 3 ns where CPL0 runs natively (or in QEMU), and 500 ns in KVM's emulator.
const NATIVE_ITERATION: Duration = Duration::from_nanos(100);
const LOOP_ITERATIONS: u32 = 10_000;
/// Most samples that are taken; one takes 10 ms where KVM emulates the loop.
const SPEED_SAMPLES: u32 = 30;

/// Where the saved RIP stands at an OUT exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutRip {
    /// At the OUT itself, until it is completed.
    AtInstruction,
    /// At the next instruction.
    Behind,
}

/// What deviates from the expectation, in words; `None` if all is well.
pub type Deviation = Option<String>;

/// Whether windows open at the same instruction every time in `mode`, both behind `sti` and behind `popf`.
pub fn window(bench: &mut VcpuBench, mode: DeliveryMode, rounds: u32) -> Result<Deviation, CpuError> {
    bench.cpu.set_delivery_mode(mode);
    let cases = [
        (TinyProgram::WindowSti, Label::WindowAfterStore),
        (TinyProgram::WindowPopf, Label::WindowAfterPopf),
    ];
    for (program, label) in cases {
        bench.start(
            program,
            Privilege::Kernel,
            ArgumentRegisters {
                rdi: FREE,
                ..ArgumentRegisters::default()
            },
        )?;
        for round in 0..rounds {
            bench.expect_out(0x10)?;
            prepare_window(bench, round)?;
            let exit = bench.next_exit()?;
            bench.cpu.request_window(false);
            let rip = bench.cpu.registers()[RIP];
            if exit != Exit::IrqWindow || rip != label.address() {
                let expected = label.address();
                return Ok(Some(format!(
                    "in round {round} of {program:?} {exit:x?} came at {rip:#x}, expected a window at {expected:#x}"
                )));
            }
            if !bench.cpu.can_interrupt() {
                return Ok(Some(format!(
                    "in round {round} of {program:?} the open window takes no interrupt"
                )));
            }
            bench.expect_out(0x11)?;
        }
    }
    Ok(None)
}

/// Makes the store in the shadow of `sti` leave the guest in every way there is: a page that has never been touched,
/// one that the dirty log has write-protected, and one that is simply there.
fn prepare_window(bench: &mut VcpuBench, round: u32) -> Result<(), CpuError> {
    bench.cpu.complete()?;
    match round % 3 {
        0 => {
            let mut registers = bench.cpu.registers();
            registers[RDI] = FREE + u64::from(round) * PAGE_SIZE % (RAM as u64 - FREE);
            bench.cpu.set_registers(&registers)?;
        }
        1 => bench.cpu.harvest_dirty(&mut Vec::new())?,
        _ => {}
    }
    bench.cpu.request_window(true);
    Ok(())
}

/// Where RIP stands at an OUT exit.
pub fn out_rip(bench: &mut VcpuBench) -> Result<OutRip, CpuError> {
    bench.start(TinyProgram::WindowPopf, Privilege::Kernel, ArgumentRegisters::default())?;
    bench.expect_out(0x10)?;
    let at_instruction = bench.cpu.registers()[RIP] == TinyProgram::WindowPopf.address();
    Ok(if at_instruction {
        OutRip::AtInstruction
    } else {
        OutRip::Behind
    })
}

/// Time of one iteration of a two-instruction loop at CPL0; native if it is below 100 ns.
pub fn kernel_speed(bench: &mut VcpuBench) -> Result<(Duration, bool), CpuError> {
    let mut best = Duration::MAX;
    // Whatever else happens meanwhile only adds time: one good sample tells.
    for _ in 0..SPEED_SAMPLES {
        if best < NATIVE_ITERATION {
            break;
        }
        let arguments = ArgumentRegisters {
            rcx: u64::from(LOOP_ITERATIONS),
            ..ArgumentRegisters::default()
        };
        bench.start(TinyProgram::Loop, Privilege::Kernel, arguments)?;
        let began = Instant::now();
        bench.expect_out(0x11)?;
        best = best.min(began.elapsed() / LOOP_ITERATIONS);
    }
    Ok((best, best < NATIVE_ITERATION))
}

/// Whether guests see the CPUID table they were given.
pub fn cpuid(bench: &mut VcpuBench, profile: &CpuProfile) -> Result<Deviation, CpuError> {
    for expected in profile
        .cpuid
        .iter()
        .filter(|entry| matches!(entry.leaf, 0 | 1 | 7 | 0xd | 0x8000_0001))
    {
        for privilege in [Privilege::Kernel, Privilege::User] {
            let (rbx, rcx) = (u64::from(expected.leaf), u64::from(expected.subleaf.unwrap_or(0)));
            bench.start(
                TinyProgram::Cpuid,
                privilege,
                ArgumentRegisters {
                    rbx,
                    rcx,
                    ..ArgumentRegisters::default()
                },
            )?;
            bench.expect_out(0x10)?;
            let found = bench.cpu.registers();
            if !same_leaf(expected, [found[0], found[1], found[2], found[3]]) {
                return Ok(Some(format!(
                    "guests see bits of leaf {:#x} that were hidden from them",
                    expected.leaf
                )));
            }
        }
    }
    Ok(None)
}

fn same_leaf(expected: &CpuidEntry, found: [u64; 4]) -> bool {
    // OSXSAVE (1.ECX bit 27) mirrors CR4; it is 0 in both.
    [expected.eax, expected.ebx, expected.ecx, expected.edx].map(u64::from) == found
}
