//! RDTSC becomes `out RDTSC_PORT, al`, of the same two bytes: a plain exit that the machine answers.

use iced_x86::Mnemonic;

use super::super::vmlinux::{Layout, Section};
use super::kallsyms::Symbols;
use super::sweep::{self, Boundary};
use super::{Patch, Purpose, RewriteError};
use crate::machine::linux::RDTSC_PORT;

/// RDTSC (SDM volume 2).
const RDTSC: [u8; 2] = [0x0f, 0x31];

/// OUT imm8, AL (SDM volume 2).
pub(super) const OUT: u8 = 0xe6;

/// The port as OUT's immediate.
pub(super) const fn immediate(port: u16) -> u8 {
    let [low, high] = port.to_le_bytes();
    assert!(high == 0, "OUT with an immediate reaches ports below 256");
    low
}

/// Every real RDTSC.
///
/// # Errors
/// If the two ways of decoding disagree, or there is none (then this is no kernel that was understood).
pub(super) fn patches(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Vec<Patch>, RewriteError> {
    let mut found = Vec::new();
    for section in layout.executable() {
        let real: Vec<u64> = sweep::section(image, section)
            .into_iter()
            .filter(|instruction| instruction.mnemonic() == Mnemonic::Rdtsc)
            .map(|instruction| instruction.ip() + instruction.len() as u64 - RDTSC.len() as u64)
            .collect();
        for address in pairs(image, section) {
            let listed = real.binary_search(&address).is_ok();
            match (listed, sweep::boundary(image, section, symbols, address)) {
                (true, Boundary::Begins | Boundary::Unknown) => found.push(patch(layout, address)?),
                (false, Boundary::Inside | Boundary::Unknown) => {}
                (true, Boundary::Inside) | (false, Boundary::Begins) => {
                    return Err(RewriteError::Ambiguous {
                        place: symbols.describe(address),
                    });
                }
            }
        }
    }
    if found.is_empty() {
        return Err(RewriteError::Missing {
            what: "an RDTSC instruction",
            why: "no section with instructions has one".to_owned(),
        });
    }
    Ok(found)
}

fn patch(layout: &Layout, address: u64) -> Result<Patch, RewriteError> {
    Patch::new(
        layout,
        Purpose::Rdtsc,
        address,
        &RDTSC,
        &[OUT, const { immediate(RDTSC_PORT) }],
    )
}

/// Where the two bytes stand in a section, as an instruction or not.
fn pairs<'a>(image: &'a [u8], section: &'a Section) -> impl Iterator<Item = u64> + 'a {
    let bytes = &image[section.file.clone()];
    let matches = bytes.windows(2).enumerate().filter(|(_, pair)| **pair == RDTSC);
    matches.map(|(offset, _)| section.virt + offset as u64)
}
