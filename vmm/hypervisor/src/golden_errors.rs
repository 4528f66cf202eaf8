//! The texts that users see, word for word: a change here is a change of what they read.

use std::error::Error as _;
use std::io;

use vm_memory::{GuestAddress, GuestMemoryError};

use crate::CpuError;
use crate::profile::ProfileMismatch;
use crate::scripted::ScriptError;

#[test]
fn every_error_reads_as_it_always_did() {
    let call = "KVM_GET_SREGS";
    let source = io::Error::from_raw_os_error(22);
    let no_ram = ScriptError::NoRam {
        addr: 0x7000,
        source: GuestMemoryError::InvalidGuestAddress(GuestAddress(0x7000)),
    };
    let place = "Program(3)".to_owned();
    let (theirs, ours) = ("AuthenticAMD".to_owned(), "GenuineIntel".to_owned());
    let feature = "aes".to_owned();
    let texts = [
        CpuError::Call { call, source }.to_string(),
        CpuError::unsupported(no_ram).to_string(),
        ScriptError::NoUserMode.to_string(),
        ScriptError::ForeignState { place }.to_string(),
        ProfileMismatch::Vendor { theirs, ours }.to_string(),
        ProfileMismatch::Model {
            theirs: 0x8_00f10,
            ours: 0x6_06a0,
        }
        .to_string(),
        ProfileMismatch::Feature { feature }.to_string(),
        ProfileMismatch::PhysicalWidth { theirs: 48, ours: 46 }.to_string(),
        ProfileMismatch::TooLong { count: 257 }.to_string(),
        ProfileMismatch::LeafMissing { leaf: 0x8000_0001 }.to_string(),
        ProfileMismatch::Host(CpuError::unsupported(ScriptError::NoUserMode)).to_string(),
    ];
    let expected = [
        "KVM_GET_SREGS: Invalid argument (os error 22)",
        "the script accesses 0x7000, where no RAM is: Guest memory error: invalid guest address 28672",
        "the scripted CPU has no user mode",
        "a state of another script: Program(3)",
        "the guest's CPU is of vendor AuthenticAMD, this host's of vendor GenuineIntel: use hosts of one vendor",
        "the guest's CPU has signature 0x800f10 (family, model), this host's 0x606a0: use hosts with the same CPU model",
        "this host's CPU or KVM lacks `aes`, which the guest has: use hosts with the same CPU model and kernel",
        "the guest has 48 bits of physical address, this host 46: use hosts with the same CPU model",
        "the profile has 257 CPUID entries, at most 256 are possible: it is damaged",
        "the profile lacks CPUID leaf 0x80000001: it is damaged",
        "the scripted CPU has no user mode",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn an_error_keeps_the_one_below_it() {
    let source = io::Error::from_raw_os_error(22);
    let error = CpuError::Call {
        call: "KVM_RUN",
        source,
    };
    assert!(error.source().is_some_and(|source| source.is::<io::Error>()));
    let source = GuestMemoryError::InvalidGuestAddress(GuestAddress(0));
    let error = CpuError::unsupported(ScriptError::NoRam { addr: 0, source });
    assert!(error.source().is_some_and(|source| source.is::<GuestMemoryError>()));
}
