//! The kernel's #GP entry begins with `out GP_HOOK_PORT, al`: the machine sees faults of user programs' RDTSC first.
//!
//! The entry is found through the gates that the kernel puts into its IDT (`def_idts`, arch/x86/kernel/idt.c). It
//! begins with ENDBR64 (CONFIG_X86_KERNEL_IBT) or not, and then three bytes for CLAC, which stay NOPs while SMAP is
//! hidden.

use super::super::vmlinux::Layout;
use super::kallsyms::Symbols;
use super::tsc::{OUT, immediate};
use super::{Patch, Purpose, RewriteError};
use crate::machine::linux::GP_HOOK_PORT;

/// `struct idt_data` for #GP: vector 13, segment __KERNEL_CS, a present interrupt gate of DPL 0 without IST; the
/// handler's address follows.
const GATE: [u8; 16] = [13, 0, 0, 0, 0x10, 0, 0, 0, 0x00, 0x8e, 0, 0, 0, 0, 0, 0];

/// The entry's name.
const ENTRY: &str = "asm_exc_general_protection";

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Room for CLAC: as the assembler leaves it, and as one NOP.
const ROOMS: [[u8; 3]; 2] = [[0x90; 3], [0x0f, 0x1f, 0x00]];

const HOOK: [u8; 3] = [OUT, immediate(GP_HOOK_PORT), 0x90];

/// The hook.
///
/// # Errors
/// If the entry is not found, or begins otherwise.
pub(super) fn patch(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Patch, RewriteError> {
    let missing = |why| RewriteError::Missing {
        what: "the #GP entry",
        why,
    };
    let mut gates = gates(image, layout);
    gates.dedup();
    let entry = match gates[..] {
        [entry] => entry,
        [] => return Err(missing("no interrupt gate for vector 13 is in the image".to_owned())),
        _ => {
            return Err(missing(format!(
                "{} different interrupt gates for vector 13 are in the image",
                gates.len()
            )));
        }
    };
    match symbols.address(ENTRY) {
        Some(address) if address != entry => {
            let text = format!(
                "the gate of vector 13 leads to {}, not to {ENTRY}",
                symbols.describe(entry)
            );
            return Err(missing(text));
        }
        _ => {}
    }
    let offset = layout.offset(entry).unwrap_or(image.len());
    let begins = image.get(offset..).unwrap_or_default();
    let (address, room) = match begins.strip_prefix(&ENDBR64) {
        Some(rest) => (entry + ENDBR64.len() as u64, rest),
        None => (entry, begins),
    };
    let Some(room) = ROOMS.iter().find(|room| room_fits(begins, room)) else {
        let found = crate::boot::hex(&room[..room.len().min(8)]);
        return Err(missing(format!(
            "{ENTRY} begins with {found}, room for CLAC was expected"
        )));
    };
    Patch::new(layout, Purpose::GpHook, address, room, &HOOK)
}

fn room_fits(begins: &[u8], room: &[u8; 3]) -> bool {
    begins.strip_prefix(&ENDBR64).unwrap_or(begins).starts_with(room)
}

/// Handlers of every gate for vector 13 in the image's data that lead to instructions.
fn gates(image: &[u8], layout: &Layout) -> Vec<u64> {
    let mut found = Vec::new();
    for section in layout.sections.iter().filter(|section| !section.executable) {
        let bytes = &image[section.file.clone()];
        for at in (0..bytes.len()).step_by(8) {
            let Some(gate) = bytes.get(at..at + 24).filter(|gate| gate.starts_with(&GATE)) else {
                continue;
            };
            let handler = gate[16..]
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
            if layout.executable().any(|section| section.offset(handler).is_some()) {
                found.push(handler);
            }
        }
    }
    found.sort_unstable();
    found
}
