//! Exits, what they tell, and interrupts at them.

use ftvm_hypervisor::{Cpu, DeliveryMode, Exit, Terminal};
use ftvm_kvm::selftest::guest::{ArgumentRegisters, Interrupts, MMIO, Privilege, TABLE, VECTOR};
use ftvm_kvm::selftest::programs::{Label, TinyProgram};

use super::{BOTH, RAX, RBX, RDX, RIP, bench, profile};

pub fn port_reads_tell_size_and_count() {
    let profile = profile();
    let mut bench = bench(&profile);
    for privilege in BOTH {
        bench
            .start(
                TinyProgram::PortReads,
                privilege,
                ArgumentRegisters {
                    rdi: TABLE,
                    ..ArgumentRegisters::default()
                },
            )
            .unwrap();
        for (size, count) in [(1, 1), (2, 1), (4, 1), (1, 4)] {
            assert_eq!(
                bench.next_exit().unwrap(),
                Exit::PortRead {
                    port: 0x10,
                    size,
                    count
                }
            );
            let answer = [0x11, 0x22, 0x33, 0x84];
            let len = usize::from(size) * count as usize;
            assert_eq!(bench.cpu.data().len(), len);
            bench.cpu.data().copy_from_slice(&answer[..len]);
        }
        assert_eq!(
            bench.next_exit().unwrap(),
            Exit::PortWrite {
                port: 0x11,
                size: 4,
                count: 1
            }
        );
        assert_eq!(bench.cpu.data(), [0x11, 0x22, 0x33, 0x84]);
        assert_eq!(bench.guest.bytes(TABLE, 4), [0x11, 0x22, 0x33, 0x84]);
    }
}

pub fn hlt_waits_for_an_interrupt_that_the_caller_brings() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench
        .start(TinyProgram::Halt, Privilege::Kernel, ArgumentRegisters::default())
        .unwrap();
    for round in 1..=3 {
        assert_eq!(bench.next_exit().unwrap(), Exit::Hlt);
        assert!(bench.cpu.interrupt_flag() && bench.cpu.can_interrupt());
        bench.cpu.interrupt(VECTOR).unwrap();
        assert!(
            !bench.cpu.can_interrupt(),
            "a second interrupt would overwrite the first"
        );
        bench.expect_out(0x20).unwrap();
        assert!(
            !bench.cpu.interrupt_flag() && !bench.cpu.can_interrupt(),
            "an interrupt gate clears IF"
        );
        bench.expect_out(0x10).unwrap();
        assert_eq!(bench.guest.counters()[1], round);
        assert_eq!(bench.cpu.registers()[RBX], round);
    }
}

pub fn an_interrupt_waits_for_the_window_where_if_is_off() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench.cpu.set_delivery_mode(DeliveryMode::WindowStiStep);
    bench
        .start(TinyProgram::WindowPopf, Privilege::Kernel, ArgumentRegisters::default())
        .unwrap();
    bench.expect_out(0x10).unwrap();
    bench.cpu.complete().unwrap();
    assert!(!bench.cpu.can_interrupt() && !bench.cpu.interrupt_flag());
    bench.cpu.request_window(true);
    assert_eq!(bench.next_exit().unwrap(), Exit::IrqWindow);
    assert_eq!(bench.cpu.registers()[RIP], Label::WindowAfterPopf.address());
    assert!(bench.cpu.can_interrupt());
    bench.cpu.request_window(false);
    bench.cpu.interrupt(VECTOR).unwrap();
    bench.expect_out(0x20).unwrap();
    bench.expect_out(0x11).unwrap();
}

pub fn without_windows_none_is_requested() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench.cpu.set_delivery_mode(DeliveryMode::None);
    bench
        .start(TinyProgram::WindowPopf, Privilege::Kernel, ArgumentRegisters::default())
        .unwrap();
    bench.expect_out(0x10).unwrap();
    bench.cpu.complete().unwrap();
    bench.cpu.request_window(true);
    bench.expect_out(0x11).unwrap();
}

pub fn msr_accesses_leave_and_can_be_refused() {
    let profile = profile();
    let mut bench = bench(&profile);
    // The time stamp counter, IA32_APERF, and one that nobody has.
    for index in [0x10, 0xe8, 0x1234] {
        bench
            .start(
                TinyProgram::Msr,
                Privilege::Kernel,
                ArgumentRegisters {
                    rcx: index.into(),
                    ..ArgumentRegisters::default()
                },
            )
            .unwrap();
        assert_eq!(bench.next_exit().unwrap(), Exit::ReadMsr { index });
        bench
            .cpu
            .data()
            .copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
        bench.expect_out(0x10).unwrap();
        assert_eq!(
            (bench.cpu.registers()[RAX], bench.cpu.registers()[RDX]),
            (0x5566_7788, 0x1122_3344)
        );
        assert_eq!(
            bench.next_exit().unwrap(),
            Exit::WriteMsr {
                index,
                value: 0x1122_3344_5566_7788
            }
        );
        let traps = bench.guest.counters()[0];
        bench.cpu.refuse_msr();
        bench.expect_out(0x11).unwrap();
        assert_eq!(bench.guest.counters()[0], traps + 1, "#GP was delivered");
    }
}

/// KVM drops an interrupt that is queued before an MSR access whose completion raises #GP.
pub fn an_interrupt_at_a_refused_msr_comes_behind_the_fault() {
    let profile = profile();
    let mut bench = bench(&profile);
    let arguments = ArgumentRegisters {
        rcx: 0x10,
        ..ArgumentRegisters::default()
    };
    bench
        .start_with(TinyProgram::Msr, Privilege::Kernel, Interrupts::On, arguments)
        .unwrap();
    assert_eq!(bench.next_exit().unwrap(), Exit::ReadMsr { index: 0x10 });
    assert!(bench.cpu.interrupt_flag());
    bench.cpu.refuse_msr();
    assert_eq!(bench.cpu.complete().unwrap(), None);
    assert!(!bench.cpu.can_interrupt(), "the fault comes first");
    bench.expect_out(0x10).unwrap();
    bench.cpu.complete().unwrap();
    assert_eq!(bench.guest.counters()[..2], [1, 0], "the fault was delivered");
    assert!(bench.cpu.can_interrupt());
    bench.cpu.interrupt(VECTOR).unwrap();
    bench.expect_out(0x20).unwrap();
    assert_eq!(bench.guest.counters()[..2], [1, 1]);
}

pub fn a_triple_fault_ends_the_guest() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench
        .start(
            TinyProgram::TripleFault,
            Privilege::Kernel,
            ArgumentRegisters::default(),
        )
        .unwrap();
    assert_eq!(bench.next_exit().unwrap(), Exit::Terminal(Terminal::Shutdown));
}

pub fn what_kvm_cannot_emulate_is_reported_with_its_bytes() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench
        .start(
            TinyProgram::Unemulable,
            Privilege::Kernel,
            ArgumentRegisters {
                rdi: MMIO,
                ..ArgumentRegisters::default()
            },
        )
        .unwrap();
    let exit = bench.next_exit().unwrap();
    let Exit::Terminal(Terminal::InternalError {
        suberror: 1,
        len,
        bytes,
    }) = exit
    else {
        panic!("{exit:x?}")
    };
    assert_eq!(bench.cpu.registers()[RIP], TinyProgram::Unemulable.address());
    assert!(len == 0 || bytes[..2] == [0xd9, 0x07], "{len} {bytes:x?}");
    println!("{len} bytes told: {bytes:x?}");
}
