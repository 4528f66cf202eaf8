//! A vCPU's state: everything that decides how it runs on, except RAM.
//!
//! Because XSAVE is hidden from guests, the FPU state is x87 and SSE; whatever else the host's CPU has (AVX, ...) is
//! set to its initial state by a restore. Two saves of the same state give the same bytes.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::ioctl::kvm_error;
use super::msr;
use super::msr::MsrError;
use ftvm_hypervisor::{CpuError, INTERRUPT_FLAG};

/// CR4.PGE: flipping it makes KVM rebuild its translations.
const PGE: u64 = 1 << 7;
/// 32-bit words of the legacy XSAVE area: control words, 8 x87 registers, 16 SSE registers; then XSTATE_BV.
const CONTROL_WORDS: usize = 8;
const X87_WORDS: usize = 32;
const XMM_END: usize = CONTROL_WORDS + X87_WORDS + 64;
const XSTATE_BV: usize = 128;
/// Bits of XSTATE_BV.
const X87: u32 = 1;
const SSE: u32 = 2;
/// FCW after FNINIT, and where MXCSR and its mask stand among the control words.
const INITIAL_FCW: u32 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
const MXCSR: usize = 6;
const MXCSR_MASK: usize = 7;

/// x87 and SSE registers, as in the legacy region of an XSAVE area (SDM volume 1, 13.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FpuState {
    control: [u32; CONTROL_WORDS],
    x87: [u32; X87_WORDS],
    xmm: [[u32; 4]; 16],
}

impl FpuState {
    /// As after reset, with all exceptions masked.
    pub(super) fn initial() -> Self {
        let mut control = [0; CONTROL_WORDS];
        control[0] = INITIAL_FCW;
        control[MXCSR] = INITIAL_MXCSR;
        FpuState {
            control,
            x87: [0; X87_WORDS],
            xmm: [[0; 4]; 16],
        }
    }

    /// Components in their initial state may hold anything in memory: XSTATE_BV says which (SDM volume 1, 13.6).
    fn from_area(area: &kvm_xsave) -> Self {
        let words = &area.region;
        let present = words[XSTATE_BV];
        let mut state = Self::initial();
        state.control[MXCSR] = words[MXCSR];
        if present & X87 != 0 {
            state.control[..MXCSR].copy_from_slice(&words[..MXCSR]);
            state
                .x87
                .copy_from_slice(&words[CONTROL_WORDS..CONTROL_WORDS + X87_WORDS]);
        }
        if present & SSE != 0 {
            for (register, four) in state
                .xmm
                .iter_mut()
                .zip(words[CONTROL_WORDS + X87_WORDS..].chunks_exact(4))
            {
                register.copy_from_slice(four);
            }
        }
        state
    }

    fn to_area(self) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        let words = &mut area.region;
        words[..CONTROL_WORDS].copy_from_slice(&self.control);
        words[MXCSR_MASK] = 0;
        words[CONTROL_WORDS..CONTROL_WORDS + X87_WORDS].copy_from_slice(&self.x87);
        words[CONTROL_WORDS + X87_WORDS..XMM_END].copy_from_slice(self.xmm.as_flattened());
        words[XSTATE_BV] = X87 | SSE;
        area
    }

    pub(super) fn set(self, vcpu: &VcpuFd) -> Result<(), CpuError> {
        // SAFETY: no guest permission for larger states (AMX) is ever asked for, so KVM reads the 4096 bytes it is given.
        unsafe { vcpu.set_xsave(&self.to_area()) }.map_err(kvm_error("restoring the FPU (KVM_SET_XSAVE)"))
    }
}

/// Bit of the task register's type that says "busy".
const BUSY: u8 = 2;

/// How KVM reports the type of the task register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskRegister {
    /// As it is.
    Exact,
    /// As busy whatever it is, because AMD's hardware does not keep the bit. Put back like that, it is another state:
    /// QEMU's emulated SVM then refuses user-mode port I/O that the TSS allows.
    AlwaysBusy,
}

