//! The seam between the machine and whatever executes a guest's instructions.
//!
//! [`Cpu`] is one virtual CPU together with what its virtual machine does for it (dirty log, memory slots). The crate
//! `ftvm-kvm` implements it on /dev/kvm; [`scripted`] implements it on a small program, for tests and the simulator.
//! Everything above counts exits and never sees an ioctl. Which exits have a number, and when an exit must be
//! completed, is said at the methods; why it is so, in KVM-FACTS.

#![deny(unsafe_code)]

pub mod entry;
#[cfg(test)]
mod golden_errors;
pub mod profile;
pub mod scripted;
pub mod sequence;

use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use ftvm_schema::entry::RegisterFile;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of a guest page, and the same as a power of two.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
pub const PAGE_SHIFT: u32 = 12;

/// RFLAGS.IF: the guest takes interrupts.
pub const INTERRUPT_FLAG: u64 = 1 << 9;

/// What [`INTERRUPT_FLAG`] is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    Off,
    On,
}

/// Guest RAM with a dirty bitmap for what the host writes; what the vCPU writes is told by [`Cpu::dirty`].
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// Why `Cpu::run` came back. All but [`Exit::Interrupted`] and [`Exit::Terminal`] have a number: the guest caused them,
/// and can go on. Data of port and MMIO accesses is read and answered through [`Cpu::data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `in`: `count` items of `size` bytes are to be supplied. One exit, one number, whatever `count` says.
    PortRead { port: u16, size: u8, count: u32 },
    /// `out`.
    PortWrite { port: u16, size: u8, count: u32 },
    /// A fragment of a load from an address without RAM.
    MmioRead { addr: u64, len: u8 },
    /// A fragment of a store.
    MmioWrite { addr: u64, len: u8 },
    /// HLT. KVM walks past it at the next run: being halted is the machine's state, not KVM's.
    Hlt,
    /// RDMSR that the MSR filter sent here; the answer is 8 bytes in `data`, or `Cpu::refuse_msr`.
    ReadMsr { index: u32 },
    /// WRMSR that the MSR filter sent here: accepted, unless `Cpu::refuse_msr` is called.
    WriteMsr { index: u32, value: u64 },
    /// The requested interrupt window opened.
    IrqWindow,
    /// CR8 was written.
    SetTpr,
    /// A hypercall.
    Hypercall,
    /// The guest did not cause this return (signal, `immediate_exit`): it has no number.
    Interrupted,
    /// The guest cannot go on.
    Terminal(Terminal),
}

/// An end of the guest that it brought about itself. Deterministic: a backup would meet it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// Triple fault.
    Shutdown,
    /// KVM_EXIT_SYSTEM_EVENT with its type.
    SystemEvent { kind: u32 },
    /// KVM could not emulate an instruction; its bytes if KVM told them (`len` of them).
    InternalError { suberror: u32, len: u8, bytes: [u8; 15] },
    /// The CPU refused to enter the guest.
    FailEntry { reason: u64 },
    /// A reason this program does not know.
    Unknown { reason: u32 },
}

/// Makes a running vCPU return [`Exit::Interrupted`] soon, from any thread.
pub trait Kick: Send + Sync + Debug {
    fn kick(&self);
}

/// How an interrupt that finds the guest not ready gets in (KVM-FACTS, "What stock KVM cannot do").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// Window exits are not exact here: the interrupt waits for the next exit with IF = 1, or for the patience to run
    /// out.
    None,
    /// The interrupt window opens at the same instruction every time.
    Window,
    /// As `Window`, after one single step where the window opened right behind `sti`.
    WindowStiStep,
}

impl DeliveryMode {
    /// The mode's name, as users and the handshake see it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeliveryMode::None => "none",
            DeliveryMode::Window => "window",
            DeliveryMode::WindowStiStep => "window+sti-step",
        }
    }
}

/// Why the hypervisor cannot do what it is told. The texts are for the user.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A system call of the hypervisor failed.
    #[error("{call}: {source}")]
    Call {
        /// What was tried, with the call's name.
        call: &'static str,
        source: std::io::Error,
    },
    /// This host, or this implementation of [`Cpu`], cannot do what is asked of it; the error inside is its own.
    #[error(transparent)]
    Unsupported(Box<dyn Error + Send + Sync>),
}

impl CpuError {
    /// Wraps the error of an implementation.
    pub fn unsupported(error: impl Error + Send + Sync + 'static) -> Self {
        CpuError::Unsupported(Box::new(error))
    }
}

