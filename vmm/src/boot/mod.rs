//! Getting a guest into memory: which image, where it goes, and the state it is entered in.

mod elf;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::hypervisor::GuestMemory;
use crate::hypervisor::kvm::EntryState;
use crate::machine::config::{KernelId, MachineConfig};

/// Longest kernel command line, as Linux has it (COMMAND_LINE_SIZE, less the final zero).
pub const MAX_CMDLINE: usize = 2047;

/// Largest kernel image read from a file.
const MAX_IMAGE: u64 = 512 << 20;

/// What can be wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No built-in guest has that name.
    #[error("no built-in guest is called '{name}'; there are: {}", .known.join(", "))]
    UnknownGuest { name: String, known: Vec<&'static str> },
    /// The file cannot be read.
    #[error("kernel image {path}: {source}")]
    Read { path: String, source: std::io::Error },
    /// The file is no image that can be booted.
    #[error("kernel image {name}: {what}")]
    Image { name: String, what: String },
    /// The image is another one than the log or the configuration was made with.
    #[error("kernel image {name} has SHA-256 {found}, but {expected} was recorded: give the same image with --kernel")]
    Different {
        name: String,
        expected: String,
        found: String,
    },
    /// Guest memory cannot hold it.
    #[error("kernel image {name} does not fit {} MiB of memory: {what}", memory >> 20)]
    Memory { name: String, memory: u64, what: String },
}

/// A kernel image, loaded from the binary itself or from a file.
#[derive(Debug)]
pub struct Kernel {
    pub id: KernelId,
    image: Vec<u8>,
}

impl Kernel {
    /// `builtin:NAME`, or a path.
    ///
    /// # Errors
    /// If there is no such image.
    pub fn open(name: &str) -> Result<Self, BootError> {
        let image = if let Some(guest) = name.strip_prefix("builtin:") {
            match guest_images::find(guest) {
                Some(guest) => guest.image.to_vec(),
                None => {
                    let known = guest_images::all().iter().map(|guest| guest.name).collect();
                    return Err(BootError::UnknownGuest {
                        name: guest.to_owned(),
                        known,
                    });
                }
            }
        } else {
            read_image(Path::new(name)).map_err(|source| BootError::Read {
                path: name.to_owned(),
                source,
            })?
        };
        let sha256 = Sha256::digest(&image).into();
        Ok(Kernel {
            id: KernelId {
                name: name.to_owned(),
                sha256,
            },
            image,
        })
    }

    /// As [`Kernel::open`], and insists on the content that `id` names.
    ///
    /// # Errors
    /// Also if the content is another.
    pub fn open_recorded(id: &KernelId, path: Option<&str>) -> Result<Self, BootError> {
        let kernel = Self::open(path.unwrap_or(&id.name))?;
        if kernel.id.sha256 != id.sha256 {
            return Err(BootError::Different {
                name: kernel.id.name,
                expected: hex(&id.sha256),
                found: hex(&kernel.id.sha256),
            });
        }
        Ok(kernel)
    }

    /// Copies the image, page tables, GDT and boot information into fresh memory.
    ///
    /// # Errors
    /// If the image is none or does not fit.
    pub fn load(&self, config: &MachineConfig, memory: &GuestMemory) -> Result<EntryState, BootError> {
        elf::load(&self.id.name, &self.image, config, memory)
    }
}

fn read_image(path: &Path) -> std::io::Result<Vec<u8>> {
    let refused = |what: String| Err(std::io::Error::other(what));
    // Looked at before it is opened: opening a pipe waits for whoever writes to it.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return refused("a regular file is expected".to_owned());
    }
    let mut image = Vec::new();
    File::open(path)?.take(MAX_IMAGE + 1).read_to_end(&mut image)?;
    match image.len() as u64 {
        0 => refused("the file is empty".to_owned()),
        size if size > MAX_IMAGE => refused(format!("more than the {MAX_IMAGE} bytes that are read")),
        _ => Ok(image),
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
