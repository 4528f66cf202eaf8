//! The transport, and what broken rings do to every kind of device.

use super::block::VirtioBlock;
use super::chain::DescriptorChain;
use super::console::VirtioConsole;
use super::net::VirtioNet;
use super::rng::VirtioRng;
use super::testing::contract::Kind;
use super::testing::{FunctionBench, RING, RINGS};
use super::*;
use crate::Effect;
use crate::testing::driver::{Bar, DRIVER_OK, FEATURES_OK, NEEDS_RESET, Piece, Ring};
use crate::testing::{RAM, Seeded, Surroundings};
use ftvm_hypervisor::GuestMemory;
use vm_memory::GuestAddress;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Entries of the rings here.
const SIZE: u16 = 8;

fn bench() -> FunctionBench<VirtioRng> {
    FunctionBench::running(VirtioRng::default(), SIZE)
}

#[test]
fn features_are_version_1_and_the_model_s() {
    let mut bench = bench();
    bench.write_bar(0x00, &1u32.to_le_bytes());
    assert_eq!(bench.read_u32(0x04), 1);
    bench.write_bar(0x00, &0u32.to_le_bytes());
    assert_eq!(bench.read_u32(0x04), 0);
    bench.write_bar(0x00, &2u32.to_le_bytes());
    assert_eq!(bench.read_u32(0x04), 0);
}

#[test]
fn features_ok_holds_only_for_what_was_offered_and_with_version_1() {
    for (low, high, accepted) in [(0u32, 1u32, true), (0, 0, false), (1, 1, false), (0, 3, false)] {
        let mut bench = bench();
        bench.set_status(0);
        bench.set_status(3);
        for (half, features) in [(0u32, low), (1, high)] {
            bench.write_bar(0x08, &half.to_le_bytes());
            bench.write_bar(0x0C, &features.to_le_bytes());
        }
        bench.set_status(3 | FEATURES_OK);
        assert_eq!(bench.status() & FEATURES_OK != 0, accepted, "{low:#x} {high:#x}");
        bench.set_status(3 | FEATURES_OK | DRIVER_OK);
        assert_eq!(bench.function.is_running(), accepted, "no driver without features");
    }
}

#[test]
fn a_reset_returns_every_register() {
    let mut bench = bench();
    assert_eq!(
        (bench.read_u32(0x18) & 0xFFFF, bench.read_u32(0x1C)),
        (0, 0),
        "other widths read nothing"
    );
    let registers = |bench: &mut FunctionBench<VirtioRng>| {
        [0x00, 0x04, 0x08, 0x0C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34].map(|register| bench.read_u32(register))
    };
    assert_ne!(registers(&mut bench), [0; 10]);
    bench.set_status(0);
    assert_eq!(registers(&mut bench), [0; 10]);
    assert_eq!(bench.status(), 0);
}

#[test]
fn there_is_no_msi_x() {
    let mut bench = bench();
    for register in [0x10, 0x1A] {
        let mut vector = [0; 2];
        bench.write_bar(register, &[1, 0]);
        bench.read_bar(register, &mut vector);
        assert_eq!(vector, [0xFF, 0xFF]);
    }
}

#[test]
fn a_queue_takes_its_description_only_before_it_is_enabled() {
    let mut bench = bench();
    let rings = bench.rings.clone();
    let mut addresses = [0; 8];
    bench.write_bar(0x20, &0x1234_0000u64.to_le_bytes());
    bench.read_bar(0x20, &mut addresses);
    assert_eq!(u64::from_le_bytes(addresses), RINGS, "enabled");
    bench.negotiate();
    bench.write_bar(0x20, &0x1_1234_0000u64.to_le_bytes());
    bench.read_bar(0x20, &mut addresses);
    assert_eq!(u64::from_le_bytes(addresses), 0x1_1234_0000);
    assert_eq!(bench.read_u32(0x24), 1);
    bench.enable_queue(0, &rings[0]);
    assert_eq!(bench.status() & NEEDS_RESET, 0);
}

#[test]
fn misplaced_queues_are_faults() {
    let good = Ring::new(RINGS, SIZE);
    for (register, value, width) in [
        (0x18, 3, 2),
        (0x18, 0, 2),
        (0x18, 32, 2),
        (0x20, 8, 4),
        (0x20, RAM - 16 * u64::from(SIZE) + 16, 8),
        (0x28, 1, 4),
        (0x28, 0, 8),
        (0x28, u64::MAX - 1, 8),
        (0x30, 2, 4),
        (0x30, RAM - 4, 4),
    ] {
        let mut bench = bench();
        bench.negotiate();
        bench.enable_queue(0, &good);
        assert_eq!(bench.function.fault(), None);
        bench.negotiate();
        bench.write_bar(0x18, &SIZE.to_le_bytes());
        for (register, address) in [(0x20, RINGS), (0x28, RINGS + 0x1000), (0x30, RINGS + 0x2000)] {
            bench.write_bar(register, &address.to_le_bytes());
        }
        bench.write_bar(register, &value.to_le_bytes()[..width]);
        bench.write_bar(0x1C, &[1, 0]);
        assert!(
            matches!(bench.function.fault(), Some(QueueFault::Queue { .. })),
            "{register:#x} = {value:#x}"
        );
        assert_eq!(bench.status() & NEEDS_RESET, NEEDS_RESET);
    }
}

