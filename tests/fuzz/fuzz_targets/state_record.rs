//! A state record or micro-checkpoint from a peer or a file: refused with the reason, or a machine that runs on. What such a
//! machine saves is taken again.
#![no_main]

use std::sync::Arc;

use ftvm_fuzz::platform;
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::scripted::{Script, ScriptedCpu};
use ftvm_machine::config::GuestKind;
use ftvm_machine::machine::{Machine, MachineError, Step, TimeSource, allocate_memory};
use ftvm_schema::entry::Position;
use libfuzzer_sys::fuzz_target;

/// Exits that a machine from a record is run for.
const EXITS: usize = 20;

struct Floor;

impl TimeSource for Floor {
    type Error = MachineError;

    fn read(&mut self, _at: Position, floor: u64) -> Result<u64, MachineError> {
        Ok(floor)
    }
}

fn machine() -> Machine<ScriptedCpu> {
    let mut config = ftvm_machine::testing::config(GuestKind::BareMetal);
    config.platform = platform();
    let memory = allocate_memory(config.memory).expect("RAM for a test");
    let cpu = ScriptedCpu::new(&memory, Arc::new(Script::random(1, 40)), DeliveryMode::None);
    Machine::new(&config, memory, cpu).expect("a valid configuration")
}

/// Runs the machine on; whether its guest still lives then.
fn run_on(machine: &mut Machine<ScriptedCpu>) -> Result<bool, MachineError> {
    for _ in 0..EXITS {
        if let Step::Ended(_) = machine.run_to_exit(&mut Floor)? {
            return Ok(false);
        }
        if machine.settle(&mut Floor)?.is_some() {
            return Ok(false);
        }
        machine.drain_outputs();
    }
    Ok(true)
}

fuzz_target!(|data: &[u8]| {
    let _ = machine().apply_checkpoint(data);
    let mut loaded = machine();
    // A guest that has ended is saved by nobody.
    if loaded.load(data).is_err() || !matches!(run_on(&mut loaded), Ok(true)) || !loaded.at_exit() {
        return;
    }
    let saved = loaded.save().expect("a machine at an exit can be saved");
    machine().load(&saved).expect("a record that was just made");
});
