//! The CPU that guests see: a fixed CPUID table without anything that leaks hidden state or differs between two hosts.
//!
//! The table is made once, from what this host's KVM offers, stored in the log header, and reused verbatim by the other
//! side. It is built from lists of what *may* stay: a feature that is new to this program stays hidden. Hidden are time
//! (TSC, performance counters), randomness (RDRAND, RDSEED), the in-kernel APIC, topology, XSAVE with everything that
//! needs it (XSAVEOPT and XGETBV(1) leak hidden state), nested virtualization, and KVM's own paravirtual leaves.

use serde::{Deserialize, Serialize};

use crate::{CpuError, DeliveryMode};

/// Most CPUID entries a profile may have: KVM's own limit (KVM_MAX_CPUID_ENTRIES).
pub const MAX_CPUID_ENTRIES: usize = 256;

/// Highest basic and extended leaf that guests see.
const MAX_BASIC: u32 = 0xd;
const MAX_EXTENDED: u32 = 0x8000_0008;

/// Leaves that stay as they are: cache and TLB descriptors (2), the brand string, L1 and L2 caches of AMD.
const VERBATIM: [u32; 6] = [0x2, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006];

/// Set bits at these positions.
const fn bits<const N: usize>(positions: [u32; N]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < N {
        mask |= 1 << positions[index];
        index += 1;
    }
    mask
}

