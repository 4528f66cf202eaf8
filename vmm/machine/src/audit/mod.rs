//! `ftvm audit`: which instructions in a kernel, initrd or disk image could make a replay diverge.
//!
//! A kernel is planned for rewriting exactly as at load, so the report says what would be changed, and what is left and
//! why that is harmless or not. Programs and modules are decoded only. A raw disk is searched for ELF files at block
//! starts, read as far as they are contiguous: fragmented files may be missed, and the report says so.

pub mod instructions;
pub mod modules;
pub mod scan;

mod cpio;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;

use crate::boot::linux::decompress::{Compression, DecompressError};
use crate::boot::linux::rewrite::{Patch, kallsyms::Symbols, plan};
use crate::boot::linux::{Linux, LinuxError, is_linux};
pub use cpio::CpioError;
use instructions::{Consequence, Owner};
use scan::Finding;

/// Largest image that is read into memory.
const MAX_IMAGE: u64 = 8 << 30;

/// File systems' usual block size: files begin at multiples of it.
const BLOCK: usize = 4096;

/// Largest file that is looked for on a disk.
const MAX_FILE: usize = 256 << 20;

/// Largest expansion of one compressed module.
const MAX_MODULE: u64 = 256 << 20;

/// Why an image could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("{path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} has {size} bytes, at most {MAX_IMAGE} are read")]
    TooBig { path: String, size: u64 },
    #[error("{path}: {source}")]
    Linux { path: String, source: LinuxError },
    #[error("{path}: {source}")]
    Initrd { path: String, source: CpioError },
}

/// What an image turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    Kernel,
    Initrd,
    Elf,
    Disk,
}

/// What was found in an image; also written as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    pub image: String,
    pub kind: ImageKind,
    /// The kernel's version.
    pub banner: Option<String>,
    /// How many symbols the kernel's own table has.
    pub symbols: Option<usize>,
    /// What is changed at load.
    pub rewritten: Vec<Patch>,
    /// Why the kernel is refused.
    pub refused: Option<String>,
    /// How many ELF files were decoded.
    pub files: u64,
    pub findings: Vec<Finding>,
    /// What this audit cannot see.
    pub caveats: Vec<String>,
}

impl AuditReport {
    fn new(image: &Path, kind: ImageKind) -> Self {
        AuditReport {
            image: image.display().to_string(),
            kind,
            banner: None,
            symbols: None,
            rewritten: Vec::new(),
            refused: None,
            files: 0,
            findings: Vec::new(),
            caveats: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, bytes: &[u8], owner: Option<Owner>) {
        if let Some(findings) = scan::elf(name, bytes, owner) {
            self.files += 1;
            self.findings.extend(findings);
        }
    }

    /// Whether everything that was found is answered or harmless.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let uncaught = self
            .findings
            .iter()
            .any(|finding| finding.verdict == Consequence::Uncaught);
        !uncaught && self.refused.is_none()
    }
}

/// Looks at the image at `path`.
///
/// # Errors
/// If it cannot be read or taken apart.
pub fn audit(path: &Path) -> Result<AuditReport, AuditError> {
    let name = || path.display().to_string();
    let failed = |source| AuditError::Read { path: name(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_IMAGE {
        return Err(AuditError::TooBig { path: name(), size });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    if is_linux(&bytes) {
        return kernel(path, &bytes).map_err(|source| AuditError::Linux { path: name(), source });
    }
    if cpio::is_archive(&bytes) || Compression::detect(&bytes).is_some() {
        return initrd(path, &bytes).map_err(|source| AuditError::Initrd { path: name(), source });
    }
    if bytes.starts_with(b"\x7fELF") {
        let mut report = AuditReport::new(path, ImageKind::Elf);
        report.add(&name(), &bytes, None);
        return Ok(report);
    }
    Ok(disk(path, &bytes))
}

fn kernel(path: &Path, bytes: &[u8]) -> Result<AuditReport, LinuxError> {
    let linux = Linux::parse(bytes)?;
    let mut report = AuditReport::new(path, ImageKind::Kernel);
    report.banner = linux.banner();
    report.add("vmlinux", linux.vmlinux(), Some(Owner::Kernel));
    let planned = match Symbols::find(linux.vmlinux(), linux.layout()) {
        Some(symbols) => {
            report.symbols = Some(symbols.len());
            plan(linux.vmlinux(), linux.layout(), &symbols)
        }
        None => Err(crate::boot::linux::rewrite::RewriteError::NoSymbols),
    };
    match planned {
        Ok(patches) => report.rewritten = patches,
        Err(error) => report.refused = Some(error.to_string()),
    }
    Ok(report)
}

fn initrd(path: &Path, bytes: &[u8]) -> Result<AuditReport, CpioError> {
    let mut report = AuditReport::new(path, ImageKind::Initrd);
    let mut damaged = Vec::new();
    cpio::files(bytes, &mut |name, content| match expanded_module(name, content) {
        Ok(content) => report.add(name, &content, None),
        Err(error) => damaged.push(error.to_string()),
    })?;
    report.caveats.extend(damaged);
    Ok(report)
}

/// A compressed module does not expand.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {source}")]
struct ModuleError {
    /// The file's.
    name: String,
    source: DecompressError,
}

/// The content of the file `name`, expanded if it is a compressed module.
fn expanded_module<'a>(name: &str, content: &'a [u8]) -> Result<Cow<'a, [u8]>, ModuleError> {
    let Some(format) = Compression::detect(content).filter(|_| name.contains(".ko")) else {
        return Ok(Cow::Borrowed(content));
    };
    let expanded = format.expand(content, MAX_MODULE).map_err(|source| ModuleError {
        name: name.to_owned(),
        source,
    })?;
    Ok(Cow::Owned(expanded))
}

fn disk(path: &Path, bytes: &[u8]) -> AuditReport {
    let mut report = AuditReport::new(path, ImageKind::Disk);
    for (block, content) in bytes.chunks(BLOCK).enumerate() {
        if content.starts_with(b"\x7fELF") {
            let begin = block * BLOCK;
            let end = bytes.len().min(begin + MAX_FILE);
            report.add(&format!("ELF file at byte {begin:#x}"), &bytes[begin..end], None);
        }
    }
    report.caveats.push(
        "ELF files are looked for at 4 KiB block starts and read as if contiguous: fragmented and compressed files, \
         file systems inside volumes, and code that is made at run time are missed"
            .to_owned(),
    );
    report
}

impl std::fmt::Display for AuditReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {:?}, {} ELF files", self.image, self.kind, self.files)?;
        if let Some(banner) = &self.banner {
            writeln!(f, "  {banner}")?;
        }
        let mut counts = std::collections::BTreeMap::new();
        for patch in &self.rewritten {
            *counts.entry(patch.purpose).or_insert(0_u64) += 1;
        }
        for (purpose, count) in counts {
            writeln!(f, "  rewritten at load: {count} x {purpose:?}")?;
        }
        if let Some(why) = &self.refused {
            writeln!(f, "  REFUSED: {why}")?;
        }
        for finding in &self.findings {
            let Finding {
                file,
                instruction,
                count,
                verdict,
                why,
                ..
            } = finding;
            writeln!(f, "  {verdict:?}: {count} x {instruction} in {file}: {why}")?;
        }
        for caveat in &self.caveats {
            writeln!(f, "  note: {caveat}")?;
        }
        Ok(())
    }
}
