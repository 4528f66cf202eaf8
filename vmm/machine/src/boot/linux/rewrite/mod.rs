//! The rewrites that make a stock Linux kernel replayable, made once at load (LINUX-FACTS; DESIGN, idea 4).
//!
//! RDTSC in the kernel becomes an exit; CR4.TSD makes it fault in user programs; the #GP entry lets the machine answer
//! those. Places are found by symbols and by decoding, never by fixed offsets; each patch checks the bytes it replaces.
//! A kernel in which a needed place is not found is refused with the reason: running it would diverge later and
//! silently. The result depends on the image only, so primary, backup and replay load the same bytes.

mod cr4;
mod gp;
pub mod kallsyms;
mod sweep;
#[cfg(test)]
mod tests;
mod tsc;

use serde::Serialize;

use super::vmlinux::Layout;
pub(super) use cr4::TSD;
use kallsyms::Symbols;

/// Why a kernel cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// There are no symbols to find anything by.
    #[error("it has no symbol table that can be read; a kernel with CONFIG_KALLSYMS and section headers is needed")]
    NoSymbols,
    /// Something that must be rewritten was not found.
    #[error("{what} was not found: {why}. This kernel's RDTSC cannot be made replayable; take another version")]
    Missing { what: &'static str, why: String },
    /// The two ways of decoding disagree.
    #[error("at {place}, two ways of decoding disagree whether an RDTSC stands there")]
    Ambiguous { place: String },
    /// The bytes are others than expected.
    #[error("at {address:#x}, {expected} was expected and {found} found")]
    Bytes {
        address: u64,
        expected: String,
        found: String,
    },
}

/// What a patch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// RDTSC becomes an exit.
    Rdtsc,
    /// The start-up code sets CR4.TSD.
    Cr4Startup,
    /// CR4.TSD is no longer cleared.
    Cr4Clear,
    /// CR4.TSD is no longer toggled between tasks.
    Cr4Toggle,
    /// The #GP entry asks the machine.
    GpHook,
}

/// One change of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Patch {
    pub purpose: Purpose,
    /// Virtual address of the first changed byte.
    pub address: u64,
    /// The same by symbol.
    pub place: String,
    #[serde(skip)]
    offset: usize,
    #[serde(skip)]
    expected: Vec<u8>,
    #[serde(skip)]
    bytes: Vec<u8>,
}

impl Patch {
    fn new(
        layout: &Layout,
        purpose: Purpose,
        address: u64,
        expected: &[u8],
        bytes: &[u8],
    ) -> Result<Self, RewriteError> {
        let offset = layout.offset(address).ok_or_else(|| RewriteError::Bytes {
            address,
            expected: super::super::hex(expected),
            found: "no byte of the file".to_owned(),
        })?;
        Ok(Patch {
            purpose,
            address,
            place: String::new(),
            offset,
            expected: expected.to_vec(),
            bytes: bytes.to_vec(),
        })
    }

    fn apply(&self, image: &mut [u8]) -> Result<(), RewriteError> {
        let place = image.get_mut(self.offset..self.offset + self.expected.len());
        let found = place
            .as_ref()
            .map_or_else(String::new, |bytes| super::super::hex(bytes));
        match place {
            Some(place) if *place == self.expected => {
                place.copy_from_slice(&self.bytes);
                Ok(())
            }
            _ => Err(RewriteError::Bytes {
                address: self.address,
                expected: super::super::hex(&self.expected),
                found,
            }),
        }
    }
}

/// What is to be changed in a vmlinux, by address.
///
/// # Errors
/// If something that must be changed is not found.
pub fn plan(image: &[u8], layout: &Layout, symbols: &Symbols) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = tsc::patches(image, layout, symbols)?;
    patches.extend(cr4::patches(image, layout, symbols)?);
    patches.push(gp::patch(image, layout, symbols)?);
    patches.sort_by_key(|patch| (patch.offset, patch.purpose));
    patches.dedup();
    for patch in &mut patches {
        patch.place = symbols.describe(patch.address);
    }
    Ok(patches)
}

/// Makes the changes, and returns them.
///
/// # Errors
/// If something that must be changed is not found; then nothing is changed.
pub fn rewrite(image: &mut [u8], layout: &Layout) -> Result<Vec<Patch>, RewriteError> {
    let symbols = Symbols::find(image, layout).ok_or(RewriteError::NoSymbols)?;
    let patches = plan(image, layout, &symbols)?;
    for patch in &patches {
        patch.apply(image)?;
    }
    Ok(patches)
}
