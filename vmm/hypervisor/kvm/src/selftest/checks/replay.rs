//! What replay stands on: equal exits with equal registers and memory, state that can be moved, exits in parts.

use super::{Deviation, RAM};
use crate::selftest::bench::VcpuBench;
use crate::selftest::guest::{ArgumentRegisters, Interrupts, MMIO, Privilege, TABLE, VECTOR};
use crate::selftest::programs::TinyProgram;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::sequence::Sequence;
use ftvm_hypervisor::{Cpu as _, CpuError, Exit};
use ftvm_schema::entry::RegisterFile;

/// More exits than `TinyProgram::Fragments` makes; beyond, the guest has gone astray.
const MOST_FRAGMENTS: usize = 16;

/// Whether a vCPU saved at a kick and restored into another VM comes to the same result, `times` times.
pub fn save_restore(bench: &mut VcpuBench, profile: &CpuProfile, times: u32) -> Result<Deviation, CpuError> {
    for (program, privilege) in [
        (TinyProgram::Mix, Privilege::Kernel),
        (TinyProgram::MixSse, Privilege::User),
    ] {
        let mut other = VcpuBench::new(RAM, profile)?;
        let mut mix = Mix {
            program,
            privilege,
            rounds: 1000,
        };
        let mut expected = mix.result_of(bench)?;
        let mut time = 0;
        while time < times {
            // A varying number of kicks, so that the point is anywhere in the run. It must be long enough for them.
            if !mix.is_kicked(bench, 1 + time % 4)? {
                mix.rounds *= 2;
                expected = mix.result_of(bench)?;
                continue;
            }
            time += 1;
            let state = bench.cpu.save()?;
            other.guest.copy_from(&bench.guest, TABLE + 0x1_0000);
            other.cpu.restore(&state)?;
            if mix.result(&mut other)? != expected {
                return Ok(Some(format!(
                    "restore {time} of {program:?} came to another result than the run itself"
                )));
            }
            if bench.cpu.save()? != state {
                return Ok(Some(format!(
                    "saving twice gave two states (restore {time} of {program:?})"
                )));
            }
        }
    }
    Ok(None)
}

/// A run of `TinyProgram::Mix` or `TinyProgram::MixSse`.
#[derive(Clone, Copy, Debug)]
struct Mix {
    program: TinyProgram,
    privilege: Privilege,
    rounds: u64,
}

impl Mix {
    fn begin(&self, bench: &mut VcpuBench) -> Result<(), CpuError> {
        bench.guest.clear(TABLE, 0x1_0000);
        bench.start(
            self.program,
            self.privilege,
            ArgumentRegisters {
                rcx: self.rounds,
                rdi: TABLE,
                ..ArgumentRegisters::default()
            },
        )
    }