/// 1.ECX: SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 POPCNT AES.
const LEAF_1_ECX: u32 = bits([0, 1, 9, 13, 19, 20, 23, 25]);
/// 1.EDX: FPU VME DE PSE MSR PAE CX8 SEP MTRR PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS.
const LEAF_1_EDX: u32 = bits([0, 1, 2, 3, 5, 6, 8, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
/// 7.EBX: FSGSBASE BMI1 FDP_EXCPTN_ONLY SMEP BMI2 ERMS ZERO_FCS_FDS ADX CLFLUSHOPT CLWB SHA.
const LEAF_7_EBX: u32 = bits([0, 3, 6, 7, 8, 9, 13, 19, 23, 24, 29]);
/// 7.ECX: UMIP GFNI.
const LEAF_7_ECX: u32 = bits([2, 8]);
/// 80000001.ECX: LAHF_LM CR8_LEGACY ABM SSE4A MISALIGNSSE 3DNOWPREFETCH.
const LEAF_EXT1_ECX: u32 = bits([0, 4, 5, 6, 7, 8]);
/// 80000001.EDX: AMD's mirror of 1.EDX, SYSCALL NX MMXEXT FFXSR PDPE1GB LM 3DNOWEXT 3DNOW.
const LEAF_EXT1_EDX: u32 = bits([
    0, 1, 2, 3, 5, 6, 8, 11, 12, 13, 15, 16, 17, 20, 22, 23, 24, 25, 26, 29, 30, 31,
]);

/// 1.EBX: brand index and CLFLUSH line size; one logical CPU with APIC id 0.
const LEAF_1_EBX_KEPT: u32 = 0x0000_ffff;
const LEAF_1_EBX_ONE_CPU: u32 = 1 << 16;
/// 4.EAX: cache type, level and properties; not how many CPUs share it.
const LEAF_4_EAX_KEPT: u32 = 0x3ff;
/// 80000008.EAX: physical and linear address width.
const LEAF_EXT8_EAX_KEPT: u32 = 0xffff;
/// Width of a physical address in 80000008.EAX.
const PHYSICAL_WIDTH: u32 = 0xff;
/// 1.EAX without the stepping (bits 3:0).
const FAMILY_MODEL: u32 = !0xf;

/// Names of the feature bits that a guest may be missing on another host: (leaf, register, bit) -> name.
const FEATURE_NAMES: [(Register, u32, &str); 34] = {
    use Register::{Ext1Ecx, Ext1Edx, Leaf1Ecx, Leaf1Edx, Leaf7Ebx, Leaf7Ecx};
    [
        (Leaf1Ecx, 0, "sse3"),
        (Leaf1Ecx, 1, "pclmulqdq"),
        (Leaf1Ecx, 9, "ssse3"),
        (Leaf1Ecx, 13, "cx16"),
        (Leaf1Ecx, 19, "sse4_1"),
        (Leaf1Ecx, 20, "sse4_2"),
        (Leaf1Ecx, 23, "popcnt"),
        (Leaf1Ecx, 25, "aes"),
        (Leaf1Edx, 11, "sep"),
        (Leaf1Edx, 13, "pge"),
        (Leaf1Edx, 16, "pat"),
        (Leaf1Edx, 26, "sse2"),
        (Leaf1Edx, 27, "ss"),
        (Leaf7Ebx, 0, "fsgsbase"),
        (Leaf7Ebx, 3, "bmi1"),
        (Leaf7Ebx, 7, "smep"),
        (Leaf7Ebx, 8, "bmi2"),
        (Leaf7Ebx, 9, "erms"),
        (Leaf7Ebx, 19, "adx"),
        (Leaf7Ebx, 23, "clflushopt"),
        (Leaf7Ebx, 24, "clwb"),
        (Leaf7Ebx, 29, "sha_ni"),
        (Leaf7Ecx, 2, "umip"),
        (Leaf7Ecx, 8, "gfni"),
        (Ext1Ecx, 0, "lahf_lm"),
        (Ext1Ecx, 5, "abm"),
        (Ext1Ecx, 6, "sse4a"),
        (Ext1Ecx, 7, "misalignsse"),
        (Ext1Ecx, 8, "3dnowprefetch"),
        (Ext1Edx, 20, "nx"),
        (Ext1Edx, 22, "mmxext"),
        (Ext1Edx, 25, "fxsr_opt"),
        (Ext1Edx, 26, "pdpe1gb"),
        (Ext1Edx, 29, "lm"),
    ]
};

/// A register of the table that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Ext1Ecx,
    Ext1Edx,
}

impl Register {
    const ALL: [Register; 6] = [
        Register::Leaf1Ecx,
        Register::Leaf1Edx,
        Register::Leaf7Ebx,
        Register::Leaf7Ecx,
        Register::Ext1Ecx,
        Register::Ext1Edx,
    ];

    fn read(self, profile: &CpuProfile) -> u32 {
        let entry = |leaf| profile.entry(leaf).unwrap_or_default();
        match self {
            Register::Leaf1Ecx => entry(1).ecx,
            Register::Leaf1Edx => entry(1).edx,
            Register::Leaf7Ebx => entry(7).ebx,
            Register::Leaf7Ecx => entry(7).ecx,
            Register::Ext1Ecx => entry(0x8000_0001).ecx,
            Register::Ext1Edx => entry(0x8000_0001).edx,
        }
    }

    fn name_of(self, bit: u32) -> String {
        let known = FEATURE_NAMES
            .iter()
            .find(|(register, position, _)| (*register, *position) == (self, bit));
        known.map_or_else(|| format!("{self:?} bit {bit}"), |(_, _, name)| (*name).to_owned())
    }
}

/// One leaf of the CPUID table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX at the CPUID instruction.
    pub leaf: u32,
    /// ECX at the CPUID instruction, where the leaf looks at it.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What both hosts of a pair must agree on before the guest's first exit: the CPU it sees, and how interrupts get in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProfile {
    pub cpuid: Vec<CpuidEntry>,
    pub delivery: DeliveryMode,
}

/// Why a profile made on another host cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum ProfileMismatch {
    #[error("the guest's CPU is of vendor {theirs}, this host's of vendor {ours}: use hosts of one vendor")]
    Vendor { theirs: String, ours: String },
    #[error(
        "the guest's CPU has signature {theirs:#x} (family, model), this host's {ours:#x}: use hosts with the same CPU model"
    )]
    Model { theirs: u32, ours: u32 },
    #[error(
        "this host's CPU or KVM lacks `{feature}`, which the guest has: use hosts with the same CPU model and kernel"
    )]
    Feature { feature: String },
    #[error("the guest has {theirs} bits of physical address, this host {ours}: use hosts with the same CPU model")]
    PhysicalWidth { theirs: u32, ours: u32 },
    #[error("the profile has {count} CPUID entries, at most {MAX_CPUID_ENTRIES} are possible: it is damaged")]
    TooLong { count: usize },
    #[error("the profile lacks CPUID leaf {leaf:#x}: it is damaged")]
    LeafMissing { leaf: u32 },
    /// This host's own profile cannot be had.
    #[error(transparent)]
    Host(#[from] CpuError),
}

