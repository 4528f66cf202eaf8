//! `exits`: makes exits as fast as it can, for measuring what one costs.
//!
//! No timer, no interrupts: each exit is the guest's own. `kind=write` writes to a port, which tells the guest nothing and
//! so leaves no entry in a log; `kind=clock` reads the PM timer, whose answer is an input. It works at CPL3, where a
//! software KVM is fast.
//! Options: `count=N` (100000; 0 = for ever), `kind=write|clock` (write).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use core::str::FromStr;

use guest_rt::abi::status;
use guest_rt::{Boot, cpu, println, timer, user};

guest_rt::entry!(main);

/// The port of POST codes, where nothing is.
const NOWHERE: u16 = 0x80;

#[derive(Clone, Copy)]
enum Kind {
    Write,
    Clock,
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "write" => Ok(Kind::Write),
            "clock" => Ok(Kind::Clock),
            _ => Err("expected write or clock"),
        }
    }
}

fn main(boot: Boot) -> u8 {
    boot.cmdline.allow(&["count", "kind"]);
    let count: u64 = boot.cmdline.get("count", 100_000);
    let kind = boot.cmdline.get("kind", Kind::Write);
    let sum = user::run(|| {
        let mut sum = 0_u64;
        let mut done = 0;
        while count == 0 || done < count {
            match kind {
                Kind::Write => cpu::outb(NOWHERE, 0),
                Kind::Clock => sum = sum.rotate_left(1) ^ u64::from(timer::pm_timer()),
            }
            done += 1;
        }
        sum
    });
    println!("exits ok {sum:016x}");
    status::OK
}
