//! The ACPI power-management timer at port 0x608 (ACPI 6.5, section 4.8.2.1): 24 bits at 3.579545 MHz.
//!
//! Linux takes it as its clock source (`pmtmr=0x608`): one `inl`, one logged clock, no TSC. It is a function of the
//! virtual clock alone and has no state. It wraps every 4.69 s, so the guest must see time in smaller steps (PROTOCOL
//! 20).

use super::timebase::Oscillator;

/// First of the four ports.
pub(super) const PORT: u16 = 0x608;

const CLOCK: Oscillator = Oscillator::new(3_579_545);
const MASK: u64 = (1 << 24) - 1;

/// Whether the timer answers at this port.
pub(super) fn claims(port: u16) -> bool {
    (PORT..PORT + 4).contains(&port)
}

/// Fills `data` with the bytes of the counter that begin at `port`; behind the fourth there is nothing (0xFF).
pub(super) fn read(port: u16, data: &mut [u8], now: u64) {
    let counter = (CLOCK.ticks(now) & MASK).to_le_bytes();
    for (byte, index) in data.iter_mut().zip(usize::from(port - PORT)..) {
        *byte = if index < 4 { counter[index] } else { 0xFF };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_at(now: u64) -> u32 {
        let mut data = [0; 4];
        read(PORT, &mut data, now);
        u32::from_le_bytes(data)
    }

    #[test]
    fn counts_at_its_frequency_and_wraps_at_24_bits() {
        assert_eq!(read_at(0), 0);
        assert_eq!(read_at(1_000_000_000), 3_579_545);
        let wrap = CLOCK.ns_at(1 << 24);
        assert_eq!(read_at(wrap - 1), 0xFF_FFFF);
        assert_eq!(read_at(wrap), 0);
    }

    #[test]
    fn bytes_and_words_are_parts_of_the_counter() {
        let now = 123_456_789;
        let whole = read_at(now).to_le_bytes();
        for offset in 0..4u16 {
            let mut data = [0; 2];
            read(PORT + offset, &mut data, now);
            assert_eq!(data[0], whole[usize::from(offset)]);
            assert_eq!(data[1], whole.get(usize::from(offset) + 1).copied().unwrap_or(0xFF));
        }
    }
}
