//! The hypervisor layer on a real KVM: one test for all checks, since each would cost a boot of the nested host.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tests::kvm_test;
use vm_memory::{Bytes, GuestAddress};
use vmm::hypervisor::kvm::{CpuProfile, KvmCpu, KvmState, PageTableRefresh};
use vmm::hypervisor::selftest::bench::Bench;
use vmm::hypervisor::selftest::checks::{self, RAM};
use vmm::hypervisor::selftest::guest::{Arguments, Interrupts, MMIO, Privilege, TABLE, TinyGuest, VECTOR};
use vmm::hypervisor::selftest::programs::{Label, Program};
use vmm::hypervisor::selftest::{Capabilities, CheckName, Verdict};
use vmm::hypervisor::sequence::Sequence;
use vmm::hypervisor::{Cpu, CpuError, DeliveryMode, Exit, Terminal};

const BOTH: [Privilege; 2] = [Privilege::Kernel, Privilege::User];
const RAX: usize = 0;
const RBX: usize = 1;
const RCX: usize = 2;
const RDX: usize = 3;
const RIP: usize = 16;

kvm_test! {
    timeout = 900;
    /// Each check by its name, so that a failure says which one it was.
    fn kvm_hypervisor_layer() {
        let checks: [(&str, fn()); 25] = [
            ("two_hundred_thousand_exits_replay_at_cpl0", two_hundred_thousand_exits_replay_at_cpl0),
            ("two_hundred_thousand_exits_replay_at_cpl3", two_hundred_thousand_exits_replay_at_cpl3),
            ("accesses_in_parts_are_completed_one_by_one", accesses_in_parts_are_completed_one_by_one),
            ("a_vcpu_saved_at_any_kick_runs_on_in_another_vm", a_vcpu_saved_at_any_kick_runs_on_in_another_vm),
            ("the_dirty_log_never_misses", the_dirty_log_never_misses),
            ("page_tables_written_by_the_host_are_seen_after_a_restore", page_tables_written_by_the_host_are_seen_after_a_restore),
            ("the_self_test_finds_this_host_usable", the_self_test_finds_this_host_usable),
            ("the_window_test_tells_exact_from_inexact", the_window_test_tells_exact_from_inexact),
            ("port_reads_tell_size_and_count", port_reads_tell_size_and_count),
            ("hlt_waits_for_an_interrupt_that_the_caller_brings", hlt_waits_for_an_interrupt_that_the_caller_brings),
            ("an_interrupt_waits_for_the_window_where_if_is_off", an_interrupt_waits_for_the_window_where_if_is_off),
            ("msr_accesses_leave_and_can_be_refused", msr_accesses_leave_and_can_be_refused),
            ("a_pending_exception_is_saved", a_pending_exception_is_saved),
            ("an_interrupt_at_a_refused_msr_comes_behind_the_fault", an_interrupt_at_a_refused_msr_comes_behind_the_fault),
            ("a_restored_program_keeps_the_ports_of_its_task", a_restored_program_keeps_the_ports_of_its_task),
            ("a_checkpoint_truncates_no_sysenter_msr", a_checkpoint_truncates_no_sysenter_msr),
            ("a_state_saved_at_a_read_holds_the_answer", a_state_saved_at_a_read_holds_the_answer),
            ("an_injected_interrupt_is_saved", an_injected_interrupt_is_saved),
            ("a_triple_fault_ends_the_guest", a_triple_fault_ends_the_guest),
            ("what_kvm_cannot_emulate_is_reported_with_its_bytes", what_kvm_cannot_emulate_is_reported_with_its_bytes),
            ("a_remap_between_exit_and_kick_is_seen_after_a_checkpoint", a_remap_between_exit_and_kick_is_seen_after_a_checkpoint),
            ("pages_dirty_before_a_restore_are_still_harvested", pages_dirty_before_a_restore_are_still_harvested),
            ("a_state_is_the_same_bytes_each_time_and_survives_serde", a_state_is_the_same_bytes_each_time_and_survives_serde),
            ("a_kick_between_two_runs_interrupts_the_next_one_only", a_kick_between_two_runs_interrupts_the_next_one_only),
            ("kicks_reach_the_right_one_of_several_vcpus", kicks_reach_the_right_one_of_several_vcpus),
        ];
        for (name, check) in checks {
            println!("{name}");
            check();
        }
    }
}

