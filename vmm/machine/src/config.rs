//! What a guest is made of: everything a replay or a backup must know to build the same machine.

use ftvm_schema::record::{self, CodecError};
use serde::{Deserialize, Serialize};

use ftvm_devices::PlatformConfig;
use ftvm_hypervisor::profile::CpuProfile;

/// Version of [`MachineConfig`] and of the state records; a log or peer with another one is refused by name.
pub const MACHINE_VERSION: u32 = 3;

/// Most bytes of an encoded [`MachineConfig`]: names, command line and CPUID table need a few kilobytes.
pub const MAX_CONFIG: usize = 1 << 20;

/// Most bytes of RAM. RAM begins at 0 and must end below the hole for PCI memory at 3 GiB.
pub const MAX_MEMORY: u64 = 3 << 30;

/// Longest kernel command line in bytes, as Linux has it (COMMAND_LINE_SIZE, less the final zero).
pub const MAX_CMDLINE: usize = 2047;

/// Fewest bytes of RAM: room for page tables, boot information and the smallest guest.
pub const MIN_MEMORY: u64 = 16 << 20;

/// A kernel or initrd by name and content. The image itself does not travel: its bytes are in the guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageId {
    /// `builtin:NAME` or the path that was given.
    pub name: String,
    pub sha256: [u8; 32],
}

/// What kind of guest runs in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// An ELF image by the contract of the `abi` crate; nothing in it is rewritten.
    BareMetal,
    /// A Linux kernel whose clock reads have been rewritten at load (`boot::linux::rewrite`).
    Linux,
}

/// The machine's configuration; stored in a log's header and sent to a joining backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    pub version: u32,
    /// Bytes of RAM, a multiple of 2 MiB between [`MIN_MEMORY`] and [`MAX_MEMORY`].
    pub memory: u64,
    pub kernel: ImageId,
    /// Linux only.
    pub initrd: Option<ImageId>,
    pub guest: GuestKind,
    pub cmdline: String,
    /// Random bits for the guest, drawn once by the primary.
    pub seed: u64,
    pub platform: PlatformConfig,
    pub profile: CpuProfile,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigError {
    /// Written by another version of this program.
    #[error("machine configuration version {MACHINE_VERSION} expected, {found} found")]
    Version { found: u32 },
    /// RAM that this platform cannot have.
    #[error(
        "memory must be a multiple of 2 MiB from {} MiB to {} MiB, found {found} bytes",
        MIN_MEMORY >> 20,
        MAX_MEMORY >> 20
    )]
    Memory {
        /// In bytes.
        found: u64,
    },
    /// A command line that the kernel would cut off.
    #[error("the kernel command line has {found} bytes, at most {MAX_CMDLINE} fit")]
    Cmdline {
        /// In bytes.
        found: usize,
    },
    /// The bytes are no configuration.
    #[error(transparent)]
    Record(#[from] CodecError),
}

impl MachineConfig {
    /// Decodes and checks what a log's header or a peer says.
    ///
    /// # Errors
    /// If the bytes are no configuration, or one that cannot be built.
    pub fn from_record(bytes: &[u8]) -> Result<Self, MachineConfigError> {
        let config: MachineConfig = record::from_bytes(bytes, MAX_CONFIG)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what a hostile header or peer could have put in.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), MachineConfigError> {
        if self.version != MACHINE_VERSION {
            return Err(MachineConfigError::Version { found: self.version });
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(2 << 20) {
            return Err(MachineConfigError::Memory { found: self.memory });
        }
        let found = self.cmdline.len();
        if found > MAX_CMDLINE {
            return Err(MachineConfigError::Cmdline { found });
        }
        Ok(())
    }
}
