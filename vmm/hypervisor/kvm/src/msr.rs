//! Which model-specific registers belong to a vCPU's state.
//!
//! KVM's own list (KVM_GET_MSR_INDEX_LIST) and the memory type range registers, less those that show the host's time
//! and those of paravirtual interfaces that guests do not have; of the rest, what this vCPU lets us read and write
//! back.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::ioctl::kvm_error;
use super::system::System;
use ftvm_hypervisor::CpuError;

/// IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST, IA32_TSC_DEADLINE.
const TIME: [u32; 3] = [0x10, 0x3b, 0x6e0];
/// KVM's and Hyper-V's paravirtual MSRs.
const PARAVIRTUAL: [std::ops::RangeInclusive<u32>; 2] = [0x4000_0000..=0x4000_ffff, 0x4b56_4d00..=0x4b56_4dff];
/// MTRRs, which older kernels do not list: variable ranges, fixed ranges, default type.
const MTRRS: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x277..=0x277,
    0x2ff..=0x2ff,
];
/// IA32_SYSENTER_ESP and IA32_SYSENTER_EIP. On AMD KVM keeps only the low half of what is written from outside
/// (SYSENTER does not exist in AMD's 64-bit mode), so a saved value would come back truncated.
const SYSENTER: [u32; 2] = [0x175, 0x176];
/// A value for trying out SYSENTER's MSRs: a kernel address, whose upper half is lost where KVM keeps only 32 bits.
const WIDE: u64 = 0xffff_8000_1234_5678;
/// Most MSRs of a state: more than any KVM has, and the bound on what a damaged state record can make us do.
pub(super) const MAX_MSRS: usize = 256;

/// Why the MSRs of a state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MsrError {
    #[error("a vCPU state with {count} MSRs, at most {MAX_MSRS}: it is damaged")]
    TooMany { count: usize },
    #[error(
        "this host's KVM does not take {value:#x} for MSR {index:#x}: use hosts with the same CPU model and kernel"
    )]
    Refused { index: u32, value: u64 },
    #[error("KVM no longer reads MSR {index:#x}, which it read at the start")]
    Lost { index: u32 },
}

/// Index of every MSR to be saved and restored, ascending.
pub(super) fn saved_msrs(system: &System, vcpu: &VcpuFd) -> Result<Vec<u32>, CpuError> {
    let listed = system
        .kvm
        .get_msr_index_list()
        .map_err(kvm_error("KVM_GET_MSR_INDEX_LIST"))?;
    let candidates = candidates(listed.as_slice());
    let readable = read(vcpu, &candidates)?;
    let mut kept = Vec::with_capacity(readable.len());
    for (index, value) in writable(vcpu, &readable)? {
        if !SYSENTER.contains(&index) || keeps_all_bits(vcpu, index, value)? {
            kept.push(index);
        }
    }
    Ok(kept)
}

fn candidates(listed: &[u32]) -> Vec<u32> {
    let mut candidates: Vec<u32> = listed.iter().copied().chain(MTRRS.into_iter().flatten()).collect();
    candidates.retain(|index| !TIME.contains(index) && !PARAVIRTUAL.iter().any(|range| range.contains(index)));
    candidates.sort_unstable();
    candidates.dedup();
    candidates.truncate(MAX_MSRS);
    candidates
}

/// Values of those of `indices` that can be read.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, CpuError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("at most MAX_MSRS entries");
        // KVM stops at the first that it cannot read, and says how many it has read.
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(kvm_error("reading MSRs (KVM_GET_MSRS)"))?;
        values.extend(msrs.as_slice()[..count].iter().map(|msr| (msr.index, msr.data)));
        rest = &rest[(count + 1).min(rest.len())..];
    }
    Ok(values)
}

/// Those of `values` that can be written back.
fn writable(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<Vec<(u32, u64)>, CpuError> {
    let mut taken = Vec::with_capacity(values.len());
    let mut rest = values;
    while !rest.is_empty() {
        let count = write_some(vcpu, rest)?;
        taken.extend_from_slice(&rest[..count]);
        rest = &rest[(count + 1).min(rest.len())..];
    }
    Ok(taken)
}

/// Writes all of `values`, at most [`MAX_MSRS`].
///
/// # Errors
/// Names the MSR and value that this host's KVM does not take.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), CpuError> {
    if values.len() > MAX_MSRS {
        let count = values.len();
        return Err(CpuError::unsupported(MsrError::TooMany { count }));
    }
    let count = write_some(vcpu, values)?;
    match values.get(count) {
        None => Ok(()),
        Some((index, value)) => Err(CpuError::unsupported(MsrError::Refused {
            index: *index,
            value: *value,
        })),
    }
}

/// Writes until the first that KVM refuses; how many it took.
fn write_some(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<usize, CpuError> {
    let entries: Vec<_> = values.iter().map(|(index, value)| entry(*index, *value)).collect();
    let msrs = Msrs::from_entries(&entries).expect("callers bound the number by MAX_MSRS");
    vcpu.set_msrs(&msrs).map_err(kvm_error("writing MSRs (KVM_SET_MSRS)"))
}

fn keeps_all_bits(vcpu: &VcpuFd, index: u32, original: u64) -> Result<bool, CpuError> {
    let written = write_some(vcpu, &[(index, WIDE)])?;
    let read_back = read(vcpu, &[index])?;
    write_some(vcpu, &[(index, original)])?;
    Ok(written == 1 && read_back == [(index, WIDE)])
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        reserved: 0,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_ascending_without_time_and_paravirtual_msrs() {
        let listed = [
            0x176,
            0x10,
            0x3b,
            0x6e0,
            0x4b56_4d00,
            0x4b56_4d07,
            0x4000_0000,
            0xc000_0081,
            0x174,
            0x2ff,
        ];
        let candidates = candidates(&listed);
        assert!(candidates.is_sorted_by(|a, b| a < b), "{candidates:x?}");
        for absent in [0x10, 0x3b, 0x6e0, 0x4b56_4d00, 0x4b56_4d07, 0x4000_0000] {
            assert!(!candidates.contains(&absent), "{absent:#x}");
        }
        for present in [0x174, 0x176, 0xc000_0081, 0x200, 0x2ff, 0x277] {
            assert!(candidates.contains(&present), "{present:#x}");
        }
    }
}
