//! One vCPU: entering it, taking its exits, completing them, and its state.

mod single_step;

#[cfg(test)]
pub(crate) use single_step::StepStarved;

use std::sync::Arc;

use ftvm_schema::entry::RegisterFile;
use kvm_bindings::{KVM_EXIT_DEBUG, KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

use crate::ioctl::kvm_error;
use crate::kick::KickCell;
use crate::run_page::{Decoded, ExitData, RunPage};
use crate::state::{FpuState, KvmState, TaskRegister};
use crate::system::System;
use crate::vm::Vm;
use crate::{entry, msr, profile, state};
use ftvm_hypervisor::entry::EntryState;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::{Cpu, CpuError, DeliveryMode, Exit, GuestMemory, INTERRUPT_FLAG, Kick, Terminal, UserFrame};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// How a vCPU that has run is made to see page tables that the host has written (self-test `host_pt_write_visible`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageTableRefresh {
    /// An MMU reset by CR4.PGE is enough: real VMX and SVM.
    MmuReset,
    /// Only deleting and adding the memory slots again helps. Right everywhere, but all of RAM faults in anew.
    ReplaceSlots,
}

/// Whether the last exit's access must still be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completion {
    Done,
    Pending,
}

/// What KVM_RUN came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    Exit,
    Interrupted,
}

/// Whether an interrupt can be queued, as of the last exit or restore.
#[derive(Clone, Copy, Debug)]
struct Gate {
    interrupt_flag: bool,
    ready: bool,
}

impl Gate {
    fn is_open(self) -> bool {
        self.interrupt_flag && self.ready
    }
}

/// One vCPU with its own virtual machine on this host's KVM.
#[derive(Debug)]
pub struct KvmCpu {
    run: RunPage,
    vcpu: VcpuFd,
    vm: Vm,
    memory: GuestMemory,
    kick: Arc<KickCell>,
    delivery: DeliveryMode,
    page_tables: PageTableRefresh,
    /// Indices of the MSRs that belong to a state, ascending.
    msrs: Vec<u32>,
    task_register: TaskRegister,
    /// Where the last exit's data is.
    access: ExitData,
    completion: Completion,
    gate: Gate,
    window_wanted: bool,
    /// Only then can the vCPU hold translations of page tables that the host changes.
    has_run: bool,
}

impl KvmCpu {
    /// Creates a virtual machine with `memory` as its RAM and one vCPU of `profile`. Until told otherwise
    /// ([`KvmCpu::set_page_table_refresh`]) it restores in the way that is right on every host.
    ///
    /// # Errors
    /// If KVM is missing, forbidden, busy or too old (text for the user), or refuses memory or profile.
    pub fn new(memory: &GuestMemory, profile: &CpuProfile) -> Result<Self, CpuError> {
        let system = System::open()?;
        let vm = Vm::new(&system, memory)?;
        let vcpu = vm.create_vcpu()?;
        vcpu.set_cpuid2(&profile::to_kvm(profile)?)
            .map_err(kvm_error("setting the CPU profile (KVM_SET_CPUID2)"))?;
        let msrs = msr::saved_msrs(&system, &vcpu)?;
        Ok(KvmCpu {
            run: RunPage::map(&vcpu, vm.run_size())?,
            vcpu,
            vm,
            memory: memory.clone(),
            kick: Arc::default(),
            delivery: profile.delivery,
            page_tables: PageTableRefresh::ReplaceSlots,
            msrs,
            task_register: TaskRegister::of(&profile.vendor()),
            access: ExitData::None,
            completion: Completion::Done,
            gate: Gate {
                interrupt_flag: false,
                ready: false,
            },
            window_wanted: false,
            has_run: false,
        })
    }

    /// Chooses how `restore` makes the vCPU see page tables that the host has written.
    pub fn set_page_table_refresh(&mut self, refresh: PageTableRefresh) {
        self.page_tables = refresh;
    }