/// KVM, for one check at a time: two cores under emulation do not like more.
fn kvm() -> (MutexGuard<'static, ()>, CpuProfile) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match CpuProfile::of_this_host(DeliveryMode::None) {
        Ok(profile) => (guard, profile),
        Err(error) => panic!("this test needs KVM, run it inside the nested host: {error}"),
    }
}

fn bench(profile: &CpuProfile) -> Bench {
    Bench::new(RAM, profile).unwrap()
}

fn fine(found: Result<Option<String>, CpuError>) {
    if let Some(finding) = found.unwrap() {
        panic!("{finding}");
    }
}

fn two_hundred_thousand_exits_replay_at_cpl0() {
    let (_one, profile) = kvm();
    fine(checks::exit_replay(&profile, Privilege::Kernel, 200_000, 7));
}

fn two_hundred_thousand_exits_replay_at_cpl3() {
    let (_one, profile) = kvm();
    fine(checks::exit_replay(&profile, Privilege::User, 200_000, 8));
}

fn accesses_in_parts_are_completed_one_by_one() {
    let (_one, profile) = kvm();
    fine(checks::fragments(&mut bench(&profile)));
}

fn a_vcpu_saved_at_any_kick_runs_on_in_another_vm() {
    let (_one, profile) = kvm();
    fine(checks::save_restore(&mut bench(&profile), &profile, 30));
}

fn the_dirty_log_never_misses() {
    let (_one, profile) = kvm();
    fine(checks::dirty_log(&mut bench(&profile), 60));
}

fn page_tables_written_by_the_host_are_seen_after_a_restore() {
    let (_one, profile) = kvm();
    fine(checks::host_page_tables(
        &mut bench(&profile),
        PageTableRefresh::ReplaceSlots,
    ));
}

fn the_self_test_finds_this_host_usable() {
    let (_one, _) = kvm();
    let began = Instant::now();
    let startup = Capabilities::at_startup();
    println!("start-up self-test: {:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(
        Capabilities::at_startup(),
        startup,
        "the second answer comes from the first"
    );
    println!("from the cache: {:?}", began.elapsed());
    let began = Instant::now();
    let thorough = Capabilities::thorough();
    println!("thorough self-test: {:?}", began.elapsed());
    for check in &thorough.checks {
        println!(
            "{:18} {:8} {} {}",
            check.name, check.verdict, check.reason, check.remedy
        );
    }
    assert!(thorough.is_usable() && startup.is_usable());
    assert_eq!(
        thorough.delivery_modes, startup.delivery_modes,
        "the quick test must be as hard as the thorough one"
    );
    let verdict = |name| {
        thorough
            .checks
            .iter()
            .find(|check| check.name == name)
            .map(|check| check.verdict)
    };
    assert_eq!(verdict(CheckName::ExitReplay), Some(Verdict::Ok));
}

/// QEMU's TCG loses the shadow of `sti` when the guest is left inside it. Without the step the self-test must notice.
fn the_window_test_tells_exact_from_inexact() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    let exact = checks::window(&mut bench, DeliveryMode::Window, 300).unwrap();
    let stepped = checks::window(&mut bench, DeliveryMode::WindowStiStep, 300).unwrap();
    println!("window: {exact:?}\nwindow with a step: {stepped:?}");
    assert!(
        exact.is_none() || stepped.is_none(),
        "neither mode works on this VMX or SVM host"
    );
}