    /// Begins anew; whether `kicks` kicks arrive before the program's end.
    fn is_kicked(&self, bench: &mut VcpuBench, kicks: u32) -> Result<bool, CpuError> {
        self.begin(bench)?;
        for _ in 0..kicks {
            if bench.run_to_kick()? != Exit::Interrupted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn result_of(&self, bench: &mut VcpuBench) -> Result<(RegisterFile, Vec<u8>), CpuError> {
        self.begin(bench)?;
        self.result(bench)
    }

    /// Registers and the mixed table at the end.
    fn result(&self, bench: &mut VcpuBench) -> Result<(RegisterFile, Vec<u8>), CpuError> {
        bench.expect_out(0x11)?;
        bench.cpu.complete()?;
        Ok((bench.cpu.registers(), bench.guest.bytes(TABLE, 0x1_0000)))
    }
}

/// Whether an access that takes several exits gives them one by one, each by completing the one before it.
pub fn fragments(bench: &mut VcpuBench) -> Result<Deviation, CpuError> {
    let out = |port| Exit::PortWrite {
        port,
        size: 1,
        count: 1,
    };
    let store = |offset| Exit::MmioWrite {
        addr: MMIO + offset,
        len: 4,
    };
    let load = Exit::MmioRead {
        addr: MMIO + 0x10,
        len: 4,
    };
    let expected = [
        load,
        store(0x10),
        store(0xffc),
        store(0x1000),
        out(0x10),
        out(0x10),
        out(0x10),
        out(0x11),
    ];
    let bytes = b"\x41\x40\x40\x40\x88\x77\x66\x55\x44\x33\x22\x11\x11\x22\x33";
    for privilege in [Privilege::Kernel, Privilege::User] {
        let arguments = ArgumentRegisters {
            rdi: MMIO + 0x10,
            rsi: MMIO + 0xffc,
            rdx: TABLE,
            ..ArgumentRegisters::default()
        };
        bench.guest.write(TABLE, 0x33_2211);
        bench.start(TinyProgram::Fragments, privilege, arguments)?;
        let mut seen = vec![bench.next_exit()?];
        bench.cpu.data().fill(0x40);
        let (mut written, mut completed) = (Vec::new(), Vec::new());
        while seen.last() != Some(&out(0x11)) && seen.len() < MOST_FRAGMENTS {
            let next = match bench.cpu.complete()? {
                Some(exit) => {
                    completed.push(exit);
                    exit
                }
                None => bench.next_exit()?,
            };
            written.extend_from_slice(bench.cpu.data());
            seen.push(next);
        }
        // Whether `rep outsb` goes on by completion or by running on is KVM's choice.
        completed.retain(|exit| matches!(exit, Exit::MmioWrite { .. }));
        if seen != expected || !written.starts_with(bytes) || completed != [store(0x10), store(0x1000)] {
            return Ok(Some(format!(
                "an access in several parts gave {seen:x?} with {written:x?}, {completed:x?} by completion ({privilege:?} mode)"
            )));
        }
    }
    Ok(None)
}

/// One exit as replay must see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    exit: Exit,
    registers: RegisterFile,
    wrote: Vec<u8>,
}

/// Whether `exits` exits with random answers and interrupts replay exactly: every register at every exit, and memory.
///
/// The first run decides what is answered and when an interrupt comes, the second does the same at the same exits;
/// kicks fall differently in both.
pub fn exit_replay(profile: &CpuProfile, privilege: Privilege, exits: u32, seed: u64) -> Result<Deviation, CpuError> {
    let mut recorded = Vec::new();
    let mut memory = Vec::new();
    for run in 0..2 {
        let mut bench = VcpuBench::new(RAM, profile)?;
        let arguments = ArgumentRegisters {
            rbp: MMIO,
            r14: seed,
            r15: TABLE,
            ..ArgumentRegisters::default()
        };
        bench.start_with(TinyProgram::Medley, privilege, Interrupts::On, arguments)?;
        let mut choices = Sequence::new(seed);
        for number in 0..exits {
            let step = medley_step(&mut bench, &mut choices)?;
            if let Exit::Terminal(terminal) = step.exit {
                return Ok(Some(format!("the guest ended at exit {number}: {terminal:?}")));
            }
            if run == 0 {
                recorded.push(step);
            } else if recorded.get(number as usize) != Some(&step) {
                let before = &recorded[number as usize];
                return Ok(Some(format!(
                    "exit {number} differs: {before:x?} recorded, {step:x?} replayed"
                )));
            }
        }
        bench.cpu.complete()?;
        if run == 0 {
            memory = bench.guest.ram();
        } else if memory != bench.guest.ram() {
            return Ok(Some(format!("memory differs after {exits} equal exits")));
        }
    }
    Ok(None)
}

/// Runs to the next exit, answers it and perhaps queues an interrupt.
fn medley_step(bench: &mut VcpuBench, choices: &mut Sequence) -> Result<Step, CpuError> {
    let exit = match bench.cpu.complete()? {
        Some(exit) => exit,
        None => {
            if bench.cpu.can_interrupt() && choices.below(6) == 0 {
                bench.cpu.interrupt(VECTOR)?;
            }
            bench.next_exit()?
        }
    };
    let registers = bench.cpu.registers();
    let is_read = matches!(exit, Exit::PortRead { .. } | Exit::MmioRead { .. });
    if is_read {
        bench
            .cpu
            .data()
            .fill_with(|| u8::try_from(choices.below(256)).expect("below 256"));
    }
    let wrote = if is_read { Vec::new() } else { bench.cpu.data().to_vec() };
    Ok(Step { exit, registers, wrote })
}
