//! What is tried on this host's KVM, each on a tiny guest that is kicked hard.

use std::time::{Duration, Instant};

use super::bench::Bench;
use super::guest::{Arguments, FREE, Interrupts, MMIO, Privilege, TABLE, VECTOR};
use super::programs::{Label, Program};
use crate::PageTableRefresh;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::profile::CpuidEntry;
use ftvm_hypervisor::sequence::Sequence;
use ftvm_hypervisor::{Cpu, CpuError, DeliveryMode, Exit};
use ftvm_schema::entry::RegisterFile;

/// RAM of the bench: room for 1536 pages that are touched for the first time.
pub const RAM: usize = 8 << 20;
const PAGE: u64 = 4096;
const RIP: usize = 16;
const RDI: usize = 5;
/// Two large pages whose mapping is exchanged, and what they hold.
const FIRST: (u64, u32) = (0x40_0000, 0x1111_1111);
const SECOND: (u64, u32) = (0x60_0000, 0x2222_2222);
/// A loop iteration takes 0.3 to 3 ns where CPL0 runs natively (or in QEMU), and 500 ns in KVM's emulator.
const NATIVE_ITERATION: Duration = Duration::from_nanos(100);
const LOOP_ITERATIONS: u32 = 10_000;
/// At most; a sample takes 10 ms where KVM emulates the loop.
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

/// More exits than `Program::Fragments` makes; beyond, the guest has gone astray.
const MOST_FRAGMENTS: usize = 16;

/// A violated expectation, in words; `None` if all is well.
pub type Finding = Option<String>;

