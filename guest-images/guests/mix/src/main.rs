//! `mix`: work at CPL0 and at CPL3 in turn, which checks itself. A torture test of record and replay.
//!
//! Each round mixes fifteen registers around port writes, traps by `ud2`, stores to an empty address of the PCI hole,
//! writes pages all over its memory, sometimes halts, sometimes computes for long without an exit; the timer interrupts
//! all of it. The *work* is done a second time in another way and must come out equal: it does not depend on when
//! interrupts hit, so its checksum is a function of the options alone. What the guest was told about time (ticks,
//! PM timer, PIT counter, RTC) and where ticks hit it is folded into a second value, *seen*: it differs from run to run,
//! but a replay that is not exact shows another one.
//! Options: `rounds=N` (200), `every=N` rounds per progress line (20; 0 = none), `pages=N` per copy of the memory (1024),
//! `stretch=N` words that every 32nd round writes without an exit (2000000: some 10 ms on most machines).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod kernel;

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::abi::status;
use guest_rt::interrupts::{self, Frame};
use guest_rt::mmio::Mmio;
use guest_rt::{Boot, cpu, println, timer, user};
use kernel::Laps;

guest_rt::entry!(main);

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Register work in a round, short at CPL0 for the reason at `KERNEL_WRITES`.
const KERNEL_LAPS: Laps = Laps { exits: 6, between: 1 };
const USER_LAPS: Laps = Laps {
    exits: 6,
    between: 2000,
};
/// Words that a round writes at CPL3.
const WRITES: u64 = 20_000;
/// Every so many rounds one writes `stretch` words instead.
const STRETCH_EVERY: u64 = 32;
/// Words that a round writes at CPL0, where a software KVM takes half a microsecond for two instructions.
const KERNEL_WRITES: u64 = 64;
/// An address of the PCI hole where nothing is, 4 bytes before the end of a page.
const NOWHERE: u64 = 0xefff_eff8;

static SEEN: AtomicU64 = AtomicU64::new(0);

/// Folds something that the machine told into `SEEN`. Interrupts may come between load and store only at CPL3 and in
/// CPL0 code that allows them; then the tick's value is lost, in the same way on each replay.
fn see(value: u64) {
    let seen = SEEN.load(Ordering::Relaxed);
    SEEN.store((seen.rotate_left(9) ^ value).wrapping_mul(FACTOR), Ordering::Relaxed);
}

fn on_tick(frame: &mut Frame) {
    see(frame.rip ^ frame.rsp.rotate_left(32) ^ frame.rcx.rotate_left(16));
}

/// Writes `writes` words of `memory` and folds what they held before.
fn churn(memory: &mut [u64], seed: u64, writes: u64) -> u64 {
    let mut random = seed | 1;
    let mut sum = seed;
    for _ in 0..writes {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // The upper half as a fraction of the length: no division.
        let at = (u128::from(random) * memory.len() as u128) >> 64;
        let word = &mut memory[usize::try_from(at).unwrap_or(0)];
        sum = (sum ^ *word).wrapping_mul(FACTOR).rotate_left(31);
        *word = sum ^ random;
    }
    sum
}

/// The work of a round without anything that could disturb it; the same values as [`disturbed_round`].
fn plain_round(state: &mut kernel::State, memory: &mut [u64], round: u64, writes: u64) -> u64 {
    kernel::expected(state, KERNEL_LAPS);
    let sum = churn(memory, state[0], KERNEL_WRITES);
    kernel::expected(state, USER_LAPS);
    let trapped = sum.rotate_left(1) ^ round;
    let trapped = trapped.rotate_left(1) ^ state[1];
    churn(memory, trapped, writes)
}

