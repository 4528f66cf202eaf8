//! CPU profiles in KVM's form, and what this host's KVM offers for them.

use ftvm_hypervisor::profile::{CpuProfile, CpuidEntry, MAX_CPUID_ENTRIES, ProfileMismatch};
use ftvm_hypervisor::{CpuError, DeliveryMode};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use crate::ioctl::kvm_error;
use crate::system::System;

/// The table has more entries than KVM takes.
#[derive(Debug, thiserror::Error)]
#[error("a CPU profile of {count} CPUID entries is too long")]
pub(crate) struct TableTooLong {
    pub(crate) count: usize,
}

const _: () = assert!(MAX_CPUID_ENTRIES == KVM_MAX_CPUID_ENTRIES);

/// The profile of guests that start on this host.
///
/// # Errors
/// If KVM cannot be used or its table not be read.
pub fn of_this_host(delivery: DeliveryMode) -> Result<CpuProfile, CpuError> {
    of_system(&System::open()?, delivery)
}

/// Whether this host can run guests of `profile`.
///
/// # Errors
/// Names the first thing that this host lacks.
pub fn check_supported(profile: &CpuProfile) -> Result<(), ProfileMismatch> {
    profile.check_against(&of_this_host(profile.delivery)?)
}

pub(crate) fn of_system(system: &System, delivery: DeliveryMode) -> Result<CpuProfile, CpuError> {
    let offered = system
        .kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
    let offered = offered.as_slice().iter().map(from_kvm);
    Ok(CpuProfile::of_offered(offered, delivery))
}

/// The table in KVM's form.
pub(crate) fn to_kvm(profile: &CpuProfile) -> Result<CpuId, CpuError> {
    let entries: Vec<kvm_cpuid_entry2> = profile.cpuid.iter().map(entry_to_kvm).collect();
    let count = entries.len();
    CpuId::from_entries(&entries).map_err(|_| CpuError::unsupported(TableTooLong { count }))
}

fn from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    let subleaf = (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index);
    let (eax, ebx, ecx, edx) = (entry.eax, entry.ebx, entry.ecx, entry.edx);
    CpuidEntry {
        leaf: entry.function,
        subleaf,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn entry_to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.leaf,
        index: entry.subleaf.unwrap_or(0),
        flags: if entry.subleaf.is_some() {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        padding: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvms_form_keeps_every_entry() {
        let entry = |leaf, subleaf, value| CpuidEntry {
            leaf,
            subleaf,
            eax: value,
            ebx: value + 1,
            ecx: value + 2,
            edx: value + 3,
        };
        let mut profile = CpuProfile {
            cpuid: vec![entry(0, None, 10), entry(7, Some(0), 20), entry(0x8000_0008, None, 30)],
            delivery: DeliveryMode::Window,
        };
        let kvm = to_kvm(&profile).unwrap();
        let back: Vec<_> = kvm.as_slice().iter().map(from_kvm).collect();
        assert_eq!(back, profile.cpuid);
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<CpuProfile>(&json).unwrap(), profile);
        profile.cpuid.resize(MAX_CPUID_ENTRIES + 1, entry(2, None, 0));
        assert!(to_kvm(&profile).is_err());
    }
}
