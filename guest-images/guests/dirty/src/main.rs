//! `dirty`: writes so many MiB of its memory each second, and says each second what it wrote.
//!
//! The busy guest whose clone is measured (`bench clone` of the package `tests`): all of its memory holds something, and an
//! area of it is written again and again, page after page, with what no compression makes smaller. It halts when it is on time; what it cannot write in time it does
//! not make up for. Time is the PM timer's, so that late ticks cost nothing. A line a second: `dirty KIB MS`, what was written
//! and in which time. Before that it says `dirty begins` and waits for a second, while most of its memory is still zeros: who
//! wants to move it from one VMM to another does it then.
//! Options: `rate=MIB` per second (20; 0 = nothing), `area=MIB` (a quarter of what is free).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use guest_rt::abi::{PM_TIMER_HZ, PM_TIMER_MASK, status};
use guest_rt::memory::PAGE_SIZE;
use guest_rt::{Boot, cpu, println, timer};

guest_rt::entry!(main);

const WORDS: usize = PAGE_SIZE / size_of::<u64>();
const PAGES_PER_MIB: usize = (1 << 20) / PAGE_SIZE;
const SECOND: u64 = PM_TIMER_HZ as u64;
/// What is late by more than a second is not made up for.
const LATEST: u64 = SECOND;
/// Ticks before it begins.
const WAIT: u64 = timer::TICK_HZ as u64;
/// A linear congruential generator (Knuth, MMIX): its words do not repeat.
const FACTOR: u64 = 6_364_136_223_846_793_005;
const SUMMAND: u64 = 1_442_695_040_888_963_407;

fn scramble(words: &mut [u64], seed: &mut u64) {
    for word in words {
        *seed = seed.wrapping_mul(FACTOR).wrapping_add(SUMMAND);
        *word = *seed;
    }
}

/// The pages that are written in turns.
struct Area<'a> {
    words: &'a mut [u64],
    next: usize,
    seed: u64,
}

impl Area<'_> {
    fn write_page(&mut self) {
        scramble(&mut self.words[self.next..][..WORDS], &mut self.seed);
        self.next += WORDS;
        if self.next == self.words.len() {
            self.next = 0;
        }
    }
}

/// Writes for ever.
fn work(mut area: Area<'_>, rate: u64) -> ! {
    let pages_per_second = rate * PAGES_PER_MIB as u64;
    // In pages, times the PM timer's frequency.
    let mut owed = 0;
    let (mut pages, mut spent) = (0, 0);
    let mut last = timer::pm_timer();
    loop {
        let tick = timer::ticks();
        cpu::halt_until(|| timer::ticks() > tick);
        let now = timer::pm_timer();
        let passed = u64::from(now.wrapping_sub(last) & PM_TIMER_MASK);
        last = now;
        spent += passed;
        owed = (owed + passed * pages_per_second).min(LATEST * pages_per_second);
        while owed >= SECOND {
            area.write_page();
            owed -= SECOND;
            pages += 1;
        }
        if spent >= SECOND {
            println!("dirty {} {}", pages * PAGE_SIZE as u64 / 1024, spent * 1000 / SECOND);
            (pages, spent) = (0, 0);
        }
    }
}

fn main(mut boot: Boot) -> u8 {
    boot.cmdline.allow(&["rate", "area"]);
    let free = boot.memory.pages();
    let rate: u16 = boot.cmdline.get("rate", 20);
    let area: u16 = boot
        .cmdline
        .get("area", u16::try_from(free / PAGES_PER_MIB / 4).unwrap_or(u16::MAX));
    let wanted = usize::from(area) * PAGES_PER_MIB;
    let Some(all) = boot.memory.take(free).filter(|_| (1..=free).contains(&wanted)) else {
        println!("command line: area={area}: an area has 1 MiB at least, and {free} pages are free");
        return status::USAGE;
    };
    timer::start(timer::TICK_HZ);
    println!("dirty begins");
    cpu::halt_until(|| timer::ticks() >= WAIT);
    let mut seed = 0;
    scramble(all, &mut seed);
    let area = Area {
        words: &mut all[..wanted * WORDS],
        next: 0,
        seed,
    };
    work(area, u64::from(rate))
}