impl CpuProfile {
    /// The profile of guests on a host whose hypervisor offers these entries.
    #[must_use]
    pub fn of_offered(offered: impl IntoIterator<Item = CpuidEntry>, delivery: DeliveryMode) -> Self {
        let cpuid = offered.into_iter().filter_map(masked).collect();
        CpuProfile { cpuid, delivery }
    }

    /// Whether a host whose own profile is `host` can run guests of this one.
    ///
    /// # Errors
    /// Names the first thing that the host lacks.
    pub fn check_against(&self, host: &CpuProfile) -> Result<(), ProfileMismatch> {
        let count = self.cpuid.len();
        if count > MAX_CPUID_ENTRIES {
            return Err(ProfileMismatch::TooLong { count });
        }
        for leaf in [0, 1, 0x8000_0001] {
            self.entry(leaf).ok_or(ProfileMismatch::LeafMissing { leaf })?;
        }
        let (theirs, ours) = (self.vendor(), host.vendor());
        if theirs != ours {
            return Err(ProfileMismatch::Vendor { theirs, ours });
        }
        let signature = |profile: &CpuProfile| profile.entry(1).unwrap_or_default().eax & FAMILY_MODEL;
        let (theirs, ours) = (signature(self), signature(host));
        if theirs != ours {
            return Err(ProfileMismatch::Model { theirs, ours });
        }
        for register in Register::ALL {
            let lacking = register.read(self) & !register.read(host);
            if lacking != 0 {
                return Err(ProfileMismatch::Feature {
                    feature: register.name_of(lacking.trailing_zeros()),
                });
            }
        }
        let width = |profile: &CpuProfile| profile.entry(0x8000_0008).unwrap_or_default().eax & PHYSICAL_WIDTH;
        let (theirs, ours) = (width(self), width(host));
        if theirs > ours {
            return Err(ProfileMismatch::PhysicalWidth { theirs, ours });
        }
        Ok(())
    }

    fn entry(&self, leaf: u32) -> Option<CpuidEntry> {
        self.cpuid
            .iter()
            .copied()
            .find(|entry| entry.leaf == leaf && entry.subleaf.unwrap_or(0) == 0)
    }

    /// The twelve letters of CPUID leaf 0.
    #[must_use]
    pub fn vendor(&self) -> String {
        let entry = self.entry(0).unwrap_or_default();
        let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What guests see of an entry that KVM offers; `None` if not even its existence.
fn masked(entry: CpuidEntry) -> Option<CpuidEntry> {
    let zero = CpuidEntry {
        leaf: entry.leaf,
        subleaf: entry.subleaf,
        ..CpuidEntry::default()
    };
    let first = entry.subleaf.unwrap_or(0) == 0;
    match entry.leaf {
        0 => Some(CpuidEntry {
            eax: entry.eax.min(MAX_BASIC),
            ..entry
        }),
        1 => Some(CpuidEntry {
            ebx: entry.ebx & LEAF_1_EBX_KEPT | LEAF_1_EBX_ONE_CPU,
            ecx: entry.ecx & LEAF_1_ECX,
            edx: entry.edx & LEAF_1_EDX,
            ..entry
        }),
        4 => Some(CpuidEntry {
            eax: entry.eax & LEAF_4_EAX_KEPT,
            ..entry
        }),
        7 if first => Some(CpuidEntry {
            ebx: entry.ebx & LEAF_7_EBX,
            ecx: entry.ecx & LEAF_7_ECX,
            ..zero
        }),
        0x8000_0000 => Some(CpuidEntry {
            eax: entry.eax.min(MAX_EXTENDED),
            ..entry
        }),
        0x8000_0001 => Some(CpuidEntry {
            ecx: entry.ecx & LEAF_EXT1_ECX,
            edx: entry.edx & LEAF_EXT1_EDX,
            ..entry
        }),
        0x8000_0008 => Some(CpuidEntry {
            eax: entry.eax & LEAF_EXT8_EAX_KEPT,
            ..zero
        }),
        leaf if VERBATIM.contains(&leaf) => Some(entry),
        // A leaf below the maximum that is not listed reads as zero.
        _ => None,
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
