//! A machine around a scripted CPU.

use std::sync::Arc;

use logging_channel::entry::Position;
use vm_memory::{Bytes, GuestAddress};

use super::config::{GuestKind, ImageId, MACHINE_VERSION, MIN_MEMORY, MachineConfig};
use super::{Machine, MachineError, TimeSource, allocate_memory};
use crate::devices::PlatformConfig;
use crate::hypervisor::DeliveryMode;
use crate::hypervisor::kvm::CpuProfile;
use crate::hypervisor::scripted::{Interrupts, Program, ScriptedCpu, Step, Value};

/// The smallest machine.
pub(crate) fn config(guest: GuestKind) -> MachineConfig {
    MachineConfig {
        version: MACHINE_VERSION,
        memory: MIN_MEMORY,
        kernel: ImageId {
            name: String::new(),
            sha256: [0; 32],
        },
        initrd: None,
        guest,
        cmdline: String::new(),
        seed: 0,
        platform: PlatformConfig::default(),
        profile: CpuProfile {
            cpuid: Vec::new(),
            delivery: DeliveryMode::None,
        },
    }
}

/// A clock that stands still.
struct Still;

impl TimeSource for Still {
    fn read(&mut self, _at: Position, floor: u64) -> Result<u64, MachineError> {
        Ok(floor)
    }
}

/// A serial port raises its interrupt while interrupts are off; then they are on, and the first exit is an MSR that nobody
/// has. KVM drops what is queued before such an access is finished, and so does the scripted CPU.
#[test]
fn an_interrupt_at_a_refused_msr_is_not_lost() {
    const HANDLED: GuestAddress = GuestAddress(0x7000);
    let out = |(port, value)| Step::PortWrite {
        port,
        size: 1,
        value: Value::Const(value),
    };
    // The first interrupt controller: vectors from 0x20, all masked but line 4; then modem control and interrupt enable.
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
    steps.extend([Step::SetInterrupts(Interrupts::On), Step::ReadMsr { index: 0x1234 }]);
    let msr = set_up.len() + 1;
    steps.push(out((0x80, 0)));
    let memory = allocate_memory(MIN_MEMORY).unwrap();
    let cpu = ScriptedCpu::new(&memory, Arc::new(Program::repeat(steps)), DeliveryMode::None);
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
