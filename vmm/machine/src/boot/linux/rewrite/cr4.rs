//! CR4.TSD stays set, so that RDTSC faults in user programs (SDM volume 3, 2.5).
//!
//! Setting it from outside is lost to the kernel's shadow of CR4, so the kernel sets it itself: the start-up code
//! (arch/x86/kernel/head_64.S) writes the first CR4, `cpu_init` clears bits it does not want
//! (arch/x86/kernel/cpu/common.c), and prctl(PR_SET_TSC) toggles the bit for a task (arch/x86/kernel/process.c).
//! Constants change, no instruction does.

use std::collections::BTreeSet;

use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::super::vmlinux::Layout;
use super::kallsyms::Symbols;
use super::sweep::{self, Boundary};
use super::{Patch, Purpose, RewriteError};

/// CR4 bits: time-stamp disable, physical-address extension, page-global enable.
pub(in crate::boot::linux) const TSD: u64 = 1 << 2;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;

/// What `cpu_init` clears: VME, PVI, TSD, DE.
const UNWANTED: u64 = 0xf;

/// The start-up code's names, the most exact one first. All processors run through it.
const STARTUP: [&str; 3] = ["secondary_startup_64_no_verify", "secondary_startup_64", "startup_64"];

/// The write to CR4 comes within so many instructions.
const STARTUP_LENGTH: usize = 64;

/// A function's argument is loaded within so many instructions of the call.
const ARGUMENT_DISTANCE: usize = 8;

/// All patches that CR4.TSD needs.
///
/// # Errors
/// If one of the places is not found.
pub(super) fn patches(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = vec![startup(image, layout, symbols)?];
    patches.extend(cleared(image, layout, symbols)?);
    patches.extend(toggled(image, layout, symbols)?);
    Ok(patches)
}

/// One instruction's immediate: where it lies, and what it is.
fn immediate(image: &[u8], layout: &Layout, instruction: &Instruction) -> Option<(u64, u64)> {
    let offset = layout.offset(instruction.ip())?;
    let bytes = image.get(offset..offset + instruction.len())?;
    let mut decoder = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NONE);
    let again = decoder.decode();
    let constants: ConstantOffsets = decoder.get_constant_offsets(&again);
    let operand = again.op_count().checked_sub(1)?;
    constants.has_immediate().then(|| {
        (
            instruction.ip() + constants.immediate_offset() as u64,
            again.immediate(operand),
        )
    })
}

/// Rewrites the lowest byte of an immediate.
fn change(
    image: &[u8],
    layout: &Layout,
    instruction: &Instruction,
    purpose: Purpose,
    with: impl Fn(u8) -> u8,
) -> Result<Patch, RewriteError> {
    let place = immediate(image, layout, instruction).and_then(|(address, _)| Some((address, layout.offset(address)?)));
    let Some((address, offset)) = place else {
        return Err(RewriteError::Missing {
            what: "an immediate",
            why: format!("the instruction at {:#x} has none", instruction.ip()),
        });
    };
    let byte = image[offset];
    Patch::new(layout, purpose, address, &[byte], &[with(byte)])
}

/// The start-up code builds CR4 from constants: `or $(PAE|PGE), %ecx` (before Linux 6.5), or it keeps what a mask with
/// PAE lets through (`mov $(PAE|LA57), %edx` ... `and %edx, %ecx`), and then the entry state's TSD is let through too.
fn startup(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Patch, RewriteError> {
    let missing = |why: String| RewriteError::Missing {
        what: "the start-up code's CR4",
        why,
    };
    let names = STARTUP.join(", ");
    let begin = STARTUP.iter().find_map(|name| symbols.address(name));
    let begin = begin.ok_or_else(|| missing(format!("no symbol is called {names}")))?;
    let code = sweep::at(image, layout, begin, STARTUP_LENGTH);
    let write = code
        .iter()
        .position(|i| i.code() == Code::Mov_cr_r64 && i.op0_register() == Register::CR4);
    let write = write.ok_or_else(|| missing(format!("{} does not write it", symbols.describe(begin))))?;
    let source = code[write].op1_register().full_register32();
    let built = code[..write].iter().rev().find(|instruction| {
        let sets_bits = instruction.mnemonic() == Mnemonic::Or && instruction.op0_register() == source;
        sets_bits && has(image, layout, instruction, PAE | PGE)
    });
    let masked = || {
        let and = code[..write]
            .iter()
            .rev()
            .find(|i| i.mnemonic() == Mnemonic::And && i.op0_register() == source)?;
        let mask = and.op1_register();
        code[..write]
            .iter()
            .find(|i| loads(i, mask) && has(image, layout, i, PAE))
    };
    match built.or_else(masked) {
        Some(instruction) => change(image, layout, instruction, Purpose::Cr4Startup, |byte| byte | low(TSD)),
        None => Err(missing(format!(
            "neither a constant with PAE and PGE nor a mask with PAE goes into it at {}",
            symbols.describe(code[write].ip())
        ))),
    }
}

/// The bits of CR4 that matter here are in the lowest byte.
const fn low(bits: u64) -> u8 {
    bits.to_le_bytes()[0]
}

fn has(image: &[u8], layout: &Layout, instruction: &Instruction, bits: u64) -> bool {
    immediate(image, layout, instruction).is_some_and(|(_, value)| value & bits == bits)
}

/// `mov $immediate, register`
fn loads(instruction: &Instruction, register: Register) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register32() == register
        && instruction.op1_kind() != OpKind::Register
}