/// The work of a round amidst exits and interrupts. Called at CPL0 with interrupts enabled.
fn disturbed_round(state: &mut kernel::State, memory: &mut [u64], nowhere: Mmio, round: u64, writes: u64) -> u64 {
    kernel::with_ports(state, KERNEL_LAPS);
    see(u64::from(timer::pm_timer()));
    let sum = churn(memory, state[0], KERNEL_WRITES);
    let trapped = user::trap(sum, round);
    touch_nowhere(nowhere, trapped);
    if round % 4 == 1 {
        let tick = timer::ticks();
        cpu::halt_until(|| timer::ticks() > tick);
        see(timer::ticks());
    }
    // Exits with interrupts disabled: a tick that comes meanwhile has to wait for the end.
    cpu::disable_interrupts();
    see(u64::from(timer::pit_counter()));
    see(u64::from(timer::rtc_register(0)));
    cpu::enable_interrupts();

    user::run(|| {
        kernel::with_ports(state, USER_LAPS);
        let trapped = user::trap(trapped, state[1]);
        if round % 4 == 3 {
            user::idle();
            see(timer::ticks());
        }
        let sum = churn(memory, trapped, writes);
        touch_nowhere(nowhere, sum);
        see(u64::from(timer::pm_timer()));
        sum
    })
}

/// Every kind of MMIO access: each size, a read-modify-write, and a store across the end of a page.
fn touch_nowhere(nowhere: Mmio, value: u64) {
    let [low, high, ..] = value.to_le_bytes();
    nowhere.write8(1, low);
    nowhere.write16(2, u16::from_le_bytes([low, high]));
    nowhere.or32(4, u32::from(high));
    nowhere.write64_unaligned(4, value);
    see(u64::from(nowhere.read8(0)) ^ u64::from(nowhere.read16(2)) ^ u64::from(nowhere.read32(4)) ^ nowhere.read64(8));
}

fn main(mut boot: Boot) -> u8 {
    boot.cmdline.allow(&["rounds", "every", "pages", "stretch"]);
    let rounds: u64 = boot.cmdline.get("rounds", 200);
    let every: u64 = boot.cmdline.get("every", 20);
    let pages = boot.cmdline.get("pages", 1024);
    let stretch: u64 = boot.cmdline.get("stretch", 2_000_000);
    let free = boot.memory.pages();
    let (Some(memory), Some(copy)) = (boot.memory.take(pages), boot.memory.take(pages)) else {
        println!("command line: pages={pages}: {free} pages are free, and two copies are needed");
        return status::USAGE;
    };
    if memory.is_empty() {
        println!("command line: pages=0: at least one page is needed");
        return status::USAGE;
    }
    let nowhere = Mmio::new(NOWHERE, 16).expect("an address in the PCI hole");

    let mut state: kernel::State = core::array::from_fn(|at| FACTOR.wrapping_mul(at as u64 + 1));
    let mut expected_state = state;
    let mut work = 0_u64;
    see(boot.info.seed);
    interrupts::set_handler(timer::TICK_IRQ, on_tick);
    timer::start(timer::TICK_HZ);
    cpu::enable_interrupts();
    for round in 0..rounds {
        let writes = if round % STRETCH_EVERY == STRETCH_EVERY - 1 {
            stretch
        } else {
            WRITES
        };
        let found = disturbed_round(&mut state, memory, nowhere, round, writes);
        let expected = user::run(|| plain_round(&mut expected_state, copy, round, writes));
        if found != expected || state != expected_state {
            println!("mix FAILED round {round}: work {found:016x}, expected {expected:016x}");
            println!("mix FAILED registers {state:x?}, expected {expected_state:x?}");
            return status::MISMATCH;
        }
        work = (work ^ found).wrapping_mul(FACTOR).rotate_left(7);
        if every != 0 && (round + 1) % every == 0 {
            println!(
                "mix round {} work {work:016x} seen {:016x}",
                round + 1,
                SEEN.load(Ordering::Relaxed)
            );
        }
    }
    if let Some(at) = user::run(|| (0..memory.len()).find(|&at| memory[at] != copy[at])) {
        println!(
            "mix FAILED word {at} of memory: {:016x}, expected {:016x}",
            memory[at], copy[at]
        );
        return status::MISMATCH;
    }
    cpu::disable_interrupts();
    println!(
        "mix seen {:016x} ticks {} traps {}",
        SEEN.load(Ordering::Relaxed),
        timer::ticks(),
        user::traps()
    );
    println!("mix ok {work:016x}");
    status::OK
}
