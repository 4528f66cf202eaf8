//! Telling the switches where a network card now is (PROTOCOL 22).
//!
//! A frame *from* the card's address is all a switch needs to learn the new port. A reverse-ARP request (RFC 903) is
//! one that no host answers and that needs no IP address, which is why live migration uses it too. It is no output of
//! the guest: it is sent beside the output sequence, and repeated because nobody acknowledges it.

/// Length of the announcement: the shortest frame Ethernet allows, without its check sequence.
pub const RARP_LEN: usize = 60;

/// EtherType of reverse ARP.
pub const RARP_ETHERTYPE: u16 = 0x8035;

/// A reverse-ARP request, broadcast, in which the card at `mac` asks for its own address (RFC 903).
#[must_use]
pub fn rarp_frame(mac: [u8; 6]) -> [u8; RARP_LEN] {
    const BROADCAST: [u8; 6] = [0xFF; 6];
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4, operation 3 (request reverse).
    const FIXED: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 3];
    const NO_IP: [u8; 4] = [0; 4];
    let mut frame = [0; RARP_LEN];
    let ethertype = RARP_ETHERTYPE.to_be_bytes();
    let fields: [&[u8]; 8] = [&BROADCAST, &mac, &ethertype, &FIXED, &mac, &NO_IP, &mac, &NO_IP];
    let mut at = 0;
    for field in fields {
        frame[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_rfc_903() {
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let frame = rarp_frame(mac);
        assert_eq!(frame[0..6], [0xFF; 6], "to everybody");
        assert_eq!(frame[6..12], mac, "from the card: this is what switches learn");
        assert_eq!(frame[12..14], [0x80, 0x35], "reverse ARP");
        assert_eq!(
            frame[14..22],
            [0, 1, 8, 0, 6, 4, 0, 3],
            "Ethernet, IPv4, request reverse"
        );
        assert_eq!(frame[22..28], mac, "sender hardware address");
        assert_eq!(frame[28..32], [0; 4], "sender protocol address: unknown");
        assert_eq!(frame[32..38], mac, "target hardware address");
        assert_eq!(frame[38..60], [0; 22], "target protocol address and padding");
    }
}