fn port_reads_tell_size_and_count() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    for privilege in BOTH {
        bench
            .start(
                Program::PortReads,
                privilege,
                Arguments {
                    rdi: TABLE,
                    ..Arguments::default()
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

fn hlt_waits_for_an_interrupt_that_the_caller_brings() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    bench
        .start(Program::Halt, Privilege::Kernel, Arguments::default())
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

fn an_interrupt_waits_for_the_window_where_if_is_off() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    bench.cpu.set_delivery_mode(DeliveryMode::WindowStiStep);
    bench
        .start(Program::WindowPopf, Privilege::Kernel, Arguments::default())
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

    bench.cpu.set_delivery_mode(DeliveryMode::None);
    bench.expect_out(0x10).unwrap();
    bench.cpu.request_window(true);
    bench.expect_out(0x11).unwrap();
}

fn msr_accesses_leave_and_can_be_refused() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    // The time stamp counter, IA32_APERF, and one that nobody has.
    for index in [0x10, 0xe8, 0x1234] {
        bench
            .start(
                Program::Msr,
                Privilege::Kernel,
                Arguments {
                    rcx: index.into(),
                    ..Arguments::default()
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

/// The #GP of a refused access is part of the state: it is delivered where the state is restored, and nothing before it.
fn a_pending_exception_is_saved() {
    let (_one, profile) = kvm();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    let arguments = Arguments {
        rcx: 0x10,
        ..Arguments::default()
    };
    here.start_with(Program::Msr, Privilege::Kernel, Interrupts::On, arguments)
        .unwrap();
    assert_eq!(here.next_exit().unwrap(), Exit::ReadMsr { index: 0x10 });
    here.cpu.refuse_msr();
    assert_eq!(here.cpu.complete().unwrap(), None);
    assert!(!here.cpu.can_interrupt(), "an interrupt now would be lost");
    assert!(!here.cpu.at_clean_boundary().unwrap());
    let state = here.cpu.save().unwrap();
    there.guest.copy_from(&here.guest, TABLE);
    there.cpu.restore(&state).unwrap();
    assert!(!there.cpu.can_interrupt());
    there.expect_out(0x10).unwrap();
    assert_eq!(there.guest.counters()[0], 1);
}

/// KVM drops an interrupt that is queued before an MSR access whose completion raises #GP.
fn an_interrupt_at_a_refused_msr_comes_behind_the_fault() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    let arguments = Arguments {
        rcx: 0x10,
        ..Arguments::default()
    };
    bench
        .start_with(Program::Msr, Privilege::Kernel, Interrupts::On, arguments)
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

/// A program that may use ports by its task's bitmap only, not by IOPL, still may in another VM.
fn a_restored_program_keeps_the_ports_of_its_task() {
    /// Index of R10, from which user code gets its flags.
    const R10: usize = 10;
    let (_one, profile) = kvm();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    let arguments = Arguments {
        rdi: TABLE,
        ..Arguments::default()
    };
    here.start(Program::PortReads, Privilege::User, arguments).unwrap();
    let mut registers = here.cpu.registers();
    registers[R10] &= !0x3000;
    here.cpu.set_registers(&registers).unwrap();
    let read = |size| Exit::PortRead {
        port: 0x10,
        size,
        count: 1,
    };
    assert_eq!(here.next_exit().unwrap(), read(1));
    here.cpu.complete().unwrap();
    let state = here.cpu.save().unwrap();
    there.guest.copy_from(&here.guest, TABLE);
    there.cpu.restore(&state).unwrap();
    for bench in [&mut here, &mut there] {
        assert_eq!(bench.next_exit().unwrap(), read(2));
        assert_eq!(bench.guest.counters()[0], 0, "no #GP");
    }
}

/// What a guest wrote to IA32_SYSENTER_ESP and IA32_SYSENTER_EIP is the same on a side that took a checkpoint since.
fn a_checkpoint_truncates_no_sysenter_msr() {
    let (_one, profile) = kvm();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    for index in [0x175, 0x176] {
        let arguments = Arguments {
            rcx: index,
            ..Arguments::default()
        };
        for bench in [&mut here, &mut there] {
            bench.start(Program::Msr, Privilege::Kernel, arguments).unwrap();
            bench.expect_out(0x10).unwrap();
            bench.cpu.complete().unwrap();
            let mut registers = bench.cpu.registers();
            (registers[RAX], registers[RDX]) = (0x1234_5678, 0xffff_8000);
            bench.cpu.set_registers(&registers).unwrap();
            bench.expect_out(0x11).unwrap();
            bench.cpu.complete().unwrap();
        }
        let state = here.cpu.save().unwrap();
        there.cpu.restore(&state).unwrap();
        let [ours, theirs] = [&mut here, &mut there].map(|bench| {
            bench.start(Program::Msr, Privilege::Kernel, arguments).unwrap();
            bench.expect_out(0x10).unwrap();
            (bench.cpu.registers()[RAX], bench.cpu.registers()[RDX])
        });
        assert_eq!(ours, theirs, "MSR {index:#x}");
        println!("MSR {index:#x} keeps {:x}:{:x}", ours.1, ours.0);
    }
}

/// Without completion the answer would be lost and the access made again.
fn a_state_saved_at_a_read_holds_the_answer() {
    let (_one, profile) = kvm();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    here.start(
        Program::PortReads,
        Privilege::User,
        Arguments {
            rdi: TABLE,
            ..Arguments::default()
        },
    )
    .unwrap();
    assert_eq!(
        here.next_exit().unwrap(),
        Exit::PortRead {
            port: 0x10,
            size: 1,
            count: 1
        }
    );
    here.cpu.data().fill(0x5a);
    assert_eq!(here.cpu.complete().unwrap(), None);
    let state = here.cpu.save().unwrap();
    there.guest.copy_from(&here.guest, TABLE);
    there.cpu.restore(&state).unwrap();
    assert_eq!(there.cpu.registers()[RAX], 0x5a);
    assert_eq!(
        there.next_exit().unwrap(),
        Exit::PortRead {
            port: 0x10,
            size: 2,
            count: 1
        }
    );
}

fn an_injected_interrupt_is_saved() {
    let (_one, profile) = kvm();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    here.start(Program::Halt, Privilege::Kernel, Arguments::default())
        .unwrap();
    assert_eq!(here.next_exit().unwrap(), Exit::Hlt);
    here.cpu.interrupt(VECTOR).unwrap();
    let state = here.cpu.save().unwrap();
    there.guest.copy_from(&here.guest, TABLE);
    there.cpu.restore(&state).unwrap();
    assert!(!there.cpu.can_interrupt(), "one is queued already");
    there.expect_out(0x20).unwrap();
}

fn a_triple_fault_ends_the_guest() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    bench
        .start(Program::TripleFault, Privilege::Kernel, Arguments::default())
        .unwrap();
    assert_eq!(bench.next_exit().unwrap(), Exit::Terminal(Terminal::Shutdown));
}

fn what_kvm_cannot_emulate_is_reported_with_its_bytes() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    bench
        .start(
            Program::Unemulable,
            Privilege::Kernel,
            Arguments {
                rdi: MMIO,
                ..Arguments::default()
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
    assert_eq!(bench.cpu.registers()[RIP], Program::Unemulable.address());
    assert!(len == 0 || bytes[..2] == [0xd9, 0x07], "{len} {bytes:x?}");
    println!("{len} bytes told: {bytes:x?}");
}

/// A backup that has run up to an exit takes a checkpoint made after it, in which the guest has remapped a page.
fn a_remap_between_exit_and_kick_is_seen_after_a_checkpoint() {
    const OLD: u64 = 0x40_0000;
    const NEW: u64 = 0x60_0000;
    let (_one, profile) = kvm();
    let (entry_address, entry) = TinyGuest::large_page_entry(OLD, NEW);
    let arguments = Arguments {
        rcx: 1 << 26,
        rdi: OLD,
        rsi: entry_address,
        rdx: entry,
        ..Arguments::default()
    };
    for refresh in [PageTableRefresh::MmuReset, PageTableRefresh::ReplaceSlots] {
        for privilege in BOTH {
            let mut sides = [bench(&profile), bench(&profile)];
            for side in &mut sides {
                side.guest.write(OLD, 0x1111);
                side.guest.write(NEW, 0x2222);
                side.guest.set_handler(6, Label::RemapTrap.address());
                side.cpu.set_page_table_refresh(refresh);
                side.start(Program::Remap, privilege, arguments).unwrap();
                side.expect_out(0x10).unwrap();
                assert_eq!(side.cpu.registers()[RAX], 0x1111);
                side.cpu.complete().unwrap();
            }
            let [primary, backup] = &mut sides;
            let mut pages = Vec::new();
            primary.cpu.harvest_dirty(&mut pages).unwrap();
            while primary.cpu.registers()[RBX] == 0 {
                assert_eq!(primary.run_to_kick().unwrap(), Exit::Interrupted);
            }
            let state = primary.cpu.save().unwrap();
            primary.cpu.harvest_dirty(&mut pages).unwrap();
            assert!(pages.contains(&(entry_address >> 12)), "{pages:x?}");
            for page in &pages {
                let bytes = primary.guest.bytes(page << 12, 4096);
                backup
                    .guest
                    .memory
                    .write_slice(&bytes, GuestAddress(page << 12))
                    .unwrap();
            }
            backup.cpu.restore(&state).unwrap();
            // A short rest of the loop is enough.
            let mut registers = backup.cpu.registers();
            registers[RCX] = 3;
            backup.cpu.set_registers(&registers).unwrap();
            backup.expect_out(0x11).unwrap();
            assert_eq!(backup.cpu.registers()[RAX], 0x2222, "{refresh:?} {privilege:?}");
        }
    }
}

/// Replacing the slots must not lose what the dirty log held.
fn pages_dirty_before_a_restore_are_still_harvested() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    let mut pages = Vec::new();
    bench.cpu.set_page_table_refresh(PageTableRefresh::ReplaceSlots);
    bench
        .start(
            Program::Mix,
            Privilege::Kernel,
            Arguments {
                rcx: 2000,
                rdi: TABLE,
                ..Arguments::default()
            },
        )
        .unwrap();
    bench.cpu.harvest_dirty(&mut pages).unwrap();
    bench.expect_out(0x11).unwrap();
    bench.cpu.complete().unwrap();
    let state = bench.cpu.save().unwrap();
    bench.cpu.restore(&state).unwrap();
    bench.cpu.harvest_dirty(&mut pages).unwrap();
    let table = TABLE >> 12;
    assert!((table..table + 16).all(|page| pages.contains(&page)), "{pages:x?}");
    assert!(pages.is_sorted_by(|a, b| a < b));
    bench.cpu.harvest_dirty(&mut pages).unwrap();
    assert!(!pages.contains(&table), "handed out once only: {pages:x?}");
}

fn a_state_is_the_same_bytes_each_time_and_survives_serde() {
    let (_one, profile) = kvm();
    let mut bench = bench(&profile);
    bench
        .start(
            Program::MixSse,
            Privilege::User,
            Arguments {
                rcx: 50,
                rdi: TABLE,
                ..Arguments::default()
            },
        )
        .unwrap();
    bench.expect_out(0x11).unwrap();
    bench.cpu.complete().unwrap();
    let [first, second] = [(); 2].map(|()| serde_json::to_string(&bench.cpu.save().unwrap()).unwrap());
    assert_eq!(first, second);
    let back: KvmState = serde_json::from_str(&first).unwrap();
    assert_eq!(back, bench.cpu.save().unwrap());
    bench.cpu.restore(&back).unwrap();
    assert_eq!(bench.cpu.save().unwrap(), back);
}

fn a_kick_between_two_runs_interrupts_the_next_one_only() {
    let (_one, profile) = kvm();
    let guest = TinyGuest::new(RAM);
    let mut cpu = KvmCpu::new(&guest.memory, &profile).unwrap();
    let entry = TinyGuest::entry(
        Program::WindowPopf,
        Privilege::Kernel,
        Interrupts::Off,
        Arguments::default(),
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

fn kicks_reach_the_right_one_of_several_vcpus() {
    const KICKS: u32 = 100;
    let (_one, profile) = kvm();
    let stop = Arc::new(AtomicBool::new(false));
    let mut vcpus = Vec::new();
    for _ in 0..3 {
        let guest = TinyGuest::new(RAM);
        let mut cpu = KvmCpu::new(&guest.memory, &profile).unwrap();
        let entry = TinyGuest::entry(Program::Spin, Privilege::Kernel, Interrupts::Off, Arguments::default());
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