    /// Changes how interrupt windows are taken: only before the guest starts, and the same on both hosts of a pair.
    pub fn set_delivery_mode(&mut self, delivery: DeliveryMode) {
        self.delivery = delivery;
    }

    /// Puts a new vCPU at a guest's entry point. FPU and SSE are in their initial state.
    ///
    /// # Errors
    /// If KVM refuses the state.
    pub fn set_entry(&mut self, entry: &EntryState) -> Result<(), CpuError> {
        let mut sregs = self.vcpu.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        entry::apply(entry, &mut sregs);
        self.vcpu
            .set_sregs(&sregs)
            .map_err(kvm_error("setting the entry state (KVM_SET_SREGS)"))?;
        FpuState::initial().set(&self.vcpu)?;
        self.run.set_cr8(0);
        self.set_registers(&entry.registers)
    }

    /// KVM_RUN, nothing else.
    fn kvm_run(&self) -> Result<Returned, CpuError> {
        // SAFETY: KVM_RUN takes no argument; it writes to the mapped kvm_run page, into which no reference exists now.
        let result = unsafe { ioctl(&self.vcpu, KVM_RUN()) };
        if result >= 0 {
            return Ok(Returned::Exit);
        }
        let source = std::io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Ok(Returned::Interrupted),
            _ => Err(CpuError::Call {
                call: "running the vCPU (KVM_RUN)",
                source,
            }),
        }
    }

    /// Enters the guest unless a kick is waiting, which it answers.
    fn enter(&mut self) -> Result<Returned, CpuError> {
        self.run.set_window_request(self.window_wanted);
        let guard = self.kick.enter(self.run.immediate_exit());
        if self.kick.take() {
            return Ok(Returned::Interrupted);
        }
        let returned = self.kvm_run();
        drop(guard);
        let returned = returned?;
        if returned == Returned::Interrupted {
            self.kick.take();
            (self.access, self.completion) = (ExitData::None, Completion::Done);
        }
        self.note_return();
        Ok(returned)
    }

    fn note_return(&mut self) {
        self.has_run = true;
        self.gate = Gate {
            interrupt_flag: self.run.interrupt_flag(),
            ready: self.run.ready_for_interrupt(),
        };
    }

    /// Takes an exit out of the page. A step that nobody asked for is unknown to this program.
    fn take_exit(&mut self) -> Exit {
        match self.run.decode() {
            Decoded::Exit(exit, access) => self.note_exit(exit, access),
            Decoded::SingleStep => Exit::Terminal(Terminal::Unknown { reason: KVM_EXIT_DEBUG }),
        }
    }

    fn note_exit(&mut self, exit: Exit, access: ExitData) -> Exit {
        self.access = access;
        let pending = access != ExitData::None || exit == Exit::Hypercall;
        self.completion = if pending { Completion::Pending } else { Completion::Done };
        exit
    }

    fn assert_completed(&self) {
        debug_assert_eq!(self.completion, Completion::Done, "complete the exit first");
    }
}

impl Cpu for KvmCpu {
    type State = KvmState;

    fn run(&mut self) -> Result<Exit, CpuError> {
        loop {
            if self.enter()? == Returned::Interrupted {
                return Ok(Exit::Interrupted);
            }
            let exit = self.take_exit();
            if exit != Exit::IrqWindow || self.delivery != DeliveryMode::WindowStiStep || !self.is_behind_sti() {
                return Ok(exit);
            }
            if let Some(exit) = self.step_out_of_shadow()? {
                return Ok(exit);
            }
        }
    }

    fn complete(&mut self) -> Result<Option<Exit>, CpuError> {
        if self.completion == Completion::Done {
            return Ok(None);
        }
        self.run.set_immediate_exit(true);
        let returned = self.kvm_run();
        self.run.set_immediate_exit(false);
        let returned = returned?;
        self.note_return();
        match returned {
            Returned::Exit => Ok(Some(self.take_exit())),
            Returned::Interrupted => {
                (self.access, self.completion) = (ExitData::None, Completion::Done);
                Ok(None)
            }
        }
    }