impl TaskRegister {
    pub(super) fn of(vendor: &str) -> Self {
        match vendor {
            "AuthenticAMD" | "HygonGenuine" => TaskRegister::AlwaysBusy,
            _ => TaskRegister::Exact,
        }
    }

    /// A reported type such that setting it changes nothing.
    fn kept(self, reported: u8) -> u8 {
        match self {
            TaskRegister::Exact => reported,
            TaskRegister::AlwaysBusy => reported & !BUSY,
        }
    }
}

/// Segments and control registers, such that setting them changes nothing.
pub(super) fn special(vcpu: &VcpuFd, task_register: TaskRegister) -> Result<kvm_sregs, CpuError> {
    let mut special = vcpu.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
    special.tr.type_ = task_register.kept(special.tr.type_);
    Ok(special)
}

/// Everything about a vCPU but RAM; see [`ftvm_hypervisor::Cpu::State`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvmState {
    registers: kvm_regs,
    special: kvm_sregs,
    fpu: FpuState,
    debug: kvm_debugregs,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    /// Index and value, ascending.
    msrs: Vec<(u32, u64)>,
}

impl KvmState {
    /// Reads everything but the general registers, which every exit brings.
    pub(super) fn save(
        vcpu: &VcpuFd,
        registers: &kvm_regs,
        msr_indices: &[u32],
        task_register: TaskRegister,
    ) -> Result<Self, CpuError> {
        let msrs = msr::read(vcpu, msr_indices)?;
        let unread = |index: &&u32| msrs.iter().all(|(read, _)| read != *index);
        if let Some(lost) = msr_indices.iter().find(unread) {
            return Err(CpuError::unsupported(MsrError::Lost { index: *lost }));
        }
        Ok(KvmState {
            registers: *registers,
            special: special(vcpu, task_register)?,
            fpu: FpuState::from_area(&vcpu.get_xsave().map_err(kvm_error("KVM_GET_XSAVE"))?),
            debug: vcpu.get_debug_regs().map_err(kvm_error("KVM_GET_DEBUGREGS"))?,
            mp_state: vcpu.get_mp_state().map_err(kvm_error("KVM_GET_MP_STATE"))?,
            events: events(vcpu)?,
            msrs,
        })
    }

