//! Stock Linux by the 64-bit boot protocol (Documentation/arch/x86/boot.rst), without firmware, ACPI or its
//! decompressor.
//!
//! A bzImage's payload is expanded here and the vmlinux in it is entered directly at `startup_64`: no KASLR and nothing
//! random on the way, and the image can be rewritten ([`rewrite`]) before the guest sees it. Placement, command line
//! and random seed depend on the configuration only, so that a replay and a backup build the same memory.

pub mod cmdline;
pub mod decompress;
pub mod rewrite;
pub mod vmlinux;

mod bzimage;
mod params;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::config::MachineConfig;
use bzimage::BzImage;
pub use bzimage::HeaderError;
use ftvm_hypervisor::GuestMemory;
use ftvm_hypervisor::entry::EntryState;
pub use params::RoomError;
use vmlinux::{Layout, LayoutError};

/// What can be wrong with a Linux kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// The bzImage's header.
    #[error("not a bzImage that can be booted: {0}")]
    Header(#[from] HeaderError),
    /// The vmlinux's headers.
    #[error("not a vmlinux that can be booted: {0}")]
    Layout(#[from] LayoutError),
    /// The vmlinux does not expand.
    #[error(transparent)]
    Decompress(#[from] decompress::DecompressError),
    /// It cannot be made replayable.
    #[error(transparent)]
    Rewrite(#[from] rewrite::RewriteError),
    /// Kernel, initrd or command line do not fit.
    #[error(transparent)]
    Room(#[from] RoomError),
}

/// A Linux kernel's parts, expanded but not yet changed.
#[derive(Debug)]
pub struct Linux<'a> {
    container: Option<BzImage<'a>>,
    vmlinux: Cow<'a, [u8]>,
    layout: Layout,
}

/// Whether `image` is a Linux kernel: a bzImage, or a vmlinux, which has the banner and a section of its own.
#[must_use]
pub fn is_linux(image: &[u8]) -> bool {
    if bzimage::is_bzimage(image) {
        return true;
    }
    let banner = || image.windows(BANNER.len()).any(|window| window == BANNER);
    image.starts_with(b"\x7fELF")
        && Layout::parse(image).is_ok_and(|layout| LINUX_SECTIONS.iter().all(|name| layout.section(name).is_some()))
        && banner()
}

/// `linux_banner` begins so (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";

/// Sections that only a kernel has.
const LINUX_SECTIONS: [&str; 2] = [".init.text", "__ksymtab"];

impl<'a> Linux<'a> {
    /// Takes a kernel image apart and expands it.
    ///
    /// # Errors
    /// If it is damaged, or in a form that is not known.
    pub fn parse(image: &'a [u8]) -> Result<Self, LinuxError> {
        let (container, vmlinux) = if bzimage::is_bzimage(image) {
            let container = bzimage::parse(image)?;
            (Some(container), Cow::Owned(container.vmlinux()?))
        } else {
            (None, Cow::Borrowed(image))
        };
        let layout = Layout::parse(&vmlinux)?;
        Ok(Linux {
            container,
            vmlinux,
            layout,
        })
    }

    /// The ELF file inside.
    #[must_use]
    pub fn vmlinux(&self) -> &[u8] {
        &self.vmlinux
    }

    /// Where things are in it.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// `linux_banner`, its first line, for people.
    #[must_use]
    pub fn banner(&self) -> Option<String> {
        let at = self.vmlinux.windows(BANNER.len()).position(|window| window == BANNER)?;
        let line = self.vmlinux[at..].iter().take(256).take_while(|byte| **byte >= b' ');
        Some(String::from_utf8_lossy(&line.copied().collect::<Vec<_>>()).into_owned())
    }

    /// Rewrites the kernel, and puts it with initrd, zero page, page tables and command line into fresh memory.
    ///
    /// # Errors
    /// If it cannot be rewritten, or memory is too small.
    pub fn load(
        self,
        initrd: Option<&[u8]>,
        config: &MachineConfig,
        memory: &GuestMemory,
    ) -> Result<EntryState, LinuxError> {
        let mut vmlinux = self.vmlinux.into_owned();
        let patches = rewrite::rewrite(&mut vmlinux, &self.layout)?;
        tracing::info!(
            "{} places of the kernel are rewritten; `ftvm audit` lists them",
            patches.len()
        );
        let header = self.container.map(|container| container.setup_header);
        Ok(params::load(&vmlinux, &self.layout, header, initrd, config, memory)?)
    }
}
