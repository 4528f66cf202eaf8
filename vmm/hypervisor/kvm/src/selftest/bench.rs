//! A tiny guest on a vCPU that is kicked all the time.
//!
//! A quiet test proves little: a window that is exact without kicks may open elsewhere after one. The kicks also see to
//! it that no check hangs: a guest that does not exit in time is an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ftvm_schema::entry::register::RIP;

use super::guest::{ArgumentRegisters, Interrupts, Privilege, TinyGuest};
use super::programs::TinyProgram;
use crate::KvmCpu;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::sequence::Sequence;
use ftvm_hypervisor::{Cpu, CpuError, Exit, Kick};

/// Microseconds between two kicks: often enough to meet a guest anywhere, rarely enough that a slow host (a kick takes
/// up to 7.5 ms under emulation, KVM-FACTS, "Costs") gets on between them.
const SHORTEST_PAUSE: u64 = 200;
const PAUSE_SPREAD: u64 = 4000;
/// No program here computes longer between two exits, even on a software KVM on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tiny guest that does not do what its program says: this host's KVM executes it wrongly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestGuestError {
    #[error("a test guest hangs at {rip:#x}: {PATIENCE:?} without an exit")]
    Hangs { rip: u64 },
    #[error("a test guest should write to port {port:#x}, but did {found:x?} at {rip:#x}")]
    Astray {
        /// The port that it should write to.
        port: u16,
        found: Exit,
        rip: u64,
    },
}

/// A thread that kicks a vCPU at random intervals until dropped.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Storm {
    #[must_use]
    pub fn on(kicker: Arc<dyn Kick>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut pauses = Sequence::new(1);
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_micros(SHORTEST_PAUSE + pauses.below(PAUSE_SPREAD)));
                kicker.kick();
            }
        });
        Storm {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the kicking thread cannot panic");
        }
    }
}

/// A guest, its vCPU, and the kicks.
#[derive(Debug)]
pub struct VcpuBench {
    pub guest: TinyGuest,
    pub cpu: KvmCpu,
    _storm: Storm,
}

impl VcpuBench {
    /// A bench with `ram` bytes of guest memory.
    ///
    /// # Errors
    /// As [`KvmCpu::new`].
    pub fn new(ram: usize, profile: &CpuProfile) -> Result<Self, CpuError> {
        let guest = TinyGuest::new(ram);
        let cpu = KvmCpu::new(&guest.memory, profile)?;
        let storm = Storm::on(cpu.kicker());
        Ok(VcpuBench {
            guest,
            cpu,
            _storm: storm,
        })
    }

    /// Puts the vCPU at the start of `program`, interrupts off.
    ///
    /// # Errors
    /// If KVM refuses the state.
    pub fn start(
        &mut self,
        program: TinyProgram,
        privilege: Privilege,
        arguments: ArgumentRegisters,
    ) -> Result<(), CpuError> {
        self.start_with(program, privilege, Interrupts::Off, arguments)
    }

    /// As [`VcpuBench::start`], with interrupts as told.
    ///
    /// # Errors
    /// If KVM refuses the state.
    pub fn start_with(
        &mut self,
        program: TinyProgram,
        privilege: Privilege,
        interrupts: Interrupts,
        arguments: ArgumentRegisters,
    ) -> Result<(), CpuError> {
        // The previous program may have stopped at an exit; its answer no longer matters.
        while self.cpu.complete()?.is_some() {}
        self.guest.free_task_segment();
        self.cpu
            .set_entry(&TinyGuest::entry(program, privilege, interrupts, arguments))
    }

    /// Runs to the next exit that the guest causes, through all kicks.
    ///
    /// # Errors
    /// If the guest does not exit in time, or KVM fails.
    pub fn next_exit(&mut self) -> Result<Exit, CpuError> {
        let started = Instant::now();
        loop {
            let exit = self.cpu.run()?;
            if exit != Exit::Interrupted {
                return Ok(exit);
            }
            if started.elapsed() > PATIENCE {
                let rip = self.cpu.registers()[RIP];
                return Err(CpuError::unsupported(TestGuestError::Hangs { rip }));
            }
        }
    }

    /// As [`VcpuBench::next_exit`], where only a write to `port` is right.
    ///
    /// # Errors
    /// Says which exit came instead.
    pub fn expect_out(&mut self, port: u16) -> Result<(), CpuError> {
        match self.next_exit()? {
            Exit::PortWrite { port: found, .. } if found == port => Ok(()),
            found => {
                let rip = self.cpu.registers()[RIP];
                Err(CpuError::unsupported(TestGuestError::Astray { port, found, rip }))
            }
        }
    }

    /// Runs until a kick comes, or an exit before that. A kick that was already waiting does not count: it comes back
    /// before the guest has done anything.
    ///
    /// # Errors
    /// If KVM fails.
    pub fn run_to_kick(&mut self) -> Result<Exit, CpuError> {
        let mut exit = self.cpu.run()?;
        if exit == Exit::Interrupted {
            exit = self.cpu.run()?;
        }
        Ok(exit)
    }
}
