//! Getting a guest into memory: which image, where it goes, and the state it is entered in.

mod elf;
pub mod linux;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use vm_memory::GuestMemoryError;

pub use elf::ElfError;
use linux::cmdline::Contradiction;

use crate::config::{GuestKind, ImageId, MachineConfig};
use ftvm_hypervisor::GuestMemory;
use ftvm_hypervisor::entry::EntryState;

/// Largest kernel or initrd read from a file.
const MAX_IMAGE: u64 = 512 << 20;

/// What can be wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No built-in guest has that name.
    #[error("no built-in guest is called '{name}'; there are: {}", .known.join(", "))]
    UnknownGuest { name: String, known: Vec<&'static str> },
    /// The file cannot be read.
    #[error("{role} image {path}: {source}")]
    Read {
        role: ImageRole,
        path: String,
        source: ReadError,
    },
    /// The file is no Linux, and no bare-metal guest either.
    #[error("kernel image {name}: no bootable 64-bit ELF: {source}")]
    Image { name: String, source: ElfError },
    /// The image is Linux and cannot be booted.
    #[error("kernel image {name}: {source}")]
    Linux { name: String, source: linux::LinuxError },
    /// The image is another one than the log or the configuration was made with.
    #[error("{role} image {name} has SHA-256 {found}, but {expected} was recorded: give the same image with --{role}")]
    Different {
        role: ImageRole,
        name: String,
        expected: String,
        found: String,
    },
    /// The kind of guest or the presence of an initrd is not as configured.
    #[error("kernel image {name}: {expected} was configured, found {found}")]
    Kind {
        name: String,
        expected: String,
        found: String,
    },
    /// A bare-metal guest takes no initrd.
    #[error("kernel image {name} is no Linux kernel, which an initrd is for: leave out --initrd")]
    NoInitrd { name: String },
    /// Guest memory cannot hold it.
    #[error("kernel image {name} does not fit {} MiB of memory: {source}", memory >> 20)]
    Memory {
        name: String,
        /// RAM in bytes.
        memory: u64,
        source: GuestMemoryError,
    },
}

/// What an image is to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageRole {
    Kernel,
    Initrd,
}

impl std::fmt::Display for ImageRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageRole::Kernel => "kernel",
            ImageRole::Initrd => "initrd",
        })
    }
}

/// An image's content, and what identifies it.
#[derive(Debug)]
struct Image {
    id: ImageId,
    bytes: Vec<u8>,
}

impl Image {
    fn new(name: &str, bytes: Vec<u8>) -> Self {
        let id = ImageId {
            name: name.to_owned(),
            sha256: Sha256::digest(&bytes).into(),
        };
        Image { id, bytes }
    }

    fn read(role: ImageRole, path: &str) -> Result<Self, BootError> {
        let bytes = read_image(Path::new(path)).map_err(|source| BootError::Read {
            role,
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(path, bytes))
    }

    /// Insists on the recorded content.
    fn expect(self, role: ImageRole, recorded: &ImageId) -> Result<Self, BootError> {
        if self.id.sha256 == recorded.sha256 {
            return Ok(self);
        }
        Err(BootError::Different {
            role,
            name: self.id.name,
            expected: hex(&recorded.sha256),
            found: hex(&self.id.sha256),
        })
    }
}

/// A guest that the program brings with it, for `builtin:NAME`.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    pub name: &'static str,
    /// An ELF image by the contract of the `abi` crate.
    pub image: &'static [u8],
}

/// A kernel image, loaded from the binary itself or from a file, with its initrd.
#[derive(Debug)]
pub struct Kernel {
    image: Image,
    initrd: Option<Image>,
    kind: GuestKind,
}

impl Kernel {
    /// `builtin:NAME` for one of `built_in`, or a path; and the path of an initrd.
    ///
    /// # Errors
    /// If there is no such image, or an initrd for a guest that takes none.
    pub fn open(name: &str, initrd: Option<&str>, built_in: &[BuiltIn]) -> Result<Self, BootError> {
        let (image, kind) = if let Some(guest) = name.strip_prefix("builtin:") {
            match built_in.iter().find(|known| known.name == guest) {
                Some(found) => (Image::new(name, found.image.to_vec()), GuestKind::BareMetal),
                None => {
                    let known = built_in.iter().map(|known| known.name).collect();
                    return Err(BootError::UnknownGuest {
                        name: guest.to_owned(),
                        known,
                    });
                }
            }
        } else {
            let image = Image::read(ImageRole::Kernel, name)?;
            let kind = if linux::is_linux(&image.bytes) {
                GuestKind::Linux
            } else {
                GuestKind::BareMetal
            };
            (image, kind)
        };
        if kind == GuestKind::BareMetal && initrd.is_some() {
            return Err(BootError::NoInitrd { name: name.to_owned() });
        }
        let initrd = initrd.map(|path| Image::read(ImageRole::Initrd, path)).transpose()?;
        Ok(Kernel { image, initrd, kind })
    }