    fn data(&mut self) -> &mut [u8] {
        self.run.data(self.access)
    }

    fn refuse_msr(&mut self) {
        debug_assert_eq!(self.access, ExitData::Msr, "no MSR exit to refuse");
        self.run.refuse_msr();
    }

    fn registers(&self) -> RegisterFile {
        entry::register_file(self.run.registers())
    }

    fn set_registers(&mut self, registers: &RegisterFile) -> Result<(), CpuError> {
        self.assert_completed();
        let regs = entry::kvm_registers(registers);
        self.vcpu
            .set_regs(&regs)
            .map_err(kvm_error("setting registers (KVM_SET_REGS)"))?;
        self.run.show_registers(&regs);
        self.gate.interrupt_flag = regs.rflags & INTERRUPT_FLAG != 0;
        Ok(())
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let translation = self.vcpu.translate_gva(linear).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    fn return_to_user(&mut self, registers: &RegisterFile, frame: &UserFrame) -> Result<(), CpuError> {
        self.assert_completed();
        let mut sregs = state::special(&self.vcpu, self.task_register)?;
        entry::enter_user_mode(&mut sregs, frame);
        self.vcpu
            .set_sregs(&sregs)
            .map_err(kvm_error("returning to user mode (KVM_SET_SREGS)"))?;
        self.set_registers(&entry::with_frame(registers, frame))
    }

    fn can_interrupt(&self) -> bool {
        self.gate.is_open()
    }

    fn interrupt_flag(&self) -> bool {
        self.gate.interrupt_flag
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), CpuError> {
        self.assert_completed();
        debug_assert!(self.can_interrupt(), "KVM would inject even with IF = 0");
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: KVM_INTERRUPT reads one kvm_interrupt and writes nothing.
        if unsafe { ioctl_with_ref(&self.vcpu, KVM_INTERRUPT(), &interrupt) } < 0 {
            let source = std::io::Error::last_os_error();
            return Err(CpuError::Call {
                call: "queueing an interrupt (KVM_INTERRUPT)",
                source,
            });
        }
        // A second one would overwrite the first.
        self.gate.ready = false;
        Ok(())
    }

    fn request_window(&mut self, wanted: bool) {
        self.window_wanted = wanted && self.delivery != DeliveryMode::None;
    }

    fn at_clean_boundary(&mut self) -> Result<bool, CpuError> {
        self.assert_completed();
        Ok(self.gate.interrupt_flag
            && state::is_clean_boundary(self.run.registers().rflags, &state::events(&self.vcpu)?))
    }

    fn program(&self) -> Result<Option<u64>, CpuError> {
        let sregs = self.vcpu.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        Ok((sregs.ss.dpl == 3).then_some(sregs.cr3))
    }

    fn save(&mut self) -> Result<KvmState, CpuError> {
        self.assert_completed();
        KvmState::save(&self.vcpu, self.run.registers(), &self.msrs, self.task_register)
    }

    fn restore(&mut self, state: &KvmState) -> Result<(), CpuError> {
        self.assert_completed();
        if self.has_run {
            if self.page_tables == PageTableRefresh::ReplaceSlots {
                self.vm.replace_slots()?;
            }
            state.reset_mmu(&self.vcpu)?;
        }
        state.restore(&self.vcpu)?;
        self.run.show_registers(state.registers());
        self.run.set_cr8(state.cr8());
        let interrupt_flag = state.registers().rflags & INTERRUPT_FLAG != 0;
        self.gate = Gate {
            interrupt_flag,
            ready: state.is_clean_boundary(),
        };
        self.window_wanted = false;
        Ok(())
    }

    fn dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), CpuError> {
        self.vm.dirty(pages)
    }

    fn forget_dirty(&mut self, pages: &[u64]) -> Result<(), CpuError> {
        self.vm.forget(pages)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }
}
