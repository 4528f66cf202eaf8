//! The texts that users see, word for word: a change here is a change of what they read.

use std::error::Error as _;
use std::io;

use ftvm_hypervisor::{CpuError, Exit};
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::msr::MsrError;
use crate::profile::TableTooLong;
use crate::selftest::NoLinux;
use crate::selftest::bench::TestGuestError;
use crate::system::SystemError;
use crate::vcpu::StepStarved;
use crate::vm::RegionError;

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[test]
fn why_kvm_cannot_be_used_reads_as_it_always_did() {
    let texts = [
        SystemError::Missing {
            source: os(libc::ENOENT),
        },
        SystemError::Forbidden {
            source: os(libc::EACCES),
        },
        SystemError::NoDriver {
            source: os(libc::ENODEV),
        },
        SystemError::ApiVersion { version: 11 },
        SystemError::Capability {
            capability: "KVM_CAP_X",
            purpose: "testing",
        },
        SystemError::Busy {
            source: os(libc::EBUSY),
        },
    ]
    .map(|error| error.to_string());
    let expected = [
        "there is no /dev/kvm: enable virtualization (VT-x or AMD-V) in the firmware, or nested virtualization if this host is \
         itself a virtual machine, then `modprobe kvm_intel` or `modprobe kvm_amd`; in a container, pass the device in \
         (No such file or directory (os error 2))",
        "no permission to open /dev/kvm: add your user to the group kvm (`sudo usermod -aG kvm $USER`) and log in again \
         (Permission denied (os error 13))",
        "/dev/kvm exists but no KVM driver stands behind it: load one (`modprobe kvm_intel` or `modprobe kvm_amd`) and see \
         `dmesg` for why it would not start (No such device (os error 19))",
        "/dev/kvm speaks API version 11, expected 12: use a mainline Linux kernel",
        "this host's KVM lacks KVM_CAP_X, needed for testing: use Linux 5.10 or newer on the host",
        "KVM is in use by another hypervisor (VirtualBox, VMware, ...): stop its machines or unload its module \
         (Device or resource busy (os error 16))",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_a_guest_cannot_go_on_reads_as_it_always_did() {
    let found = Exit::PortWrite {
        port: 0x11,
        size: 1,
        count: 1,
    };
    let (guest_address, source) = (0x1000, GuestMemoryError::InvalidGuestAddress(GuestAddress(0x1000)));
    let (reason, remedy) = ("emulated".to_owned(), "use hardware".to_owned());
    let texts = [
        MsrError::TooMany { count: 257 }.to_string(),
        MsrError::Refused { index: 0x277, value: 7 }.to_string(),
        MsrError::Lost { index: 0x277 }.to_string(),
        TableTooLong { count: 257 }.to_string(),
        RegionError::NotWholePages {
            guest_address,
            size: 0x1800,
        }
        .to_string(),
        RegionError::NoHostAddress { guest_address, source }.to_string(),
        StepStarved.to_string(),
        TestGuestError::Hangs { rip: 0x1_0000 }.to_string(),
        TestGuestError::Astray {
            port: 0x10,
            found,
            rip: 0x1_0000,
        }
        .to_string(),
        NoLinux::Unfit { reason, remedy }.to_string(),
        NoLinux::Untested.to_string(),
    ];
    let expected = [
        "a vCPU state with 257 MSRs, at most 256: it is damaged",
        "this host's KVM does not take 0x7 for MSR 0x277: use hosts with the same CPU model and kernel",
        "KVM no longer reads MSR 0x277, which it read at the start",
        "a CPU profile of 257 CPUID entries is too long",
        "guest memory at 0x1000, 0x1800 bytes: regions must be whole pages of 4096 bytes",
        "guest memory at 0x1000: Guest memory error: invalid guest address 4096",
        "signals interrupted a single step 100000 times: some timer of this process is far too fast",
        "a test guest hangs at 0x10000: 60s without an exit",
        "a test guest should write to port 0x10, but did PortWrite { port: 11, size: 1, count: 1 } at 0x10000",
        "emulated. use hardware",
        "this host has not been tested for Linux guests",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_host_s_answer_is_kept_below_the_advice() {
    let error = CpuError::unsupported(SystemError::Missing {
        source: os(libc::ENOENT),
    });
    let answer = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(answer.and_then(io::Error::raw_os_error), Some(libc::ENOENT));
}