    /// Puts the vCPU into this state. The order matters: segments and control registers first, because MSRs and
    /// registers are checked against the mode; events last, because setting registers drops pending exceptions.
    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), CpuError> {
        vcpu.set_sregs(&self.special)
            .map_err(kvm_error("restoring segments (KVM_SET_SREGS)"))?;
        msr::write(vcpu, &self.msrs)?;
        vcpu.set_regs(&self.registers)
            .map_err(kvm_error("restoring registers (KVM_SET_REGS)"))?;
        self.fpu.set(vcpu)?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(kvm_error("restoring debug registers (KVM_SET_DEBUGREGS)"))?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(kvm_error("KVM_SET_MP_STATE"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(kvm_error("restoring pending events (KVM_SET_VCPU_EVENTS)"))
    }

    /// Makes KVM forget its translations of guest page tables: PGE flipped, to be followed by [`KvmState::restore`].
    pub(super) fn reset_mmu(&self, vcpu: &VcpuFd) -> Result<(), CpuError> {
        let mut flipped = self.special;
        flipped.cr4 ^= PGE;
        vcpu.set_sregs(&flipped)
            .map_err(kvm_error("flipping CR4.PGE (KVM_SET_SREGS)"))
    }

    pub(super) fn registers(&self) -> &kvm_regs {
        &self.registers
    }

    pub(super) fn cr8(&self) -> u64 {
        self.special.cr8
    }

    pub(super) fn is_clean_boundary(&self) -> bool {
        is_clean_boundary(self.registers.rflags, &self.events)
    }
}

/// Pending and injected events, with the flags that make KVM take all of them back.
pub(super) fn events(vcpu: &VcpuFd) -> Result<kvm_vcpu_events, CpuError> {
    let mut events = vcpu.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?;
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    Ok(events)
}

/// Whether an interrupt could be taken right here, with nothing else under way.
pub(super) fn is_clean_boundary(rflags: u64, events: &kvm_vcpu_events) -> bool {
    rflags & INTERRUPT_FLAG != 0
        && events.interrupt.injected == 0
        && events.interrupt.shadow == 0
        && events.exception.injected == 0
        && events.exception.pending == 0
        && events.nmi.injected == 0
        && events.nmi.pending == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> kvm_xsave {
        let mut area = kvm_xsave::default();
        for (word, number) in area.region.iter_mut().zip(1..) {
            *word = number;
        }
        area.region[XSTATE_BV] = X87 | SSE;
        area
    }

    #[test]
    fn x87_and_sse_survive_and_nothing_else_does() {
        let state = FpuState::from_area(&area());
        let back = state.to_area();
        assert_eq!(back.region[..MXCSR_MASK], area().region[..MXCSR_MASK]);
        assert_eq!(
            back.region[CONTROL_WORDS..XMM_END],
            area().region[CONTROL_WORDS..XMM_END]
        );
        assert_eq!(back.region[MXCSR_MASK], 0, "a constant of the host");
        assert!(back.region[XMM_END..XSTATE_BV].iter().all(|word| *word == 0));
        assert_eq!(back.region[XSTATE_BV..XSTATE_BV + 2], [X87 | SSE, 0]);
        assert!(back.region[XSTATE_BV + 2..].iter().all(|word| *word == 0));
        assert_eq!(FpuState::from_area(&back), state);
    }

    #[test]
    fn components_in_initial_state_are_not_read_from_memory() {
        let mut stale = area();
        stale.region[XSTATE_BV] = 0;
        let mut expected = FpuState::initial();
        expected.control[MXCSR] = stale.region[MXCSR];
        assert_eq!(FpuState::from_area(&stale), expected);
        stale.region[XSTATE_BV] = SSE;
        let state = FpuState::from_area(&stale);
        assert_eq!((state.control[0], state.x87), (INITIAL_FCW, [0; X87_WORDS]));
        assert_eq!(state.xmm[0][0], stale.region[40]);
        assert_eq!(state.xmm[15][3], stale.region[XMM_END - 1]);
    }

    /// Types of a 64-bit task state segment: 9 available, 11 busy (SDM volume 3, table 3-2).
    #[test]
    fn a_task_is_busy_only_where_the_vendor_s_hardware_keeps_the_bit() {
        for vendor in ["AuthenticAMD", "HygonGenuine"] {
            let task_register = TaskRegister::of(vendor);
            assert_eq!([9, 11].map(|reported| task_register.kept(reported)), [9, 9], "{vendor}");
        }
        let task_register = TaskRegister::of("GenuineIntel");
        assert_eq!([9, 11].map(|reported| task_register.kept(reported)), [9, 11]);
    }

    #[test]
    fn a_boundary_is_clean_only_with_if_and_nothing_under_way() {
        let quiet = kvm_vcpu_events::default();
        assert!(is_clean_boundary(0x202, &quiet));
        assert!(!is_clean_boundary(0x002, &quiet));
        let disturbances: [fn(&mut kvm_vcpu_events); 6] = [
            |events| events.interrupt.injected = 1,
            |events| events.interrupt.shadow = 1,
            |events| events.exception.injected = 1,
            |events| events.exception.pending = 1,
            |events| events.nmi.injected = 1,
            |events| events.nmi.pending = 1,
        ];
        for disturb in disturbances {
            let mut events = quiet;
            disturb(&mut events);
            assert!(!is_clean_boundary(0x202, &events), "{events:?}");
        }
    }
}
