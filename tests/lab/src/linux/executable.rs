//! The smallest file that Linux executes, around a few instructions.

/// Where the program is loaded: any page beyond what Linux keeps unmapped.
const BASE: u64 = 0x40_0000;
/// Sizes of ELF64's file header and program header (System V ABI, chapters 4 and 5).
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// A static ELF64 executable with one segment, entered at the first byte of `code`.
pub(super) fn of(code: &[u8]) -> Vec<u8> {
    let start = u64::from(HEADER + PROGRAM_HEADER);
    let size = start + code.len() as u64;
    // ELF64, little endian, version 1, System V.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    // Executable, x86-64, version 1; entry, program headers, no section headers; flags; sizes and numbers of headers.
    half(&mut file, &[2, 62]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + start, u64::from(HEADER), 0]);
    word(&mut file, &[0]);
    half(&mut file, &[HEADER, PROGRAM_HEADER, 1, 0, 0, 0]);
    // Load, readable and executable; offset, addresses, sizes, alignment.
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(code);
    file
}
