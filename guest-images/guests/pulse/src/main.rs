//! `pulse`: prints a numbered line per timer tick and halts in between.
//!
//! The smallest guest that has inputs (ticks) and outputs (lines): a gap, a repeated or a missing number shows at a
//! glance what a failover did. `ticks=N` ends it after N lines (default 100; 0 = never).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use guest_rt::abi::status;
use guest_rt::{Boot, cpu, println, timer};

guest_rt::entry!(main);

fn main(boot: Boot) -> u8 {
    boot.cmdline.allow(&["ticks"]);
    let limit: u64 = boot.cmdline.get("ticks", 100);
    timer::start(timer::TICK_HZ);
    let mut printed = 0;
    while limit == 0 || printed < limit {
        cpu::halt_until(|| timer::ticks() > printed);
        printed += 1;
        println!("pulse {printed}");
    }
    status::OK
}
