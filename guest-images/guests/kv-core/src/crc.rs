//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), eight bytes a step, without the CPU's own instruction for it.

/// Reflected polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

static TABLES: [[u32; 256]; 8] = tables();

#[allow(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The CRC of `bytes`, continuing from the CRC of what comes before them (0 at the beginning).
#[must_use]
pub fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    let look_up = |table: usize, byte: u8| TABLES[table][usize::from(byte)];
    let mut crc = !before;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let first = crc.to_le_bytes();
        crc = (0..8).fold(0, |sum, at| {
            let byte = if at < 4 { word[at] ^ first[at] } else { word[at] };
            sum ^ look_up(7 - at, byte)
        });
    }
    for &byte in words.remainder() {
        crc = (crc >> 8) ^ look_up(0, crc.to_le_bytes()[0] ^ byte);
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_that_of_rfc_3720() {
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn crc_continues_at_any_cut() {
        let bytes: Vec<u8> = (0..100).collect();
        for cut in 0..bytes.len() {
            assert_eq!(crc32c(crc32c(0, &bytes[..cut]), &bytes[cut..]), crc32c(0, &bytes));
        }
    }
}