#[test]
fn registers_of_queues_that_do_not_exist_read_zero() {
    let mut bench = bench();
    bench.write_bar(0x16, &[1, 0]);
    let mut size = [1; 2];
    bench.read_bar(0x18, &mut size);
    assert_eq!(size, [0, 0]);
    bench.write_bar(0x1C, &[1, 0]);
    assert_eq!(bench.function.fault(), None);
    bench.notify(1);
    bench.notify(0x3FF);
    assert_eq!(bench.function.fault(), None);
}

#[test]
fn notifications_before_the_driver_is_up_count_when_it_is() {
    let mut bench = bench();
    bench.negotiate();
    let rings = bench.rings.clone();
    bench.enable_queue(0, &rings[0]);
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[0].chain(around, &[Piece::In(0x1000, 8)]);
    bench.notify(0);
    assert_eq!(bench.effects(), []);
    bench.set_status(3 | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.effects(), [Effect::WantEntropy { len: 8 }]);
}

#[test]
fn interrupts_show_in_the_status_register_and_can_be_disabled() {
    let mut bench = bench();
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[0].chain(around, &[Piece::In(0x1000, 8)]);
    bench.notify(0);
    let FunctionBench { function, around, .. } = &mut bench;
    assert_eq!(function.read_register(4, &mut around.env()) >> 16 & 8, 0);
    function.serve(&mut around.env(), |rng, queues, env| rng.answer(&[1], queues, env));
    assert!(function.interrupt());
    assert_eq!(function.read_register(4, &mut around.env()) >> 16 & 8, 8);
    function.write_register(4, 0, &[6, 4], &mut around.env());
    assert!(!function.interrupt(), "INTx is disabled");
    function.write_register(4, 0, &[6, 0], &mut around.env());
    assert!(function.interrupt());
    assert_eq!(bench.isr(), 1);
    assert!(!bench.function.interrupt(), "reading ISR lowers the line");
}

/// How a chain is broken.
struct Break {
    /// Descriptors: address, length, flags, next.
    table: &'static [(u64, u32, u16, u16)],
    fault: QueueFault,
}

const BREAKS: &[Break] = &[
    Break {
        table: &[(0x1000, 64, INDIRECT, 0)],
        fault: QueueFault::Indirect,
    },
    Break {
        table: &[(0x1000, 0, 0, 0)],
        fault: QueueFault::Empty { index: 0 },
    },
    Break {
        table: &[(0x1000, 64, NEXT, 0)],
        fault: QueueFault::Loop { size: SIZE },
    },
    Break {
        table: &[(0x1000, 64, NEXT, 1), (0x1000, 64, NEXT, 0)],
        fault: QueueFault::Loop { size: SIZE },
    },
    Break {
        table: &[(0x1000, 64, NEXT, SIZE)],
        fault: QueueFault::DescriptorIndex {
            index: SIZE,
            size: SIZE,
        },
    },
    Break {
        table: &[(RAM, 1, 0, 0)],
        fault: QueueFault::OutsideMemory { addr: RAM, len: 1 },
    },
    Break {
        table: &[(RAM - 1, 2, 0, 0)],
        fault: QueueFault::OutsideMemory { addr: RAM - 1, len: 2 },
    },
    Break {
        table: &[(u64::MAX, 2, WRITE, 0)],
        fault: QueueFault::OutsideMemory { addr: u64::MAX, len: 2 },
    },
    Break {
        table: &[(0, u32::MAX, WRITE, 0)],
        fault: QueueFault::OutsideMemory { addr: 0, len: u32::MAX },
    },
    Break {
        table: &[(0x1000, 64, WRITE | NEXT, 1), (0x1000, 64, 0, 0)],
        fault: QueueFault::Order { index: 1 },
    },
];

/// A console, whose queue 0 takes chains only when there is something to deliver, is given something.
fn stimulate<K: Kind>(bench: &mut FunctionBench<K>) {
    let FunctionBench { function, around, .. } = bench;
    for seed in 0..4 {
        K::input(function, around, &mut Seeded::new(seed));
    }
}

