//! A machine around a scripted CPU.

use std::sync::Arc;

use ftvm_schema::entry::Position;
use vm_memory::{Bytes, GuestAddress};

use super::state::Moved;
use super::{Machine, MachineError, Step as Stepped, TimeSource, allocate_memory};
use crate::config::{GuestKind, MIN_MEMORY};
use crate::testing::config;
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::scripted::{Interrupts, Operand, Script, ScriptStep, ScriptedCpu};

/// A clock that stands still.
struct Still;

impl TimeSource for Still {
    type Error = MachineError;

    fn read(&mut self, _at: Position, floor: u64) -> Result<u64, MachineError> {
        Ok(floor)
    }
}

/// A serial port raises its interrupt while interrupts are off; then they are on, and the first exit is an MSR that
/// nobody has. KVM drops what is queued before such an access is finished, and so does the scripted CPU.
#[test]
fn an_interrupt_at_a_refused_msr_is_not_lost() {
    const HANDLED: GuestAddress = GuestAddress(0x7000);
    let out = |(port, value)| ScriptStep::PortWrite {
        port,
        size: 1,
        value: Operand::Const(value),
    };
    // The first interrupt controller: vectors from 0x20, all masked but line 4; then modem control and interrupt
    // enable.
    let set_up = [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xef),
        (0x3fc, 8),
        (0x3f9, 2),
    ];
    let mut steps = set_up.map(out).to_vec();
    steps.extend([
        ScriptStep::SetInterrupts(Interrupts::On),
        ScriptStep::ReadMsr { index: 0x1234 },
    ]);
    let msr = set_up.len() + 1;
    steps.push(out((0x80, 0)));
    let memory = allocate_memory(MIN_MEMORY).unwrap();
    let cpu = ScriptedCpu::new(&memory, Arc::new(Script::repeat(steps)), DeliveryMode::None);
    let mut machine = Machine::new(&config(GuestKind::BareMetal), memory, cpu).unwrap();
    for _ in 0..msr {
        machine.run_to_exit(&mut Still).unwrap();
    }
    assert!(machine.chipset().interrupt_pending());
    let handled = |machine: &Machine<ScriptedCpu>| machine.memory().read_obj::<u64>(HANDLED).unwrap() != 0;
    assert!(!handled(&machine));
    machine.run_to_exit(&mut Still).unwrap();
    assert!(handled(&machine), "the handler ran");
}

/// A page goes from 7 to 8, an exit, and back to 7 before the checkpoint, again and again: since the last one it has
/// not changed, but at the last exit, where the other side stands, it was another. In between the dirty log is reset.
#[test]
fn a_page_that_goes_back_is_brought_along_as_often_as_it_does() {
    const PAGE: u64 = 5;
    let store = |value| ScriptStep::Store {
        addr: PAGE << 12,
        len: 8,
        value: Operand::Const(value),
    };
    let out = ScriptStep::PortWrite {
        port: 0x80,
        size: 1,
        value: Operand::Accumulator,
    };
    let program = Script {
        steps: vec![
            ScriptStep::SetInterrupts(Interrupts::On),
            store(8),
            out,
            store(7),
            ScriptStep::Spin { units: 1000 },
            out,
        ],
        repeat_from: 1,
        ..Script::repeat(vec![out])
    };
    let program = Arc::new(program);
    let machine = || {
        let memory = allocate_memory(MIN_MEMORY).unwrap();
        let cpu = ScriptedCpu::new(&memory, Arc::clone(&program), DeliveryMode::None);
        let kick = cpu.scripted_kick();
        let machine = Machine::new(&config(GuestKind::BareMetal), memory, cpu).unwrap();
        (machine, kick)
    };
    let ((mut primary, kick), (mut backup, _)) = (machine(), machine());
    backup.load(&primary.save().unwrap()).unwrap();
    let mut kept = Vec::new();
    for round in 0..12 {
        for machine in [&mut primary, &mut backup] {
            assert_eq!(machine.run_to_exit(&mut Still).unwrap(), Stepped::Exit);
            machine.settle(&mut Still).unwrap();
        }
        primary.forget_dirty().unwrap();
        kick.kick_after(500);
        assert_eq!(primary.run_to_exit(&mut Still).unwrap(), Stepped::Interrupted);
        assert_eq!(primary.preempt(&mut Still).unwrap(), Moved::ToBoundary);
        let (record, _) = primary.checkpoint().unwrap();
        backup.apply_checkpoint(&record).unwrap();
        let value =
            |machine: &Machine<ScriptedCpu>| machine.memory().read_obj::<u64>(GuestAddress(PAGE << 12)).unwrap();
        assert_eq!((value(&primary), value(&backup)), (7, 7), "round {round}");
        assert_eq!(
            primary.memory_hash().unwrap(),
            backup.memory_hash().unwrap(),
            "round {round}"
        );
        kept.push(primary.working_set.keeps(PAGE));
        for machine in [&mut primary, &mut backup] {
            assert_eq!(machine.run_to_exit(&mut Still).unwrap(), Stepped::Exit);
            machine.settle(&mut Still).unwrap();
        }
        assert_eq!(primary.digest(), backup.digest(), "round {round}");
    }
    // Written, written again, and then never found changed, until it is protected: then the same once more.
    let found = [
        false, true, true, true, true, true, false, false, true, true, true, true,
    ];
    assert_eq!(kept, found);
}
