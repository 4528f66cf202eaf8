//! Kicks, which interrupt a vCPU from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ftvm_hypervisor::sequence::Sequence;
use ftvm_hypervisor::{Cpu, Exit};
use ftvm_kvm::KvmCpu;
use ftvm_kvm::selftest::checks::RAM;
use ftvm_kvm::selftest::guest::{ArgumentRegisters, Interrupts, Privilege, TinyGuest};
use ftvm_kvm::selftest::programs::TinyProgram;

use super::{RBX, profile};

pub fn a_kick_between_two_runs_interrupts_the_next_one_only() {
    let profile = profile();
    let guest = TinyGuest::new(RAM);
    let mut cpu = KvmCpu::new(&guest.memory, &profile).unwrap();
    let entry = TinyGuest::entry(
        TinyProgram::WindowPopf,
        Privilege::Kernel,
        Interrupts::Off,
        ArgumentRegisters::default(),
    );
    cpu.set_entry(&entry).unwrap();
    let kicker = cpu.kicker();
    for _ in 0..1000 {
        kicker.kick();
        assert_eq!(cpu.run().unwrap(), Exit::Interrupted);
        assert!(matches!(cpu.run().unwrap(), Exit::PortWrite { .. }));
        kicker.kick();
        assert_eq!(cpu.complete().unwrap(), None, "completing is not a run");
        assert_eq!(cpu.run().unwrap(), Exit::Interrupted);
        assert!(matches!(cpu.run().unwrap(), Exit::PortWrite { .. }));
    }
    thread::spawn(move || drop(cpu)).join().unwrap();
    kicker.kick();
}

pub fn kicks_reach_the_right_one_of_several_vcpus() {
    const KICKS: u32 = 100;
    let profile = profile();
    let stop = Arc::new(AtomicBool::new(false));
    let mut vcpus = Vec::new();
    for _ in 0..3 {
        let guest = TinyGuest::new(RAM);
        let mut cpu = KvmCpu::new(&guest.memory, &profile).unwrap();
        let entry = TinyGuest::entry(
            TinyProgram::Spin,
            Privilege::Kernel,
            Interrupts::Off,
            ArgumentRegisters::default(),
        );
        cpu.set_entry(&entry).unwrap();
        let (kicker, interrupted, stopped) = (cpu.kicker(), Arc::new(AtomicU32::new(0)), stop.clone());
        let count = interrupted.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(cpu.run().unwrap(), Exit::Interrupted);
                count.fetch_add(1, Ordering::SeqCst);
            }
            cpu.registers()[RBX]
        });
        vcpus.push((kicker, interrupted, thread));
    }
    let mut order = Sequence::new(3);
    for _ in 0..3 * KICKS {
        let (kicker, interrupted, _) = &vcpus[usize::try_from(order.below(3)).unwrap()];
        let (before, began) = (interrupted.load(Ordering::SeqCst), Instant::now());
        kicker.kick();
        while interrupted.load(Ordering::SeqCst) == before {
            assert!(began.elapsed() < Duration::from_secs(30), "a kick was lost");
            thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for (kicker, interrupted, thread) in vcpus {
        kicker.kick();
        assert!(thread.join().unwrap() > 0, "each guest has run");
        // A kick that is seen before its signal arrives interrupts twice, never more.
        let count = interrupted.load(Ordering::SeqCst);
        assert!((1..=6 * KICKS + 2).contains(&count), "{count} interruptions");
        kicker.kick();
    }
}