fn broken_chains_stop<K: Kind>(queue: usize) {
    for Break { table, fault } in BREAKS {
        let mut bench = FunctionBench::running(K::fresh(), SIZE);
        let FunctionBench { around, rings, .. } = &mut bench;
        for (index, &(addr, len, flags, next)) in (0..).zip(*table) {
            rings[queue].describe(around, index, addr, len, flags, next);
        }
        rings[queue].offer(around, 0);
        bench.notify(u16::try_from(queue).expect("few queues"));
        stimulate(&mut bench);
        assert_eq!(bench.function.fault(), Some(*fault), "type {}, queue {queue}", K::TYPE);
        assert_eq!(bench.status() & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(bench.isr() & 2, 2, "a configuration change is announced");
        assert_eq!(bench.rings[queue].used(&bench.around), None);
        bench.effects();
        bench.notify(0);
        stimulate(&mut bench);
        assert_eq!(bench.effects(), [], "it does nothing until it is reset");
        bench.restart();
        assert_eq!(bench.function.fault(), None, "a reset repairs it");
    }
}

#[test]
fn broken_chains_stop_every_device() {
    broken_chains_stop::<VirtioNet>(0);
    broken_chains_stop::<VirtioNet>(1);
    broken_chains_stop::<VirtioBlock>(0);
    broken_chains_stop::<VirtioConsole>(0);
    broken_chains_stop::<VirtioConsole>(1);
    broken_chains_stop::<VirtioRng>(0);
}

#[test]
fn a_chain_of_4_gib_is_a_fault_even_where_every_buffer_is_in_ram() {
    // 64 buffers of 64 MiB are one byte too many; one less than that is a chain.
    let len = 64 << 20;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 20)]).expect("untouched pages cost nothing");
    let around = Surroundings {
        memory,
        ..Surroundings::new()
    };
    let ring = Ring::new(RINGS, 64);
    for index in 0..64 {
        let next = if index < 63 { NEXT } else { 0 };
        ring.describe(&around, index, 0, len, WRITE | next, index + 1);
    }
    assert_eq!(
        DescriptorChain::parse(&around.memory, RINGS, 64, 0),
        Err(QueueFault::TooLong { max: u32::MAX })
    );
    ring.describe(&around, 63, 0, len - 1, WRITE, 0);
    assert_eq!(
        DescriptorChain::parse(&around.memory, RINGS, 64, 0).map(|chain| chain.writable.len()),
        Ok(u32::MAX)
    );
    ring.describe(&around, 0, 0, len, NEXT, 1);
    ring.describe(&around, 63, 0, len, WRITE, 0);
    let both = DescriptorChain::parse(&around.memory, RINGS, 64, 0);
    assert_eq!(
        both,
        Err(QueueFault::TooLong { max: u32::MAX }),
        "readable and writable count together"
    );
}

#[test]
fn an_available_index_that_runs_away_is_a_fault() {
    for (ahead, faulty) in [(SIZE, false), (SIZE + 1, true), (u16::MAX, true)] {
        let mut bench = bench();
        bench.rings[0].describe(&bench.around, 0, 0x1000, 8, WRITE, 0);
        let index = bench.rings[0].avail() + 2;
        bench.around.write(index, &ahead.to_le_bytes());
        let expected = faulty.then_some(QueueFault::AvailableIndex { size: SIZE });
        assert_eq!(bench.fault_of(), expected, "{ahead} ahead");
    }
}

#[test]
fn a_device_that_writes_over_its_own_rings_comes_to_an_end() {
    // Entropy lands on the available index and the table, again and again.
    let mut bench = bench();
    let index = bench.rings[0].avail() + 2;
    for round in 0..1000u64 {
        let FunctionBench { around, rings, .. } = &mut bench;
        rings[0].chain(around, &[Piece::In(index, 2), Piece::In(RINGS, 64)]);
        bench.notify(0);
        let bytes = Seeded::new(round).bytes(66);
        let FunctionBench { function, around, .. } = &mut bench;
        function.serve(&mut around.env(), |rng, queues, env| rng.answer(&bytes, queues, env));
        if bench.function.fault().is_some() {
            bench.restart();
        }
        assert!(bench.effects().len() <= 2);
    }
}

fn garbage<K: Kind>() {
    for seed in 0..400 {
        let mut random = Seeded::new(seed);
        let mut bench = FunctionBench::running(K::fresh(), SIZE);
        // Half of the bytes are zero or small, so that some of it passes for descriptors.
        let mut rings: Vec<u8> = (0..RING * 2).map(|_| random.byte()).collect();
        for byte in &mut rings {
            if !random.once_in(3) {
                *byte = random.pick(&[0, 0, 0, 0, 1, 2, 3]);
            }
        }
        bench.around.write(RINGS, &rings);
        for index in 0..K::QUEUE_SIZES.len() as u64 {
            let avail = RINGS + RING * index + 0x1000;
            bench
                .around
                .write(avail, &[0, 0, u8::try_from(random.below(10)).expect("small"), 0]);
        }
        for _ in 0..8 {
            bench.notify(u16::from(random.byte() % 2));
            K::input(&mut bench.function, &mut bench.around, &mut random);
        }
        let effects = bench.effects();
        assert!(
            effects.len() <= 2 * usize::from(SIZE) * 8,
            "seed {seed}: {} effects",
            effects.len()
        );
    }
}

#[test]
fn garbage_in_the_rings_neither_panics_nor_multiplies() {
    garbage::<VirtioNet>();
    garbage::<VirtioBlock>();
    garbage::<VirtioConsole>();
    garbage::<VirtioRng>();
}
