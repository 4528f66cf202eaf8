//! The instructions of one ELF file, by decoding its sections with instructions, or its executable segments where it
//! has none. Data between functions may be decoded as well: a count may be too high in a hand-written program, never
//! too low by more than what stands directly behind such data.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions};
use object::LittleEndian;
use object::elf::{EM_386, EM_X86_64, ET_REL, FileHeader32, FileHeader64, PF_X, SHF_EXECINSTR, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader as _, SectionHeader as _};
use serde::Serialize;

use super::instructions::{Consequence, Owner, judge};

/// One kind of instruction in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub file: String,
    pub owner: Owner,
    pub instruction: String,
    pub count: u64,
    /// Address of the first in the file's own terms.
    pub first: u64,
    pub verdict: Consequence,
    pub why: &'static str,
}

/// What is executable in a file: address and bytes.
type Code<'a> = Vec<(u64, &'a [u8])>;

/// Findings in the ELF file `bytes`; `None` if it is no x86 ELF file that can be read. `owner` is decided by the file
/// itself where none is given: what is relocatable is a module.
#[must_use]
pub fn elf(file: &str, bytes: &[u8], owner: Option<Owner>) -> Option<Vec<Finding>> {
    let (bits, (relocatable, code)) = match bytes.get(..5)? {
        [0x7f, b'E', b'L', b'F', 2] => (64, code::<FileHeader64<LittleEndian>>(bytes)?),
        [0x7f, b'E', b'L', b'F', 1] => (32, code::<FileHeader32<LittleEndian>>(bytes)?),
        _ => return None,
    };
    let owner = owner.unwrap_or(if relocatable { Owner::Module } else { Owner::Program });
    let mut found: BTreeMap<String, Finding> = BTreeMap::new();
    for (address, bytes) in code {
        for instruction in Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE) {
            let Some((verdict, why)) = judge(instruction.mnemonic(), owner) else {
                continue;
            };
            let name = format!("{:?}", instruction.mnemonic()).to_uppercase();
            let finding = found.entry(name.clone()).or_insert_with(|| Finding {
                file: file.to_owned(),
                owner,
                instruction: name,
                count: 0,
                first: instruction.ip(),
                verdict,
                why,
            });
            finding.count += 1;
        }
    }
    Some(found.into_values().collect())
}

/// Whether the file is relocatable, and its code.
fn code<'a, E: FileHeader<Endian = LittleEndian>>(bytes: &'a [u8]) -> Option<(bool, Code<'a>)> {
    let header = E::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let machine = header.e_machine(endian);
    if machine != EM_X86_64 && machine != EM_386 {
        return None;
    }
    let mut code = Code::new();
    let sections = header.section_headers(endian, bytes).unwrap_or_default();
    for section in sections {
        let flags: u64 = section.sh_flags(endian).0;
        if flags & SHF_EXECINSTR.0 != 0 && section.sh_type(endian) != SHT_NOBITS {
            // A damaged section hides nothing else: what can be read is decoded.
            code.extend(
                section
                    .data(endian, bytes)
                    .ok()
                    .map(|data| (section.sh_addr(endian).into(), data)),
            );
        }
    }
    if code.is_empty() {
        for segment in header.program_headers(endian, bytes).unwrap_or_default() {
            if segment.p_flags(endian).0 & PF_X.0 != 0 {
                code.extend(
                    segment
                        .data(endian, bytes)
                        .ok()
                        .map(|data| (segment.p_vaddr(endian).into(), data)),
                );
            }
        }
    }
    Some((header.e_type(endian) == ET_REL, code))
}
