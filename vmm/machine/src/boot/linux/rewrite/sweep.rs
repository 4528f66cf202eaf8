//! Real instructions, told apart from bytes that only look like them.
//!
//! The sections with instructions are decoded from their beginning, as a disassembler does: objtool lets no data stand
//! between a distribution kernel's functions. What is to be rewritten is decoded a second time from the symbol in front
//! of it, and both must agree; where they do not, the kernel is refused rather than damaged.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::super::vmlinux::{Layout, Section};
use super::kallsyms::Symbols;

/// A symbol further away says nothing about where instructions begin.
const MAX_DISTANCE: u64 = 1 << 20;

/// Decodes a section from its beginning.
pub(super) fn section<'a>(image: &'a [u8], section: &Section) -> Decoder<'a> {
    from(image, section, section.virt)
}

/// Decodes a section from `address`, which is in it.
fn from<'a>(image: &'a [u8], section: &Section, address: u64) -> Decoder<'a> {
    let begin = section.offset(address).unwrap_or(section.file.end);
    let bytes = &image[begin..section.file.end];
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE)
}

/// Decodes at most `limit` instructions from `address` on, not beyond its section; none if it is in no section with
/// instructions.
pub(super) fn at(image: &[u8], layout: &Layout, address: u64, limit: usize) -> Vec<Instruction> {
    let section = layout.executable().find(|section| section.offset(address).is_some());
    section.map_or_else(Vec::new, |section| {
        from(image, section, address).into_iter().take(limit).collect()
    })
}

/// Decodes the function that `symbol` names, up to the next symbol.
pub(super) fn function(image: &[u8], layout: &Layout, symbols: &Symbols, symbol: u64) -> Vec<Instruction> {
    let end = symbols.next_above(symbol).unwrap_or(u64::MAX);
    let limit = usize::try_from(end.saturating_sub(symbol).min(MAX_DISTANCE)).unwrap_or(usize::MAX);
    let mut found = at(image, layout, symbol, limit);
    found.retain(|instruction| instruction.ip() < end);
    found
}

/// What decoding from the symbol in front of an address says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// An instruction begins there.
    Begins,
    /// It lies inside an instruction.
    Inside,
    /// No symbol in the same section is near.
    Unknown,
}

/// Whether an instruction begins at `address`, by decoding from its symbol.
pub(super) fn boundary(image: &[u8], place: &Section, symbols: &Symbols, address: u64) -> Boundary {
    let Some(symbol) = symbols.at(address) else {
        return Boundary::Unknown;
    };
    if place.offset(symbol.address).is_none() || address - symbol.address > MAX_DISTANCE {
        return Boundary::Unknown;
    }
    let mut decoder = from(image, place, symbol.address);
    while decoder.can_decode() && decoder.ip() < address {
        let _ = decoder.decode();
    }
    if decoder.ip() == address {
        Boundary::Begins
    } else {
        Boundary::Inside
    }
}
