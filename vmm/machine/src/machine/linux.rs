//! What the rewritten Linux kernel asks of the machine (`boot::linux::rewrite` puts the questions into its image).
//!
//! No KVM can give RDTSC to user space, so the kernel's own are rewritten at load to `out RDTSC_PORT, al`, a plain exit
//! of the same length. CR4.TSD makes RDTSC fault in user programs; the kernel's #GP entry begins with
//! `out GP_HOOK_PORT, al`, and where the fault was a user program's RDTSC the machine answers it and returns to the
//! program, as if the instruction had worked. Both answers are derived from the last logged time and the
//! readings since, so they cost no log entry (LINUX-FACTS; DESIGN, idea 4).

use ftvm_schema::entry::register::{RAX, RCX, RDX, RSP};
use vm_memory::{Bytes, GuestAddress};

use super::{Machine, MachineError};
use ftvm_hypervisor::{Cpu, UserFrame};

/// A rewritten RDTSC writes AL here: EDX:EAX are to be set.
pub const RDTSC_PORT: u16 = 0xEE;

/// The kernel's #GP entry writes AL here, with the error code and the interrupt frame on its stack.
pub const GP_HOOK_PORT: u16 = 0xEF;

/// RPL and CPL: the low bits of a selector.
const PRIVILEGE: u64 = 3;

/// The user-mode instructions that CR4.TSD makes fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeRead {
    Rdtsc,
    Rdtscp,
}

impl TimeRead {
    fn decode(bytes: [u8; 3]) -> Option<Self> {
        match bytes {
            [0x0f, 0x31, _] => Some(TimeRead::Rdtsc),
            [0x0f, 0x01, 0xf9] => Some(TimeRead::Rdtscp),
            _ => None,
        }
    }

    fn length(self) -> u64 {
        match self {
            TimeRead::Rdtsc => 2,
            TimeRead::Rdtscp => 3,
        }
    }
}

impl<C: Cpu> Machine<C> {
    /// Answers a rewritten RDTSC. The OUT is finished first: a pending access would be completed over the new
    /// registers.
    pub(super) fn answer_rdtsc(&mut self) -> Result<(), MachineError> {
        self.finish_out()?;
        let mut registers = self.cpu.registers();
        let time = self.clock.derive();
        (registers[RAX], registers[RDX]) = halves(time);
        Ok(self.cpu.set_registers(&registers)?)
    }

    /// Answers a user program's RDTSC or RDTSCP at the kernel's #GP entry; any other fault is the kernel's business.
    pub(super) fn answer_gp_hook(&mut self) -> Result<(), MachineError> {
        self.finish_out()?;
        let mut registers = self.cpu.registers();
        let Some((frame, instruction)) = self.faulting_time_read(registers[RSP]) else {
            return Ok(());
        };
        let time = self.clock.derive();
        (registers[RAX], registers[RDX]) = halves(time);
        if instruction == TimeRead::Rdtscp {
            registers[RCX] = 0; // IA32_TSC_AUX is never written: RDTSCP is hidden
        }
        let frame = UserFrame {
            rip: frame.rip.wrapping_add(instruction.length()),
            ..frame
        };
        Ok(self.cpu.return_to_user(&registers, &frame)?)
    }

    fn finish_out(&mut self) -> Result<(), MachineError> {
        match self.complete()? {
            None => Ok(()),
            Some(exit) => Err(MachineError::OutInParts { exit }),
        }
    }

