//! A reset is a new beginning for the guest, and none for its history.

use std::sync::Arc;

use ftvm_schema::entry::{Input, Position};
use vm_memory::{Bytes, GuestAddress};

use super::super::{TimeSource, allocate_memory};
use super::*;
use crate::config::{GuestKind, MIN_MEMORY};
use crate::testing::config;
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::scripted::{Operand, Script, ScriptStep, ScriptedCpu};

const COUNTED: GuestAddress = GuestAddress(0x7000);
const SECRET: GuestAddress = GuestAddress(0x9000);

struct Still;

impl TimeSource for Still {
    type Error = MachineError;

    fn read(&mut self, _at: Position, floor: u64) -> Result<u64, MachineError> {
        Ok(floor)
    }
}

/// A guest that says `a`, overwrites what its image has at [`SECRET`], and says `b` for ever.
fn machine() -> Machine<ScriptedCpu> {
    let say = |byte| ScriptStep::PortWrite {
        port: 0x3f8,
        size: 1,
        value: Operand::Const(byte),
    };
    let store = |addr: GuestAddress, value| ScriptStep::Store {
        addr: addr.0,
        len: 8,
        value: Operand::Const(value),
    };
    let mut program = Script::repeat(vec![say(0x61), store(COUNTED, 1), store(SECRET, 2), say(0x62)]);
    program.repeat_from = 3;
    let memory = allocate_memory(MIN_MEMORY).unwrap();
    memory.write_obj(7_u64, SECRET).unwrap();
    let cpu = ScriptedCpu::new(&memory, Arc::new(program), DeliveryMode::None);
    Machine::new(&config(GuestKind::BareMetal), memory, cpu).unwrap()
}

fn with_boot(machine: &mut Machine<ScriptedCpu>) {
    let cpu = machine.boot_cpu().unwrap();
    let record = boot_record(cpu, machine.memory(), machine.page_count()).unwrap();
    let cell = BootCell::default();
    machine.set_boot(Arc::clone(&cell));
    cell.set(record).unwrap();
}

fn settle(machine: &mut Machine<ScriptedCpu>) {
    assert_eq!(machine.settle(&mut Still).unwrap(), None);
}

fn said(machine: &mut Machine<ScriptedCpu>, exits: u32) -> Vec<u8> {
    for _ in 0..exits {
        machine.run_to_exit(&mut Still).unwrap();
    }
    let bytes = |output: crate::output::Output| match output.emission {
        crate::output::Emission::Console { bytes, .. } => bytes,
        _ => Vec::new(),
    };
    machine.drain_outputs().flat_map(bytes).collect()
}

#[test]
fn a_reset_makes_ram_and_vcpu_what_they_were_and_history_goes_on() {
    let mut machine = machine();
    with_boot(&mut machine);
    assert_eq!(said(&mut machine, 3), b"abb");
    settle(&mut machine);
    machine.take_dirty().unwrap();
    let (before, outputs) = (machine.at(), machine.outputs());
    machine.apply(&Input::Control(Intervention::Reset)).unwrap();
    assert_eq!((machine.at().exit, machine.at().k), (before.exit, before.k + 1));
    let read = |machine: &Machine<ScriptedCpu>, at| machine.memory().read_obj::<u64>(at).unwrap();
    assert_eq!((read(&machine, COUNTED), read(&machine, SECRET)), (0, 7));
    assert_eq!(
        machine.take_dirty().unwrap(),
        [7, 9],
        "a clone under way needs these pages again"
    );
    assert_eq!(said(&mut machine, 3), b"abb", "from the beginning");
    assert_eq!(machine.outputs().0, outputs.0 + 3);
    assert_eq!(machine.at().exit.0, before.exit.0 + 3);
}

#[test]
fn both_sides_of_a_pair_reset_to_the_same() {
    let (mut one, mut other) = (machine(), machine());
    with_boot(&mut one);
    with_boot(&mut other);
    for machine in [&mut one, &mut other] {
        said(machine, 4);
        settle(machine);
        machine.apply(&Input::Control(Intervention::Reset)).unwrap();
        said(machine, 2);
    }
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.memory_hash().unwrap(), other.memory_hash().unwrap());
    // An intervention that only one side has had is noticed.
    settle(&mut one);
    one.apply(&Input::Control(Intervention::Pause)).unwrap();
    assert_ne!(one.digest(), other.digest());
}

#[test]
fn without_or_with_a_damaged_boot_record_a_reset_is_an_error() {
    let mut machine = machine();
    let reset = Input::Control(Intervention::Reset);
    let error = machine.apply(&reset).unwrap_err().to_string();
    assert!(error.contains("no boot record"), "{error}");
    let cell = BootCell::default();
    cell.set(vec![0xFF; 40]).unwrap();
    machine.set_boot(cell);
    let error = machine.apply(&reset).unwrap_err().to_string();
    assert!(error.contains("boot record"), "{error}");
}

#[test]
fn a_pause_travels_with_the_state() {
    let mut paused = machine();
    paused.apply(&Input::Control(Intervention::Pause)).unwrap();
    let record = paused.save().unwrap();
    let mut clone = machine();
    clone.load(&record).unwrap();
    assert!(clone.paused());
    clone.apply(&Input::Control(Intervention::Resume)).unwrap();
    assert!(!clone.paused());
}