/// What the CPU pushes at an interrupt or exception in user mode, and IRET takes back (SDM volume 3, 6.14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFrame {
    pub rip: u64,
    pub cs: u16,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
}

/// One virtual CPU and its virtual machine. Owned by one thread at a time.
///
/// Order that callers keep (KVM-FACTS, "Rules that follow"): after an exit is handled and its data answered, call
/// `complete` before `save`, `restore`, `interrupt` or `set_registers`; it may yield the next numbered exit, which is
/// handled like any other. At most one `interrupt` between two `run`s.
pub trait Cpu: Send + Debug {
    /// Everything about the vCPU but RAM.
    type State: Serialize + DeserializeOwned + Clone + Debug + PartialEq + Send;

    /// Enters the guest until its next exit.
    fn run(&mut self) -> Result<Exit, CpuError>;

    /// Finishes the pending port, MMIO or MSR access without executing anything further. `Some` is the next numbered
    /// exit that finishing it produced (read-modify-write on MMIO, a store across a page); call again after handling
    /// it.
    fn complete(&mut self) -> Result<Option<Exit>, CpuError>;

    /// Bytes of the current port or MMIO access: to be read at a write, to be filled at a read (8 bytes at `ReadMsr`).
    fn data(&mut self) -> &mut [u8];

    /// Answers the current MSR exit with #GP.
    fn refuse_msr(&mut self);

    /// General registers as of the last exit (free with KVM_CAP_SYNC_REGS). See [`REGISTER_NAMES`] for the order.
    ///
    /// [`REGISTER_NAMES`]: ftvm_schema::entry::REGISTER_NAMES
    fn registers(&self) -> RegisterFile;

    /// Sets the general registers; only after `complete`.
    fn set_registers(&mut self, registers: &RegisterFile) -> Result<(), CpuError>;

    /// The guest-physical address of a linear address under the current page tables; `None` where nothing is mapped.
    fn translate(&self, linear: u64) -> Option<u64>;

    /// Does what IRET from CPL 0 does with `frame`, the other registers being `registers`; only after `complete`. Flat
    /// user segments are assumed, as every 64-bit kernel has them.
    fn return_to_user(&mut self, registers: &RegisterFile, frame: &UserFrame) -> Result<(), CpuError>;

    /// Whether an interrupt may be queued now: IF = 1, and KVM is ready for one (both, KVM does not check IF).
    fn can_interrupt(&self) -> bool;

    /// IF as of the last exit.
    fn interrupt_flag(&self) -> bool;

    /// Queues an external interrupt for the next `run`.
    fn interrupt(&mut self, vector: u8) -> Result<(), CpuError>;

    /// Asks for [`Exit::IrqWindow`]; changed only at numbered exits. Without effect in [`DeliveryMode::None`].
    fn request_window(&mut self, wanted: bool);

    /// Whether the state right now, after a kick and `complete`, may carry a micro-checkpoint: IF = 1, no interrupt
    /// shadow, no event injected or pending.
    fn at_clean_boundary(&mut self) -> Result<bool, CpuError>;

    /// Which program was running when the vCPU was last left: its address space (CR3) if that was at CPL 3, `None` at
    /// CPL 0. The patience learns by it how often a program exits; nothing that is replayed depends on it.
    fn program(&self) -> Result<Option<u64>, CpuError>;

    /// Saves the vCPU; only after `complete`.
    fn save(&mut self) -> Result<Self::State, CpuError>;

    /// Restores the vCPU; only after `complete` where it has run before. Also makes the vCPU see page tables that the
    /// host has written since it last ran (KVM-FACTS, "State into a VM that has already run").
    fn restore(&mut self, state: &Self::State) -> Result<(), CpuError>;

    /// Guest frame numbers of pages the vCPU has written since they were last forgotten, ascending; a superset is
    /// allowed. Fills `pages` (cleared first). The host's own writes are in the memory's bitmap, not here.
    fn dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), CpuError>;

    /// Forgets that `pages`, ascending, were written. The vCPU's next write to each of them costs a fault; a page that
    /// is not forgotten stays dirty, and costs nothing.
    fn forget_dirty(&mut self, pages: &[u64]) -> Result<(), CpuError>;

    /// [`Cpu::dirty`], and forgets all of it.
    fn harvest_dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), CpuError> {
        self.dirty(pages)?;
        self.forget_dirty(pages)
    }

    /// A handle to interrupt `run` from other threads.
    fn kicker(&self) -> Arc<dyn Kick>;
}