/// Whether windows open at the same instruction every time in `mode`, both behind `sti` and behind `popf`.
pub fn window(bench: &mut Bench, mode: DeliveryMode, rounds: u32) -> Result<Finding, CpuError> {
    bench.cpu.set_delivery_mode(mode);
    let cases = [
        (Program::WindowSti, Label::WindowAfterStore),
        (Program::WindowPopf, Label::WindowAfterPopf),
    ];
    for (program, label) in cases {
        bench.start(
            program,
            Privilege::Kernel,
            Arguments {
                rdi: FREE,
                ..Arguments::default()
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

/// Makes the store in the shadow of `sti` leave the guest in every way there is: a page that has never been touched, one
/// that the dirty log has write-protected, and one that is simply there.
fn prepare_window(bench: &mut Bench, round: u32) -> Result<(), CpuError> {
    bench.cpu.complete()?;
    match round % 3 {
        0 => {
            let mut registers = bench.cpu.registers();
            registers[RDI] = FREE + u64::from(round) * PAGE % (RAM as u64 - FREE);
            bench.cpu.set_registers(&registers)?;
        }
        1 => bench.cpu.harvest_dirty(&mut Vec::new())?,
        _ => {}
    }
    bench.cpu.request_window(true);
    Ok(())
}

/// Whether a vCPU saved at a kick and restored into another VM comes to the same result, `times` times.
pub fn save_restore(bench: &mut Bench, profile: &CpuProfile, times: u32) -> Result<Finding, CpuError> {
    for (program, privilege) in [(Program::Mix, Privilege::Kernel), (Program::MixSse, Privilege::User)] {
        let mut other = Bench::new(RAM, profile)?;
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

/// A run of `Program::Mix` or `Program::MixSse`.
#[derive(Clone, Copy, Debug)]
struct Mix {
    program: Program,
    privilege: Privilege,
    rounds: u64,
}

impl Mix {
    fn begin(&self, bench: &mut Bench) -> Result<(), CpuError> {
        bench.guest.clear(TABLE, 0x1_0000);
        bench.start(
            self.program,
            self.privilege,
            Arguments {
                rcx: self.rounds,
                rdi: TABLE,
                ..Arguments::default()
            },
        )
    }

    /// Begins anew; whether so many kicks come before the end.
    fn is_kicked(&self, bench: &mut Bench, kicks: u32) -> Result<bool, CpuError> {
        self.begin(bench)?;
        for _ in 0..kicks {
            if bench.run_to_kick()? != Exit::Interrupted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn result_of(&self, bench: &mut Bench) -> Result<(RegisterFile, Vec<u8>), CpuError> {
        self.begin(bench)?;
        self.result(bench)
    }

    /// Registers and the mixed table at the end.
    fn result(&self, bench: &mut Bench) -> Result<(RegisterFile, Vec<u8>), CpuError> {
        bench.expect_out(0x11)?;
        bench.cpu.complete()?;
        Ok((bench.cpu.registers(), bench.guest.bytes(TABLE, 0x1_0000)))
    }
}

/// On a slow host a kick may come before the guest's first instruction: so many runs more may pass until it has written.
const IDLE_RUNS: u32 = 200;

/// Whether every page that changed between two looks was in the second, and every page that was not forgotten in between.
pub fn dirty_log(bench: &mut Bench, harvests: u32) -> Result<Finding, CpuError> {
    let (mut pages, mut left) = (Vec::new(), Vec::new());
    for privilege in [Privilege::Kernel, Privilege::User] {
        let mask = RAM as u64 / 2 - 1;
        let arguments = Arguments {
            rcx: u64::MAX,
            rdi: RAM as u64 / 2,
            rdx: mask,
            ..Arguments::default()
        };
        bench.start(Program::Scatter, privilege, arguments)?;
        bench.cpu.harvest_dirty(&mut pages)?;
        left.clear();
        let (begun, mut before) = (bench.guest.ram(), bench.guest.ram());
        for harvest in 0..harvests + IDLE_RUNS {
            if harvest >= harvests && before != begun {
                break;
            }
            if bench.run_to_kick()? != Exit::Interrupted {
                return Ok(Some(
                    "a guest that only writes to memory left for another reason".into(),
                ));
            }
            bench.cpu.dirty(&mut pages)?;
            let after = bench.guest.ram();
            let lost = left.iter().copied().find(|page| pages.binary_search(page).is_err());
            if let Some(missed) = missed_page(&before, &after, &pages).or(lost) {
                return Ok(Some(format!(
                    "harvest {harvest} missed page {missed:#x} ({privilege:?} mode)"
                )));
            }
            before = after;
            // As a checkpoint does: some pages stay dirty.
            left = pages
                .extract_if(.., |page| (*page + u64::from(harvest)) % 4 == 0)
                .collect();
            bench.cpu.forget_dirty(&pages)?;
        }
        if before == begun {
            return Ok(Some(format!(
                "a guest that writes all the time wrote nothing in {} runs",
                harvests + IDLE_RUNS
            )));
        }
    }
    Ok(None)
}

fn missed_page(before: &[u8], after: &[u8], harvested: &[u64]) -> Option<u64> {
    let size = usize::try_from(PAGE).expect("4096");
    let pages = before.chunks(size).zip(after.chunks(size)).zip(0..);
    pages
        .filter(|((old, new), _)| old != new)
        .map(|(_, page)| page)
        .find(|page| harvested.binary_search(page).is_err())
}

/// Whether the vCPU sees page tables that the host has written, after a restore by `refresh`.
pub fn host_page_tables(bench: &mut Bench, refresh: PageTableRefresh) -> Result<Finding, CpuError> {
    bench.cpu.set_page_table_refresh(refresh);
    for privilege in [Privilege::Kernel, Privilege::User] {
        for (address, value) in [FIRST, SECOND] {
            bench.guest.write(address, u64::from(value));
        }
        bench.start(
            Program::Watch,
            privilege,
            Arguments {
                rdi: FIRST.0,
                ..Arguments::default()
            },
        )?;
        // Enough rounds that every translation cache has it.
        for _ in 0..50 {
            bench.expect_out(0x10)?;
        }
        bench.cpu.complete()?;
        let state = bench.cpu.save()?;
        bench.guest.map_large_page(FIRST.0, SECOND.0);
        bench.cpu.restore(&state)?;
        bench.expect_out(0x10)?;
        let seen = bench.cpu.registers()[0];
        bench.guest.map_large_page(FIRST.0, FIRST.0);
        bench.cpu.complete()?;
        let state = bench.cpu.save()?;
        bench.cpu.restore(&state)?;
        if seen != u64::from(SECOND.1) {
            return Ok(Some(format!(
                "a {privilege:?} mode guest still used the old page table"
            )));
        }
    }
    Ok(None)
}

/// Where RIP stands at an OUT exit.
pub fn out_rip(bench: &mut Bench) -> Result<OutRip, CpuError> {
    bench.start(Program::WindowPopf, Privilege::Kernel, Arguments::default())?;
    bench.expect_out(0x10)?;
    let at_instruction = bench.cpu.registers()[RIP] == Program::WindowPopf.address();
    Ok(if at_instruction {
        OutRip::AtInstruction
    } else {
        OutRip::Behind
    })
}

/// Time of one iteration of a two-instruction loop at CPL0; native if it is below [`NATIVE_ITERATION`].
pub fn kernel_speed(bench: &mut Bench) -> Result<(Duration, bool), CpuError> {
    let mut best = Duration::MAX;
    // Whatever else happens meanwhile only adds time: one good sample tells.
    for _ in 0..SPEED_SAMPLES {
        if best < NATIVE_ITERATION {
            break;
        }
        let arguments = Arguments {
            rcx: u64::from(LOOP_ITERATIONS),
            ..Arguments::default()
        };
        bench.start(Program::Loop, Privilege::Kernel, arguments)?;
        let began = Instant::now();
        bench.expect_out(0x11)?;
        best = best.min(began.elapsed() / LOOP_ITERATIONS);
    }
    Ok((best, best < NATIVE_ITERATION))
}

/// Whether guests see the CPUID table they were given.
pub fn cpuid(bench: &mut Bench, profile: &CpuProfile) -> Result<Finding, CpuError> {
    for expected in profile
        .cpuid
        .iter()
        .filter(|entry| matches!(entry.leaf, 0 | 1 | 7 | 0xd | 0x8000_0001))
    {
        for privilege in [Privilege::Kernel, Privilege::User] {
            let (rbx, rcx) = (u64::from(expected.leaf), u64::from(expected.subleaf.unwrap_or(0)));
            bench.start(
                Program::Cpuid,
                privilege,
                Arguments {
                    rbx,
                    rcx,
                    ..Arguments::default()
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

/// Whether an access that takes several exits gives them one by one, each by completing the one before it.
pub fn fragments(bench: &mut Bench) -> Result<Finding, CpuError> {
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
        let arguments = Arguments {
            rdi: MMIO + 0x10,
            rsi: MMIO + 0xffc,
            rdx: TABLE,
            ..Arguments::default()
        };
        bench.guest.write(TABLE, 0x33_2211);
        bench.start(Program::Fragments, privilege, arguments)?;
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
/// The first run decides what is answered and when an interrupt comes, the second does the same at the same exits; kicks
/// fall differently in both.
pub fn exit_replay(profile: &CpuProfile, privilege: Privilege, exits: u32, seed: u64) -> Result<Finding, CpuError> {
    let mut recorded = Vec::new();
    let mut memory = Vec::new();
    for run in 0..2 {
        let mut bench = Bench::new(RAM, profile)?;
        let arguments = Arguments {
            rbp: MMIO,
            r14: seed,
            r15: TABLE,
            ..Arguments::default()
        };
        bench.start_with(Program::Medley, privilege, Interrupts::On, arguments)?;
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
fn medley_step(bench: &mut Bench, choices: &mut Sequence) -> Result<Step, CpuError> {
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
