//! What a state holds when it is saved, and what a vCPU does that is restored from it.

use ftvm_hypervisor::{Cpu, Exit};
use ftvm_kvm::KvmState;
use ftvm_kvm::PageTableRefresh;
use ftvm_kvm::selftest::Capabilities;
use ftvm_kvm::selftest::guest::{ArgumentRegisters, Interrupts, Privilege, TABLE, TinyGuest, VECTOR};
use ftvm_kvm::selftest::programs::{Label, TinyProgram};
use vm_memory::{Bytes, GuestAddress};

use super::{BOTH, RAX, RBX, RCX, RDX, bench, profile};

/// The #GP of a refused access is part of the state: it is delivered where the state is restored, and nothing before it.
pub fn a_pending_exception_is_saved() {
    let profile = profile();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    let arguments = ArgumentRegisters {
        rcx: 0x10,
        ..ArgumentRegisters::default()
    };
    here.start_with(TinyProgram::Msr, Privilege::Kernel, Interrupts::On, arguments)
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

/// A program that may use ports by its task's bitmap only, not by IOPL, still may in another VM.
pub fn a_restored_program_keeps_the_ports_of_its_task() {
    /// Index of R10, from which user code gets its flags.
    const R10: usize = 10;
    let profile = profile();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    let arguments = ArgumentRegisters {
        rdi: TABLE,
        ..ArgumentRegisters::default()
    };
    here.start(TinyProgram::PortReads, Privilege::User, arguments).unwrap();
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
pub fn a_checkpoint_truncates_no_sysenter_msr() {
    let profile = profile();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    for index in [0x175, 0x176] {
        let arguments = ArgumentRegisters {
            rcx: index,
            ..ArgumentRegisters::default()
        };
        for bench in [&mut here, &mut there] {
            bench.start(TinyProgram::Msr, Privilege::Kernel, arguments).unwrap();
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
            bench.start(TinyProgram::Msr, Privilege::Kernel, arguments).unwrap();
            bench.expect_out(0x10).unwrap();
            (bench.cpu.registers()[RAX], bench.cpu.registers()[RDX])
        });
        assert_eq!(ours, theirs, "MSR {index:#x}");
        println!("MSR {index:#x} keeps {:x}:{:x}", ours.1, ours.0);
    }
}

/// Without completion the answer would be lost and the access made again.
pub fn a_state_saved_at_a_read_holds_the_answer() {
    let profile = profile();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    here.start(
        TinyProgram::PortReads,
        Privilege::User,
        ArgumentRegisters {
            rdi: TABLE,
            ..ArgumentRegisters::default()
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

pub fn an_injected_interrupt_is_saved() {
    let profile = profile();
    let (mut here, mut there) = (bench(&profile), bench(&profile));
    here.start(TinyProgram::Halt, Privilege::Kernel, ArgumentRegisters::default())
        .unwrap();
    assert_eq!(here.next_exit().unwrap(), Exit::Hlt);
    here.cpu.interrupt(VECTOR).unwrap();
    let state = here.cpu.save().unwrap();
    there.guest.copy_from(&here.guest, TABLE);
    there.cpu.restore(&state).unwrap();
    assert!(!there.cpu.can_interrupt(), "one is queued already");
    there.expect_out(0x20).unwrap();
}

pub fn a_state_is_the_same_bytes_each_time_and_survives_serde() {
    let profile = profile();
    let mut bench = bench(&profile);
    bench
        .start(
            TinyProgram::MixSse,
            Privilege::User,
            ArgumentRegisters {
                rcx: 50,
                rdi: TABLE,
                ..ArgumentRegisters::default()
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

/// A backup that has run up to an exit takes a checkpoint made after it, in which the guest has remapped a page.
pub fn a_remap_between_exit_and_kick_is_seen_after_a_checkpoint() {
    const OLD: u64 = 0x40_0000;
    const NEW: u64 = 0x60_0000;
    let profile = profile();
    let (entry_address, entry) = TinyGuest::large_page_entry(OLD, NEW);
    let arguments = ArgumentRegisters {
        rcx: 1 << 26,
        rdi: OLD,
        rsi: entry_address,
        rdx: entry,
        ..ArgumentRegisters::default()
    };
    // An MMU reset is enough where the self-test says so; replacing the slots is everywhere.
    for refresh in [
        Capabilities::at_startup().page_table_refresh(),
        PageTableRefresh::ReplaceSlots,
    ] {
        for privilege in BOTH {
            let mut sides = [bench(&profile), bench(&profile)];
            for side in &mut sides {
                side.guest.write(OLD, 0x1111);
                side.guest.write(NEW, 0x2222);
                side.guest.set_handler(6, Label::RemapTrap.address());
                side.cpu.set_page_table_refresh(refresh);
                side.start(TinyProgram::Remap, privilege, arguments).unwrap();
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
pub fn pages_dirty_before_a_restore_are_still_harvested() {
    let profile = profile();
    let mut bench = bench(&profile);
    let mut pages = Vec::new();
    bench.cpu.set_page_table_refresh(PageTableRefresh::ReplaceSlots);
    bench
        .start(
            TinyProgram::Mix,
            Privilege::Kernel,
            ArgumentRegisters {
                rcx: 2000,
                rdi: TABLE,
                ..ArgumentRegisters::default()
            },
        )
        .unwrap();
    bench.cpu.harvest_dirty(&mut pages).unwrap();
    bench.expect_out(0x11).unwrap();
    bench.cpu.complete().unwrap();
    let state = bench.cpu.save().unwrap();
    bench.cpu.restore(&state).unwrap();
    let table = TABLE >> 12;
    for _ in 0..2 {
        bench.cpu.dirty(&mut pages).unwrap();
        assert!((table..table + 16).all(|page| pages.contains(&page)), "{pages:x?}");
        assert!(pages.is_sorted_by(|a, b| a < b));
    }
    bench.cpu.forget_dirty(&[table, table + 3]).unwrap();
    bench.cpu.dirty(&mut pages).unwrap();
    let found: Vec<u64> = (table..table + 5).filter(|page| pages.contains(page)).collect();
    assert_eq!(
        found,
        [table + 1, table + 2, table + 4],
        "what is forgotten, and nothing else"
    );
    bench.cpu.harvest_dirty(&mut pages).unwrap();
    bench.cpu.dirty(&mut pages).unwrap();
    assert!(!pages.contains(&(table + 1)), "handed out once only: {pages:x?}");
}
