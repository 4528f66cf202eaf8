//! What tests of this crate and of those above share.

use ftvm_devices::PlatformConfig;
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::profile::CpuProfile;

use crate::config::{GuestKind, ImageId, MACHINE_VERSION, MIN_MEMORY, MachineConfig};

/// The smallest machine.
#[must_use]
pub fn config(guest: GuestKind) -> MachineConfig {
    MachineConfig {
        version: MACHINE_VERSION,
        memory: MIN_MEMORY,
        kernel: ImageId {
            name: String::new(),
            sha256: [0; 32],
        },
        initrd: None,
        guest,
        cmdline: String::new(),
        seed: 0,
        platform: PlatformConfig::default(),
        profile: CpuProfile {
            cpuid: Vec::new(),
            delivery: DeliveryMode::None,
        },
    }
}