    /// As [`Kernel::open`], from the recorded places unless others are given, and insists on the recorded content.
    ///
    /// # Errors
    /// Also if the content is another.
    pub fn open_recorded(
        config: &MachineConfig,
        kernel: Option<&str>,
        initrd: Option<&str>,
        built_in: &[BuiltIn],
    ) -> Result<Self, BootError> {
        let initrd = initrd.or(config.initrd.as_ref().map(|id| id.name.as_str()));
        let Kernel { image, initrd, kind } = Self::open(kernel.unwrap_or(&config.kernel.name), initrd, built_in)?;
        let image = image.expect(ImageRole::Kernel, &config.kernel)?;
        let initrd = match (initrd, &config.initrd) {
            (Some(initrd), Some(recorded)) => Some(initrd.expect(ImageRole::Initrd, recorded)?),
            (initrd, _) => initrd,
        };
        Ok(Kernel { image, initrd, kind })
    }

    /// What identifies the kernel image.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.image.id
    }

    /// What identifies the initrd.
    #[must_use]
    pub fn initrd(&self) -> Option<&ImageId> {
        self.initrd.as_ref().map(|initrd| &initrd.id)
    }

    /// What kind of guest it makes.
    #[must_use]
    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// The initrd's content.
    #[must_use]
    pub fn initrd_bytes(&self) -> Option<&[u8]> {
        self.initrd.as_ref().map(|initrd| initrd.bytes.as_slice())
    }

    /// The command line of a new guest: the user's, behind what this kind of guest needs. Linux will not load the
    /// modules in `kept_out`.
    ///
    /// # Errors
    /// If an option of the user's contradicts a needed one.
    pub fn cmdline(&self, user: &str, kept_out: &BTreeSet<String>) -> Result<String, Contradiction> {
        match self.kind {
            GuestKind::BareMetal => Ok(user.to_owned()),
            GuestKind::Linux => linux::cmdline::complete(user, kept_out),
        }
    }

    /// Copies the images, page tables, GDT and boot information into fresh memory.
    ///
    /// # Errors
    /// If the image is none, does not fit, or is not of the kind that is configured.
    pub fn load(&self, config: &MachineConfig, memory: &GuestMemory) -> Result<EntryState, BootError> {
        let name = &self.image.id.name;
        let describe = |kind: GuestKind, initrd: bool| {
            let with = if initrd { "with" } else { "without" };
            format!("a {kind:?} guest {with} initrd")
        };
        if (config.guest, config.initrd.is_some()) != (self.kind, self.initrd.is_some()) {
            return Err(BootError::Kind {
                name: name.clone(),
                expected: describe(config.guest, config.initrd.is_some()),
                found: describe(self.kind, self.initrd.is_some()),
            });
        }
        let failed = |source| BootError::Linux {
            name: name.clone(),
            source,
        };
        let initrd = self.initrd_bytes();
        match self.kind {
            GuestKind::BareMetal => elf::load(name, &self.image.bytes, config, memory),
            GuestKind::Linux => linux::Linux::parse(&self.image.bytes)
                .and_then(|linux| linux.load(initrd, config, memory))
                .map_err(failed),
        }
    }
}

/// Why an image file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refuses.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A folder, a pipe, a device.
    #[error("a regular file is expected")]
    NotAFile,
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// More than is read.
    #[error("more than the {MAX_IMAGE} bytes that are read")]
    TooBig,
}

fn read_image(path: &Path) -> Result<Vec<u8>, ReadError> {
    // Looked at before it is opened: opening a pipe waits for whoever writes to it.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(ReadError::NotAFile);
    }
    let mut image = Vec::new();
    File::open(path)?.take(MAX_IMAGE + 1).read_to_end(&mut image)?;
    match image.len() as u64 {
        0 => Err(ReadError::Empty),
        size if size > MAX_IMAGE => Err(ReadError::TooBig),
        _ => Ok(image),
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