    /// The frame that a #GP with error code 0 has pushed, if it came from user mode at a time-reading instruction
    /// (SDM volume 3, 6.14.2).
    fn faulting_time_read(&self, stack: u64) -> Option<(UserFrame, TimeRead)> {
        let mut words = [0; 6];
        for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
            *word = self.read_linear(stack.wrapping_add(offset))?;
        }
        let [error, rip, cs, rflags, rsp, ss] = words;
        if error != 0 || cs & PRIVILEGE != PRIVILEGE {
            return None;
        }
        let bytes = [0, 1, 2].map(|offset| self.read_linear::<u8>(rip.wrapping_add(offset)));
        // The third byte may lie on a page that is not there; only RDTSCP needs it.
        let instruction = TimeRead::decode([bytes[0]?, bytes[1]?, bytes[2].unwrap_or(0)])?;
        let frame = UserFrame {
            rip,
            cs: selector(cs)?,
            rflags,
            rsp,
            ss: selector(ss)?,
        };
        Some((frame, instruction))
    }

    fn read_linear<T: vm_memory::ByteValued>(&self, address: u64) -> Option<T> {
        self.memory.read_obj(GuestAddress(self.cpu.translate(address)?)).ok()
    }
}

fn halves(time: u64) -> (u64, u64) {
    (time & 0xffff_ffff, time >> 32)
}

fn selector(word: u64) -> Option<u16> {
    u16::try_from(word & 0xffff).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{GuestKind, MIN_MEMORY};
    use crate::machine::allocate_memory;
    use crate::testing::config;
    use ftvm_hypervisor::DeliveryMode;
    use ftvm_hypervisor::scripted::{Script, ScriptStep, ScriptedCpu};

    const STACK: u64 = 0x8000;
    const RIP: u64 = 0x5000;
    const USER: [u64; 5] = [RIP, 0x33, 0x246, 0x7ff0, 0x2b];

    /// A machine without paging, whose stack and code hold this.
    fn machine(error: u64, frame: [u64; 5], code: &[u8]) -> Machine<ScriptedCpu> {
        let memory = allocate_memory(MIN_MEMORY).unwrap();
        for (word, at) in [error].into_iter().chain(frame).zip((STACK..).step_by(8)) {
            memory.write_obj(word, GuestAddress(at)).unwrap();
        }
        memory.write_slice(code, GuestAddress(frame[0])).unwrap();
        let cpu = ScriptedCpu::new(
            &memory,
            Arc::new(Script::repeat(vec![ScriptStep::Halt])),
            DeliveryMode::None,
        );
        Machine::new(&config(GuestKind::Linux), memory, cpu).unwrap()
    }

    fn found(error: u64, frame: [u64; 5], code: &[u8]) -> Option<TimeRead> {
        let (frame, instruction) = machine(error, frame, code).faulting_time_read(STACK)?;
        assert_eq!(
            (frame.cs, frame.rflags, frame.rsp, frame.ss),
            (0x33, 0x246, 0x7ff0, 0x2b)
        );
        Some(instruction)
    }

    #[test]
    fn a_program_s_time_reads_are_known() {
        assert_eq!(found(0, USER, &[0x0f, 0x31]), Some(TimeRead::Rdtsc));
        assert_eq!(found(0, USER, &[0x0f, 0x01, 0xf9]), Some(TimeRead::Rdtscp));
        let [_, cs, rflags, rsp, ss] = USER;
        let last = [MIN_MEMORY - 2, cs, rflags, rsp, ss];
        assert_eq!(
            found(0, last, &[0x0f, 0x31]),
            Some(TimeRead::Rdtsc),
            "nothing is mapped behind it"
        );
    }

    #[test]
    fn other_faults_are_the_kernel_s() {
        let [rip, _, rflags, rsp, ss] = USER;
        let rdtsc = [0x0f, 0x31];
        assert_eq!(found(8, USER, &rdtsc), None, "a selector's fault");
        assert_eq!(found(0, [rip, 0x10, rflags, rsp, ss], &rdtsc), None, "the kernel's own");
        assert_eq!(found(0, USER, &[0x0f, 0x30]), None, "wrmsr");
        assert_eq!(found(0, USER, &[0x0f, 0x01, 0xf8]), None, "swapgs");
        assert!(
            machine(0, USER, &rdtsc).faulting_time_read(MIN_MEMORY).is_none(),
            "no stack there"
        );
    }
}
