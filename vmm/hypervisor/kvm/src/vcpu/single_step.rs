//! The single step behind `sti` ([`DeliveryMode::WindowStiStep`]): some KVMs open the interrupt window before the
//! instruction that the shadow of `sti` protects, others behind it. One step makes both the same.
//!
//! [`DeliveryMode::WindowStiStep`]: ftvm_hypervisor::DeliveryMode::WindowStiStep

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_guest_debug_arch};
use vm_memory::{Bytes, GuestAddress};

use super::{KvmCpu, Returned};
use crate::ioctl::kvm_error;
use crate::run_page::Decoded;
use ftvm_hypervisor::{Cpu as _, CpuError, Exit};

/// The opcode of `sti`.
const STI: u8 = 0xfb;
/// How often a single step is tried again after a signal. One instruction takes microseconds; a storm that starves so
/// many tries is an error, not something to wait out.
const STEP_TRIES: u32 = 100_000;

/// Every try of a single step was interrupted.
#[derive(Debug, thiserror::Error)]
#[error("signals interrupted a single step {STEP_TRIES} times: some timer of this process is far too fast")]
pub(crate) struct StepStarved;

impl KvmCpu {
    /// Whether the instruction before RIP looks like `sti`.
    pub(super) fn is_behind_sti(&self) -> bool {
        let address = self.run.registers().rip.wrapping_sub(1);
        self.translate(address).is_some_and(|address| {
            self.memory
                .read_obj::<u8>(GuestAddress(address))
                .is_ok_and(|byte| byte == STI)
        })
    }

    /// Executes the one instruction that the shadow of `sti` protects. `None` if the window is not open behind it: then
    /// it has not opened at all yet.
    pub(super) fn step_out_of_shadow(&mut self) -> Result<Option<Exit>, CpuError> {
        self.run.set_window_request(false);
        self.set_single_step(true)?;
        let mut returned = self.kvm_run()?;
        for _ in 0..STEP_TRIES {
            if returned == Returned::Exit {
                break;
            }
            returned = self.kvm_run()?;
        }
        self.note_return();
        let decoded = self.run.decode();
        self.set_single_step(false)?;
        match (returned, decoded) {
            (Returned::Interrupted, _) => Err(CpuError::unsupported(StepStarved)),
            (Returned::Exit, Decoded::SingleStep) => Ok(self.gate.is_open().then_some(Exit::IrqWindow)),
            (Returned::Exit, Decoded::Exit(exit, access)) => Ok(Some(self.note_exit(exit, access))),
        }
    }

    fn set_single_step(&self, wanted: bool) -> Result<(), CpuError> {
        let control = if wanted {
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        } else {
            0
        };
        let debug = kvm_guest_debug {
            control,
            pad: 0,
            arch: kvm_guest_debug_arch::default(),
        };
        self.vcpu
            .set_guest_debug(&debug)
            .map_err(kvm_error("single-stepping (KVM_SET_GUEST_DEBUG)"))
    }
}
