//! [`Cpu`](ftvm_hypervisor::Cpu) on /dev/kvm, and what a host's KVM can be trusted with.
//!
//! | module | what it is |
//! |---|---|
//! | [`KvmCpu`] | a vCPU with its virtual machine, memory slots and dirty log |
//! | [`profile`] | the CPU that guests see, from what this host's KVM offers |
//! | [`selftest`] | what this host's KVM does, tried out on tiny guests |
//! | [`doctor`] | the same as a table for the user |
//!
//! The rules that [`KvmCpu`] keeps are those of KVM-FACTS, "Rules that follow": an exit is completed by KVM_RUN with
//! `immediate_exit` until it returns EINTR, and whatever it returns before that is the next numbered exit; a return
//! that the guest did not cause has no number; interrupts are queued only where IF and KVM both allow it; state is set
//! only after completion.

pub mod doctor;
mod entry;
#[cfg(test)]
mod golden_errors;
mod ioctl;
mod kick;
mod msr;
pub mod profile;
mod run_page;
pub mod selftest;
mod state;
mod system;
mod vcpu;
mod vm;

pub use state::KvmState;
pub use vcpu::{KvmCpu, PageTableRefresh};
