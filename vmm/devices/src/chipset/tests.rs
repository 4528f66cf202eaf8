//! What the whole platform owes the machine: routing, clocks, deadlines, save and restore.

use vm_memory::GuestAddress;

use super::*;
use crate::Effect;
use ftvm_hypervisor::GuestMemory;

/// A chipset with RAM and a clock, driven as the machine drives it.
struct Bench {
    chipset: Chipset,
    memory: GuestMemory,
    effects: Vec<Effect>,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        Bench {
            chipset: Chipset::new(&PlatformConfig::default()).expect("a valid configuration"),
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("RAM for a test"),
            effects: Vec::new(),
            now: 0,
        }
    }

    fn with<T>(&mut self, access: impl FnOnce(&mut Chipset, &mut DeviceEnv<'_>) -> T) -> T {
        let mut env = DeviceEnv {
            memory: &self.memory,
            now: self.now,
            effects: &mut self.effects,
        };
        access(&mut self.chipset, &mut env)
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.with(|chipset, env| chipset.port_read(port, &mut data, env));
        data[0]
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.with(|chipset, env| chipset.port_write(port, &[value], env));
    }

    fn clock(&mut self, now: u64) {
        self.now = now;
        self.with(|chipset, env| chipset.apply(&Input::Clock(now), env))
            .expect("time runs forward");
    }

    /// Vectors 0x20 and 0x28, everything unmasked, end of interrupt by command.
    fn start_pic(&mut self) {
        for (command, data, icws) in [(0x20, 0x21, [0x20, 4, 1]), (0xA0, 0xA1, [0x28, 2, 1])] {
            self.outb(command, 0x11);
            for icw in icws {
                self.outb(data, icw);
            }
        }
    }
}

#[test]
fn a_periodic_timer_ticks_once_per_deadline_and_keeps_its_phase() {
    let mut bench = Bench::new();
    bench.start_pic();
    bench.outb(0x43, 0x34);
    bench.outb(0x40, 0x9C);
    bench.outb(0x40, 0x2E);
    let first = bench.chipset.next_deadline().expect("channel 0 runs");
    assert_eq!(first, 10_000_151, "11,932 ticks at 1,193,182 Hz");
    bench.clock(first - 1);
    assert!(!bench.chipset.interrupt_pending());
    bench.clock(first);
    assert!(bench.chipset.interrupt_pending());
    assert_eq!(bench.chipset.acknowledge_interrupt(), 0x20);
    assert!(!bench.chipset.interrupt_pending());
    bench.outb(0x20, 0x20);
    bench.clock(first * 7 + 3);
    assert_eq!(
        bench.chipset.acknowledge_interrupt(),
        0x20,
        "six missed periods are one tick"
    );
    bench.outb(0x20, 0x20);
    assert!(!bench.chipset.interrupt_pending());
    let eighth = bench.chipset.next_deadline().expect("channel 0 runs");
    assert!(
        (first * 8 - 8..=first * 8).contains(&eighth),
        "the grid is kept: {eighth}"
    );
}

#[test]
fn a_console_byte_interrupts_and_is_read() {
    let mut bench = Bench::new();
    bench.start_pic();
    bench.outb(0x3F9, 1);
    let input = Input::ConsoleRx {
        port: ConsolePort::Serial,
        bytes: b"x".to_vec(),
    };
    bench
        .with(|chipset, env| chipset.apply(&input, env))
        .expect("always applies");
    assert_eq!(bench.chipset.acknowledge_interrupt(), 0x24);
    assert_eq!(bench.inb(0x3F8), b'x');
}

#[test]
fn only_what_shows_time_asks_for_a_clock() {
    let chipset = Bench::new().chipset;
    let needs = |port, dir| chipset.access_needs_clock(Access::Port { port, dir });
    for port in [0x40, 0x42, 0x61, 0x608] {
        assert!(needs(port, AccessDirection::Read), "{port:#x}");
    }
    for port in [0x20, 0x21, 0x3F8, 0x3FD, 0x607, 0x60C, 0x80] {
        assert!(!needs(port, AccessDirection::Read), "{port:#x}");
        assert!(!needs(port, AccessDirection::Write), "{port:#x}");
    }
    assert!(needs(0x43, AccessDirection::Write));
}

#[test]
fn power_ports_are_effects() {
    let mut bench = Bench::new();
    bench.with(|chipset, env| chipset.port_write(0x604, &0x2000u16.to_le_bytes(), env));
    bench.outb(0xF4, 7);
    bench.outb(0x64, 0xFE);
    bench.outb(0xCF9, 6);
    bench.outb(0x80, 1);
    let expected = [
        Effect::PowerOff { status: 0 },
        Effect::PowerOff { status: 7 },
        Effect::Reset,
        Effect::Reset,
    ];
    assert_eq!(bench.effects, expected);
}

#[test]
fn unclaimed_reads_are_all_ones() {
    let mut bench = Bench::new();
    let mut data = [0; 4];
    bench.with(|chipset, env| chipset.port_read(0x1234, &mut data, env));
    assert_eq!(data, [0xFF; 4]);
    bench.with(|chipset, env| chipset.mmio_read(0xFEE0_0000, &mut data, env));
    assert_eq!(data, [0xFF; 4]);
}

#[test]
fn a_clock_that_goes_back_or_differs_is_refused() {
    let mut bench = Bench::new();
    bench.clock(10);
    bench.now = 9;
    let refused = bench.with(|chipset, env| chipset.apply(&Input::Clock(9), env));
    assert_eq!(refused, Err(ApplyError::ClockWentBack { input: 9, last: 10 }));
    let refused = bench.with(|chipset, env| chipset.apply(&Input::Clock(11), env));
    assert_eq!(refused, Err(ApplyError::ClockDiffers { input: 11, now: 9 }));
}

#[test]
fn a_state_of_another_platform_is_refused() {
    let mut bench = Bench::new();
    let other = PlatformConfig {
        wall_clock_ns: 1,
        ..PlatformConfig::default()
    };
    let state = Chipset::new(&other).expect("a valid configuration").save();
    assert_eq!(bench.chipset.restore(&state), Err(RestoreError::OtherPlatform));
}
