//! /dev/kvm itself: opening it, and what this host's KVM must be able to do, in words a user understands.

use std::io;

use kvm_bindings::{KVM_API_VERSION, KVM_SYNC_X86_REGS};
use kvm_ioctls::{Cap, Kvm, VmFd};

use ftvm_hypervisor::CpuError;

/// What KVM must offer, and what for. All of it is in every x86 kernel since 5.10.
const REQUIRED: [(Cap, &str, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (
        Cap::DestroyMemoryRegionWorks,
        "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
        "replacing memory slots",
    ),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "Intel CPUs"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "a fixed CPUID table"),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "completing an exit without running on",
    ),
    (Cap::MpState, "KVM_CAP_MP_STATE", "saving the vCPU"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "saving the vCPU"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "saving the vCPU"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "saving the vCPU"),
    (
        Cap::X86UserSpaceMsr,
        "KVM_CAP_X86_USER_SPACE_MSR",
        "answering MSR accesses",
    ),
    (
        Cap::X86MsrFilter,
        "KVM_CAP_X86_MSR_FILTER",
        "hiding the time stamp counter's MSR",
    ),
    (
        Cap::SetGuestDebug,
        "KVM_CAP_SET_GUEST_DEBUG",
        "the single step behind `sti`",
    ),
];

/// A handle to this host's KVM, checked for what this program needs.
#[derive(Debug)]
pub(crate) struct System {
    pub(super) kvm: Kvm,
}

impl System {
    /// Opens /dev/kvm and checks API version and capabilities.
    ///
    /// # Errors
    /// Says whether the device is missing, forbidden or unusable, or names the first capability that it lacks.
    pub(crate) fn open() -> Result<Self, CpuError> {
        let kvm = Kvm::new().map_err(|error| open_error(error.into()))?;
        let version = u32::try_from(kvm.get_api_version()).unwrap_or(0);
        if version != KVM_API_VERSION {
            return Err(CpuError::unsupported(SystemError::ApiVersion { version }));
        }
        for (cap, name, purpose) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(lacking(name, purpose));
            }
        }
        let sync_regs = u32::try_from(kvm.check_extension_int(Cap::SyncRegs)).unwrap_or(0);
        if sync_regs & KVM_SYNC_X86_REGS == 0 {
            return Err(lacking("KVM_CAP_SYNC_REGS", "reading registers at every exit"));
        }
        Ok(System { kvm })
    }

    /// Creates an empty virtual machine.
    pub(super) fn create_vm(&self) -> Result<VmFd, CpuError> {
        self.kvm.create_vm().map_err(|error| create_error(error.into()))
    }
}

fn lacking(capability: &'static str, purpose: &'static str) -> CpuError {
    CpuError::unsupported(SystemError::Capability { capability, purpose })
}

/// Why KVM cannot be used on this host, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemError {
    #[error(
        "there is no /dev/kvm: enable virtualization (VT-x or AMD-V) in the firmware, or nested virtualization if this host \
         is itself a virtual machine, then `modprobe kvm_intel` or `modprobe kvm_amd`; in a container, pass the device in \
         ({source})"
    )]
    Missing { source: io::Error },
    #[error(
        "no permission to open /dev/kvm: add your user to the group kvm (`sudo usermod -aG kvm $USER`) and log in again \
         ({source})"
    )]
    Forbidden { source: io::Error },
    #[error(
        "/dev/kvm exists but no KVM driver stands behind it: load one (`modprobe kvm_intel` or `modprobe kvm_amd`) and see \
         `dmesg` for why it would not start ({source})"
    )]
    NoDriver { source: io::Error },
    #[error("/dev/kvm speaks API version {version}, expected {KVM_API_VERSION}: use a mainline Linux kernel")]
    ApiVersion { version: u32 },
    #[error("this host's KVM lacks {capability}, needed for {purpose}: use Linux 5.10 or newer on the host")]
    Capability {
        /// The name of the KVM_CAP_ constant.
        capability: &'static str,
        purpose: &'static str,
    },
    #[error(
        "KVM is in use by another hypervisor (VirtualBox, VMware, ...): stop its machines or unload its module ({source})"
    )]
    Busy { source: io::Error },
}

/// Why /dev/kvm could not be opened.
fn open_error(source: io::Error) -> CpuError {
    CpuError::unsupported(match source.raw_os_error() {
        Some(libc::ENOENT) => SystemError::Missing { source },
        Some(libc::EACCES | libc::EPERM) => SystemError::Forbidden { source },
        Some(libc::ENODEV | libc::ENXIO) => SystemError::NoDriver { source },
        _ => {
            let call = "opening /dev/kvm";
            return CpuError::Call { call, source };
        }
    })
}

/// Why KVM_CREATE_VM failed.
fn create_error(source: io::Error) -> CpuError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => CpuError::unsupported(SystemError::Busy { source }),
        _ => CpuError::Call {
            call: "creating a virtual machine (KVM_CREATE_VM)",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: CpuError) -> String {
        error.to_string()
    }

    #[test]
    fn every_way_kvm_can_be_missing_says_what_to_do() {
        let open = |code| text(open_error(io::Error::from_raw_os_error(code)));
        assert!(
            open(libc::ENOENT).contains("there is no /dev/kvm"),
            "{}",
            open(libc::ENOENT)
        );
        assert!(open(libc::EACCES).contains("group kvm"), "{}", open(libc::EACCES));
        assert!(open(libc::EPERM).contains("group kvm"));
        assert!(open(libc::ENODEV).contains("modprobe"), "{}", open(libc::ENODEV));
        assert!(
            open(libc::EMFILE).starts_with("opening /dev/kvm: "),
            "{}",
            open(libc::EMFILE)
        );
        let create = |code| text(create_error(io::Error::from_raw_os_error(code)));
        assert!(create(libc::EBUSY).contains("another hypervisor"));
        assert!(create(libc::ENOMEM).contains("KVM_CREATE_VM"));
    }

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(
            text(lacking("KVM_CAP_X", "testing")),
            "this host's KVM lacks KVM_CAP_X, needed for testing: use Linux 5.10 or newer on the host"
        );
    }
}
