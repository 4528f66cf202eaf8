//! What every image must be: loadable as the boot contract says, and made of instructions that every KVM can run.

use guest_abi::{IMAGE_BASE, IMAGE_LIMIT};
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic};

use super::*;

/// What may appear anywhere in a guest: the integer instruction set of the first x86-64 CPUs.
const ALLOWED: [CpuidFeature; 12] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::CX8,
    CpuidFeature::CPUID,
];

/// Integer instructions that a software KVM's emulator lacks, or that change IF or the outcome from host to host.
/// `int3` is left out: it is the padding between functions.
const FORBIDDEN: [Mnemonic; 8] = [
    Mnemonic::Int,
    Mnemonic::Into,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Rdtsc,
    Mnemonic::Cpuid,
    Mnemonic::Syscall,
    Mnemonic::Vmcall,
];

struct Segment<'a> {
    executable: bool,
    physical: u64,
    memory_size: u64,
    bytes: &'a [u8],
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size]
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn segments(image: &[u8]) -> Vec<Segment<'_>> {
    assert_eq!(&image[..6], b"\x7fELF\x02\x01", "ELF64, little-endian");
    assert_eq!(
        (number(image, 16, 2), number(image, 18, 2)),
        (2, 62),
        "ET_EXEC for x86-64"
    );
    let (table, count) = (number(image, 32, 8), number(image, 56, 2));
    let headers = (0..count).map(|index| &image[usize::try_from(table + index * 56).unwrap()..][..56]);
    headers
        .filter(|header| number(header, 0, 4) == 1)
        .map(|header| {
            let start = usize::try_from(number(header, 8, 8)).unwrap();
            let size = usize::try_from(number(header, 32, 8)).unwrap();
            Segment {
                executable: number(header, 4, 4) & 1 != 0,
                physical: number(header, 24, 8),
                memory_size: number(header, 40, 8),
                bytes: &image[start..start + size],
            }
        })
        .collect()
}

/// The instructions of `code` that a guest must not contain, as text.
fn unfit(code: &[u8], ip: u64) -> Vec<String> {
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut found = Vec::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let features = instruction.cpuid_features();
        // `tzcnt` is `rep bsf`: the compiler writes it only where the operand is not zero, and there both are the same.
        let allowed =
            instruction.mnemonic() == Mnemonic::Tzcnt || features.iter().all(|feature| ALLOWED.contains(feature));
        if !allowed || instruction.is_invalid() || FORBIDDEN.contains(&instruction.mnemonic()) {
            found.push(format!("{:#x}: {instruction} {features:?}", instruction.ip()));
        }
    }
    found
}

#[test]
fn images_contain_only_instructions_that_every_kvm_runs() {
    for guest in all() {
        for segment in segments(guest.image).iter().filter(|segment| segment.executable) {
            let found = unfit(segment.bytes, segment.physical);
            assert!(found.is_empty(), "{}: {found:#?}", guest.name);
        }
    }
}

#[test]
fn the_instruction_check_sees_what_it_is_for() {
    let unfit_code: [&[u8]; 8] = [
        &[0x0f, 0x10, 0x07],             // movups xmm0, [rdi]
        &[0x66, 0x0f, 0x6f, 0xc1],       // movdqa xmm0, xmm1
        &[0xd9, 0xe8],                   // fld1
        &[0xf3, 0x0f, 0xb8, 0xc7],       // popcnt eax, edi
        &[0xf3, 0x0f, 0xbd, 0xc7],       // lzcnt eax, edi: another result where it runs as bsr
        &[0x48, 0x0f, 0xc7, 0x0f],       // cmpxchg16b [rdi]
        &[0x0f, 0x31],                   // rdtsc
        &[0xc4, 0xe2, 0xf0, 0xf2, 0xc2], // andn rax, rcx, rdx
    ];
    for code in unfit_code {
        assert_eq!(unfit(code, 0).len(), 1, "{code:x?}");
    }
    assert_eq!(
        unfit(
            &[
                0x48, 0x0f, 0xaf, 0xc7, 0xf3, 0x48, 0xa5, 0xf3, 0x0f, 0xbc, 0xc7, 0xcc, 0xc3
            ],
            0
        ),
        Vec::<String>::new()
    );
}

#[test]
fn images_load_where_the_boot_contract_says() {
    for guest in all() {
        let segments = segments(guest.image);
        assert!(!segments.is_empty(), "{}: no segment to load", guest.name);
        for segment in &segments {
            let end = segment.physical + segment.memory_size;
            assert!(
                segment.physical >= IMAGE_BASE && end <= IMAGE_LIMIT,
                "{}: {:#x}",
                guest.name,
                segment.physical
            );
            assert!(segment.memory_size >= segment.bytes.len() as u64, "{}", guest.name);
        }
        let entry = number(guest.image, 24, 8);
        let inside = |segment: &Segment<'_>| {
            segment.executable && (segment.physical..segment.physical + segment.memory_size).contains(&entry)
        };
        assert!(
            segments.iter().any(inside),
            "{}: entry point {entry:#x} is not in its code",
            guest.name
        );
    }
}

#[test]
fn guests_are_found_by_name() {
    for guest in all() {
        assert_eq!(find(guest.name), Some(guest));
    }
    assert_eq!(find("no such guest"), None);
}