/// Every constant with TSD that is handed to the functions which clear bits of CR4. `cpu_init`'s must be among them.
fn cleared(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Vec<Patch>, RewriteError> {
    // cr4_clear_bits(mask), cr4_clear_bits_irqsoff(mask) and cr4_update_irqsoff(set, clear).
    let argument = |name: &str| match name.split('.').next() {
        Some("cr4_clear_bits" | "cr4_clear_bits_irqsoff") => Some(Register::EDI),
        Some("cr4_update_irqsoff") => Some(Register::ESI),
        _ => None,
    };
    let (mut patches, mut in_cpu_init) = (Vec::new(), 0);
    for function in symbols.named(|name| argument(name).is_some()) {
        let Some(register) = argument(&function.name) else {
            continue;
        };
        for call in calls_of(image, layout, symbols, function.address) {
            let caller = symbols.at(call).map_or(call, |symbol| symbol.address);
            let code = sweep::function(image, layout, symbols, caller);
            let Some(at) = code.iter().position(|instruction| instruction.ip() == call) else {
                continue;
            };
            let before = code[..at].iter().rev().take(ARGUMENT_DISTANCE);
            let Some(load) = before.into_iter().find(|instruction| loads(instruction, register)) else {
                continue;
            };
            if has(image, layout, load, TSD) {
                in_cpu_init += usize::from(has(image, layout, load, UNWANTED));
                patches.push(change(image, layout, load, Purpose::Cr4Clear, |byte| byte & !low(TSD))?);
            }
        }
    }
    if in_cpu_init == 0 {
        return Err(RewriteError::Missing {
            what: "cpu_init's mask of CR4 bits to clear",
            why: "no call of cr4_clear_bits or cr4_update_irqsoff is given VME, PVI, TSD and DE".to_owned(),
        });
    }
    Ok(patches)
}

/// Direct calls of and jumps to `target`.
fn calls_of(image: &[u8], layout: &Layout, symbols: &Symbols, target: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for section in layout.executable() {
        let bytes = &image[section.file.clone()];
        for (offset, window) in bytes.windows(5).enumerate() {
            let [0xe8 | 0xe9, a, b, c, d] = *window else {
                continue;
            };
            let address = section.virt + offset as u64;
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            if address.wrapping_add(5).wrapping_add_signed(distance) == target
                && sweep::boundary(image, section, symbols, address) == Boundary::Begins
            {
                found.insert(address);
            }
        }
    }
    found
}

/// `__switch_to_xtra` toggles TSD (`xor $4`) for a task that asked for PR_TSC_SIGSEGV: it must toggle nothing, or the
/// tasks behind it would run without. A kernel that does it otherwise is told of in the report.
fn toggled(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = Vec::new();
    for function in symbols.named(|name| name == "__switch_to_xtra") {
        let code = sweep::function(image, layout, symbols, function.address);
        for pair in code.windows(2) {
            let toggles = pair[0].mnemonic() == Mnemonic::Xor
                && pair[0].op0_kind() == OpKind::Register
                && immediate(image, layout, &pair[0]).is_some_and(|(_, value)| value == TSD);
            let kept = pair[1].segment_prefix() == Register::GS && pair[1].op1_register() == pair[0].op0_register();
            if toggles && kept {
                patches.push(change(image, layout, &pair[0], Purpose::Cr4Toggle, |byte| {
                    byte & !low(TSD)
                })?);
            }
        }
    }
    Ok(patches)
}
