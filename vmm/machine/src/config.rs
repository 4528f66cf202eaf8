//! What a guest is made of: everything a replay or a backup must know to build the same machine.

use serde::{Deserialize, Serialize};

use ftvm_devices::PlatformConfig;
use ftvm_hypervisor::profile::CpuProfile;

/// Version of [`MachineConfig`] and of the state records; a log or peer with another one is refused by name.
pub const MACHINE_VERSION: u32 = 3;

/// RAM begins at 0 and must end below the hole for PCI memory at 3 GiB.
pub const MAX_MEMORY: u64 = 3 << 30;

/// Longest kernel command line, as Linux has it (COMMAND_LINE_SIZE, less the final zero).
pub const MAX_CMDLINE: usize = 2047;

/// Room for page tables, boot information and the smallest guest.
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
    /// A Linux kernel whose clock reads have been rewritten ([`crate::machine::linux`]).
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

impl MachineConfig {
    /// Checks what a hostile header or peer could have put in.
    ///
    /// # Errors
    /// A sentence naming the field, what was expected and what was found.
    pub fn validate(&self) -> Result<(), String> {
        if self.version != MACHINE_VERSION {
            return Err(format!(
                "machine configuration version {MACHINE_VERSION} expected, {} found",
                self.version
            ));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(2 << 20) {
            return Err(format!(
                "memory must be a multiple of 2 MiB from {} MiB to {} MiB, found {} bytes",
                MIN_MEMORY >> 20,
                MAX_MEMORY >> 20,
                self.memory
            ));
        }
        if self.cmdline.len() > MAX_CMDLINE {
            return Err(format!(
                "the kernel command line has {} bytes, at most {} fit",
                self.cmdline.len(),
                MAX_CMDLINE
            ));
        }
        Ok(())
    }
}
