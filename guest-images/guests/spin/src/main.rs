//! `spin`: a loop at CPL3 that never exits by itself, under a 100 Hz timer.
//!
//! It makes no port access, no MMIO and no HLT, so a tick finds no exit to be applied at: the hypervisor has to kick the
//! CPU and move the guest by state. Interrupts end by themselves (AEOI), so that even the tick's handler makes no
//! exit of its own. Each lap writes one word in each of `pages` pages and checks what it wrote 512 laps before; a page that
//! a micro-checkpoint loses shows there, a register that it loses in the sum.
//! Options: `pages=N` per lap (16), `ticks=N` until the end (100), `every=N` ticks per line (25; 0 = none).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::abi::status;
use guest_rt::interrupts::{self, Frame};
use guest_rt::memory::PAGE_SIZE;
use guest_rt::pic::{self, EndOfInterrupt};
use guest_rt::{Boot, cpu, println, timer, user};

guest_rt::entry!(main);

/// Quadwords in a page, and laps until a word is written again.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Written by `main` before the first tick, read by the tick's handler.
static LIMIT: AtomicU64 = AtomicU64::new(0);
static EVERY: AtomicU64 = AtomicU64::new(0);
/// Laps so far: written by the loop, printed by the handler.
static LAPS: AtomicU64 = AtomicU64::new(0);
/// 1 when the handler wants the loop to end.
static STOP: AtomicU64 = AtomicU64::new(0);

fn on_tick(_: &mut Frame) {
    let (tick, every) = (timer::ticks(), EVERY.load(Ordering::Relaxed));
    if every != 0 && tick.is_multiple_of(every) {
        println!("spin tick {tick} laps {}", LAPS.load(Ordering::Relaxed));
    }
    if tick >= LIMIT.load(Ordering::Relaxed) {
        STOP.store(1, Ordering::Relaxed);
    }
}

/// What lap `lap` writes into page `page`.
fn word(lap: u64, page: usize) -> u64 {
    (lap + 1).wrapping_mul(FACTOR) ^ page as u64
}

/// What the word of lap `lap` held before it.
fn word_before(lap: u64, page: usize) -> u64 {
    lap.checked_sub(WORDS as u64).map_or(0, |before| word(before, page))
}

/// The outcome of the loop; everything but `sum` is 0 in a machine that works.
struct Spun {
    laps: u64,
    sum: u64,
    wrong: u64,
}

fn spin(memory: &mut [u64]) -> Spun {
    let mut spun = Spun {
        laps: 0,
        sum: 0,
        wrong: 0,
    };
    let mut slot = 0;
    while STOP.load(Ordering::Relaxed) == 0 {
        for (page, words) in memory.chunks_exact_mut(WORDS).enumerate() {
            spun.wrong += u64::from(words[slot] != word_before(spun.laps, page));
            words[slot] = word(spun.laps, page);
        }
        spun.sum = spun.sum.wrapping_add(spun.laps.wrapping_mul(FACTOR));
        spun.laps += 1;
        slot = (slot + 1) % WORDS;
        LAPS.store(spun.laps, Ordering::Relaxed);
    }
    spun
}

/// The sum of `lap * FACTOR` over all laps, without a loop.
fn expected_sum(laps: u64) -> u64 {
    let (a, b) = if laps.is_multiple_of(2) {
        (laps / 2, laps.wrapping_sub(1))
    } else {
        (laps, laps / 2)
    };
    a.wrapping_mul(b).wrapping_mul(FACTOR)
}

/// Words that do not hold what the last lap that wrote them left there.
fn wrong_words(memory: &[u64], laps: u64) -> usize {
    let last_lap_of = |slot: usize| {
        let slot = slot as u64;
        (laps > slot).then(|| slot + (laps - 1 - slot) / WORDS as u64 * WORDS as u64)
    };
    let pages = memory.chunks_exact(WORDS).enumerate();
    pages
        .flat_map(|(page, words)| words.iter().enumerate().map(move |(slot, &found)| (page, slot, found)))
        .filter(|&(page, slot, found)| found != last_lap_of(slot).map_or(0, |lap| word(lap, page)))
        .count()
}

fn main(mut boot: Boot) -> u8 {
    boot.cmdline.allow(&["pages", "ticks", "every"]);
    let pages = boot.cmdline.get("pages", 16);
    LIMIT.store(boot.cmdline.get("ticks", 100), Ordering::Relaxed);
    EVERY.store(boot.cmdline.get("every", 25), Ordering::Relaxed);
    let free = boot.memory.pages();
    let Some(memory) = boot.memory.take(pages) else {
        println!("command line: pages={pages}: only {free} pages are free");
        return status::USAGE;
    };

    pic::init(EndOfInterrupt::Automatic);
    interrupts::set_handler(timer::TICK_IRQ, on_tick);
    timer::start(timer::TICK_HZ);
    cpu::enable_interrupts();
    let (spun, wrong_at_end) = user::run(|| {
        let spun = spin(memory);
        let wrong = wrong_words(memory, spun.laps);
        (spun, wrong)
    });
    cpu::disable_interrupts();

    let Spun { laps, sum, wrong } = spun;
    let expected = expected_sum(laps);
    if sum != expected || wrong != 0 || wrong_at_end != 0 {
        println!("spin FAILED laps {laps}: sum {sum:016x}, expected {expected:016x}");
        println!("spin FAILED words: {wrong} wrong in the loop, {wrong_at_end} at its end");
        return status::MISMATCH;
    }
    println!("spin ok {sum:016x} laps {laps} ticks {}", timer::ticks());
    status::OK
}
