//! The `kvm_run` page that a vCPU shares with the kernel, and what its exit union says.
//!
//! kvm-ioctls decodes exits too, but hides size and count of a port read (`inl` looks like `rep insb` x 4) and has no
//! setter for the window request, so this module maps the page itself. The kernel writes to it only inside KVM_RUN,
//! when no reference into it exists; the one exception, `immediate_exit`, is only touched as an atomic.

use std::fmt;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYNC_X86_REGS, kvm_regs, kvm_run,
};
use kvm_ioctls::VcpuFd;

use ftvm_hypervisor::{CpuError, Exit, Terminal};

/// Where the page has the bytes of the access that caused an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitData {
    /// The exit carries no data.
    None,
    /// `len` bytes at `offset` from the start of the page.
    Port { offset: usize, len: usize },
    /// `len` bytes of the MMIO buffer.
    Mmio { len: usize },
    /// The 8 bytes of an MSR.
    Msr,
}

/// What KVM_RUN left in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// An exit as the seam knows it.
    Exit(Exit, ExitData),
    /// The single step that this layer asked for is done.
    SingleStep,
}

/// The mapped page (and the pages of port data behind it).
pub(super) struct RunPage {
    page: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and is valid in every thread of the process.
unsafe impl Send for RunPage {}

impl fmt::Debug for RunPage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RunPage")
            .field("exit_reason", &self.run().exit_reason)
            .finish_non_exhaustive()
    }
}

