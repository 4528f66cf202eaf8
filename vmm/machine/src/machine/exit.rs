//! What an exit means for the guest's history: its part in the running digest, and the guest's end in words.

use ftvm_schema::entry::register::{RAX, RFLAGS, RIP};
use ftvm_schema::entry::{Digest, EndReason, RegisterFile};

use ftvm_hypervisor::{Exit, Terminal};

/// RFLAGS bits that differ between hosts without meaning: RF (16) and IOPL (12, 13).
const RFLAGS_IGNORED: u64 = (1 << 16) | (3 << 12);

/// Folds an exit and the registers at it. RIP is left out at OUT and the destination at IN: hosts report them
/// differently before completion (PROTOCOL 5).
pub(super) fn fold_exit(digest: &mut Digest, exit: Exit, registers: &RegisterFile) {
    let (kind, detail) = match exit {
        Exit::PortRead { port, size, count } => (1, u64::from(port) | u64::from(size) << 16 | u64::from(count) << 32),
        Exit::PortWrite { port, size, count } => (2, u64::from(port) | u64::from(size) << 16 | u64::from(count) << 32),
        Exit::MmioRead { addr, len } => (3, addr ^ u64::from(len) << 56),
        Exit::MmioWrite { addr, len } => (4, addr ^ u64::from(len) << 56),
        Exit::Hlt => (5, 0),
        Exit::ReadMsr { index } => (6, u64::from(index)),
        Exit::WriteMsr { index, value } => (7, u64::from(index) ^ value.rotate_left(32)),
        Exit::IrqWindow => (8, 0),
        Exit::SetTpr => (9, 0),
        Exit::Hypercall => (10, 0),
        Exit::Interrupted | Exit::Terminal(_) => (0, 0),
    };
    digest.fold(kind << 60 | detail);
    for (index, value) in registers.iter().enumerate() {
        let ignored = match index {
            RAX => matches!(exit, Exit::PortRead { .. }),
            RIP => matches!(exit, Exit::PortWrite { .. }),
            _ => false,
        };
        if !ignored {
            digest.fold(if index == RFLAGS {
                value & !RFLAGS_IGNORED
            } else {
                *value
            });
        }
    }
}

pub(super) fn terminal_reason(terminal: Terminal, registers: &RegisterFile) -> EndReason {
    let rip = registers[RIP];
    let what = match terminal {
        Terminal::Shutdown => format!("triple fault at RIP {rip:#x}"),
        Terminal::SystemEvent { kind } => format!("KVM system event {kind} at RIP {rip:#x}"),
        Terminal::InternalError { suberror, len, bytes } => {
            let shown = bytes
                .iter()
                .take(usize::from(len))
                .map(|b| format!("{b:02x}"))
                .collect::<Vec<_>>()
                .join(" ");
            format!("KVM internal error {suberror} at RIP {rip:#x}, instruction bytes: {shown}")
        }
        Terminal::FailEntry { reason } => format!("KVM could not enter the guest: hardware reason {reason:#x}"),
        Terminal::Unknown { reason } => format!("KVM exit reason {reason}, unknown to ftvm, at RIP {rip:#x}"),
    };
    EndReason::GuestFailure { what }
}