impl RunPage {
    /// Maps `len` bytes (KVM_GET_VCPU_MMAP_SIZE) of `vcpu` and asks for general registers at every exit.
    pub(super) fn map(vcpu: &VcpuFd, len: usize) -> Result<Self, CpuError> {
        let failed = |source| CpuError::Call {
            call: "mapping kvm_run",
            source,
        };
        if len < size_of::<kvm_run>() {
            return Err(failed(std::io::Error::other(format!("KVM offers {len} bytes only"))));
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a fresh mapping at an address the kernel chooses cannot clash with any Rust object.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, vcpu.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(failed(std::io::Error::last_os_error()));
        }
        let page = NonNull::new(address.cast::<kvm_run>()).expect("mmap never returns null without MAP_FIXED");
        let mut mapped = RunPage { page, len };
        mapped.run_mut().kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS);
        Ok(mapped)
    }

    fn run(&self) -> &kvm_run {
        // SAFETY: the mapping is at least as long as kvm_run and lives as long as self; the kernel does not write now.
        unsafe { self.page.as_ref() }
    }

    fn run_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as in `run`, and `&mut self` makes the reference unique.
        unsafe { self.page.as_mut() }
    }

    /// The byte that makes KVM_RUN return instead of entering the guest.
    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field lies within the mapping; all accesses to it in this process are atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.page.as_ptr()).immediate_exit) }
    }

    pub(super) fn set_immediate_exit(&self, wanted: bool) {
        self.immediate_exit().store(u8::from(wanted), Ordering::Relaxed);
    }

    pub(super) fn set_window_request(&mut self, wanted: bool) {
        self.run_mut().request_interrupt_window = u8::from(wanted);
    }

    /// KVM_RUN loads CR8 from here when there is no in-kernel APIC.
    pub(super) fn set_cr8(&mut self, cr8: u64) {
        self.run_mut().cr8 = cr8;
    }

    /// RFLAGS.IF as of the last return of KVM_RUN.
    pub(super) fn interrupt_flag(&self) -> bool {
        self.run().if_flag != 0
    }

    /// Whether KVM would take an interrupt; it does not look at IF everywhere, so callers do.
    pub(super) fn ready_for_interrupt(&self) -> bool {
        self.run().ready_for_interrupt_injection != 0
    }

    /// General registers as of the last return of KVM_RUN.
    pub(super) fn registers(&self) -> &kvm_regs {
        // SAFETY: kvm_valid_regs asks for nothing but general registers, and any bytes are a valid kvm_regs.
        unsafe { &self.run().s.regs.regs }
    }

    /// Makes `registers` what [`RunPage::registers`] shows; the vCPU itself is set by KVM_SET_REGS.
    pub(super) fn show_registers(&mut self, registers: &kvm_regs) {
        self.run_mut().s.regs.regs = *registers;
    }

    /// Answers the current MSR exit with #GP.
    pub(super) fn refuse_msr(&mut self) {
        self.run_mut().__bindgen_anon_1.msr.error = 1;
    }

    /// The bytes of the access that [`RunPage::decode`] described.
    pub(super) fn data(&mut self, access: ExitData) -> &mut [u8] {
        match access {
            ExitData::None => &mut [],
            ExitData::Port { offset, len } => {
                assert!(offset + len <= self.len, "port data outside of kvm_run");
                // SAFETY: checked above to lie inside the mapping, which `&mut self` borrows alone.
                unsafe { std::slice::from_raw_parts_mut(self.page.as_ptr().cast::<u8>().add(offset), len) }
            }
            // SAFETY: any bytes are a valid [u8; 8]; `len` is at most 8 by `decode`.
            ExitData::Mmio { len } => unsafe { &mut self.run_mut().__bindgen_anon_1.mmio.data[..len] },
            ExitData::Msr => {
                // SAFETY: a u64 is 8 bytes without padding, borrowed through `&mut self`.
                unsafe { &mut *(&raw mut self.run_mut().__bindgen_anon_1.msr.data).cast::<[u8; 8]>() }
            }
        }
    }

    /// Digests the exit that KVM_RUN just reported.
    pub(super) fn decode(&self) -> Decoded {
        let run = self.run();
        let exit = match run.exit_reason {
            KVM_EXIT_IO => return self.decode_port(),
            KVM_EXIT_MMIO => return self.decode_mmio(),
            KVM_EXIT_X86_RDMSR => {
                // SAFETY: exit_reason says that `msr` is the valid member; its fields are plain integers.
                let index = unsafe { run.__bindgen_anon_1.msr.index };
                return Decoded::Exit(Exit::ReadMsr { index }, ExitData::Msr);
            }
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: as above.
                let msr = unsafe { run.__bindgen_anon_1.msr };
                return Decoded::Exit(
                    Exit::WriteMsr {
                        index: msr.index,
                        value: msr.data,
                    },
                    ExitData::Msr,
                );
            }
            KVM_EXIT_DEBUG => return Decoded::SingleStep,
            KVM_EXIT_HLT => Exit::Hlt,
            KVM_EXIT_IRQ_WINDOW_OPEN => Exit::IrqWindow,
            KVM_EXIT_SET_TPR => Exit::SetTpr,
            KVM_EXIT_HYPERCALL => Exit::Hypercall,
            KVM_EXIT_INTR => Exit::Interrupted,
            KVM_EXIT_SHUTDOWN => Exit::Terminal(Terminal::Shutdown),
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: exit_reason says that `system_event` is the valid member.
                let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
                Exit::Terminal(Terminal::SystemEvent { kind })
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: exit_reason says that `fail_entry` is the valid member.
                let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Exit::Terminal(Terminal::FailEntry { reason })
            }
            KVM_EXIT_INTERNAL_ERROR => Exit::Terminal(self.internal_error()),
            reason => Exit::Terminal(Terminal::Unknown { reason }),
        };
        Decoded::Exit(exit, ExitData::None)
    }

    fn decode_port(&self) -> Decoded {
        // SAFETY: exit_reason says that `io` is the valid member; its fields are plain integers.
        let io = unsafe { self.run().__bindgen_anon_1.io };
        let (port, size, count) = (io.port, io.size, io.count);
        let exit = if u32::from(io.direction) == KVM_EXIT_IO_OUT {
            Exit::PortWrite { port, size, count }
        } else {
            Exit::PortRead { port, size, count }
        };
        let len = usize::try_from(count)
            .unwrap_or(usize::MAX)
            .saturating_mul(usize::from(size));
        let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        Decoded::Exit(exit, ExitData::Port { offset, len })
    }

    fn decode_mmio(&self) -> Decoded {
        // SAFETY: exit_reason says that `mmio` is the valid member; its fields are plain integers.
        let mmio = unsafe { self.run().__bindgen_anon_1.mmio };
        let len = u8::try_from(mmio.len.min(8)).expect("at most 8");
        let exit = if mmio.is_write != 0 {
            Exit::MmioWrite {
                addr: mmio.phys_addr,
                len,
            }
        } else {
            Exit::MmioRead {
                addr: mmio.phys_addr,
                len,
            }
        };
        Decoded::Exit(exit, ExitData::Mmio { len: usize::from(len) })
    }

    fn internal_error(&self) -> Terminal {
        // SAFETY: exit_reason says that `internal` is the valid member; `emulation_failure` overlays its data words.
        let (internal, failure) = unsafe {
            (
                self.run().__bindgen_anon_1.internal,
                self.run().__bindgen_anon_1.emulation_failure,
            )
        };
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        // Older kernels report no data, newer ones flags, then length and bytes of the instruction (3 words).
        let told =
            internal.suberror == KVM_INTERNAL_ERROR_EMULATION && internal.ndata >= 3 && failure.flags & flag != 0;
        // SAFETY: plain bytes, valid whatever they are.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let (len, bytes) = if told {
            (instruction.insn_size.min(15), instruction.insn_bytes)
        } else {
            (0, [0; 15])
        };
        Terminal::InternalError {
            suberror: internal.suberror,
            len,
            bytes,
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference into it outlives self.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.len) };
    }
}
