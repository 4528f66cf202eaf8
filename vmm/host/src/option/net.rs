//! `--net tap=NAME[,...]` or `--net dgram=OWN_SOCKET,remote=OTHER_SOCKET[,...]`

use std::str::FromStr;

use super::{KeyValues, OptionError};
use crate::net::NetConfig;

const KEYS: &[&str] = &["tap", "dgram", "remote", "mac"];

/// `tap=NAME[,mac=MAC]` or `dgram=OWN_SOCKET,remote=OTHER_SOCKET[,mac=MAC]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOption {
    /// Where the card's frames go.
    pub cable: NetConfig,
    /// The card's Ethernet address; one is drawn for a card without.
    pub mac: Option<[u8; 6]>,
}

impl FromStr for NetOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = KeyValues::parse(text, KEYS)?;
        let cable = match (keys.get("tap"), keys.get("dgram"), keys.get("remote")) {
            (Some(name), None, None) => NetConfig::Tap { name: name.to_owned() },
            (None, Some(local), Some(remote)) => NetConfig::Dgram {
                local: local.into(),
                remote: remote.into(),
            },
            _ => return Err(OptionError::NetTarget),
        };
        Ok(NetOption {
            cable,
            mac: keys.get("mac").map(mac_address).transpose()?,
        })
    }
}

fn mac_address(text: &str) -> Result<[u8; 6], OptionError> {
    let wrong = || OptionError::MacAddress(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    // The lowest bit of the first byte marks a group's address (IEEE 802.3), which no card has.
    if parts.next().is_some() || mac[0] & 1 != 0 {
        Err(wrong())
    } else {
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_one_cable_and_perhaps_an_address() {
        let net: NetOption = "tap=tap0,mac=52:54:00:12:34:56".parse().expect("a card");
        assert_eq!(net.mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(net.cable, NetConfig::Tap { name: "tap0".into() });
        let net: NetOption = "dgram=/x,remote=/y".parse().expect("a card");
        let cable = NetConfig::Dgram {
            local: "/x".into(),
            remote: "/y".into(),
        };
        assert_eq!((net.cable, net.mac), (cable, None));
    }

    #[test]
    fn what_is_no_card_is_refused_with_its_reason() {
        let mac = |text: &str| OptionError::MacAddress(text.to_owned());
        for (text, reason) in [
            ("tap=a,dgram=b", OptionError::NetTarget),
            ("dgram=/x", OptionError::NetTarget),
            ("mac=52:54:00:12:34:56", OptionError::NetTarget),
            ("tap=a,mac=53:54:00:12:34:56", mac("53:54:00:12:34:56")),
            ("tap=a,mac=1:2", mac("1:2")),
            ("tap=a,mac=52:54:00:12:34:56:78", mac("52:54:00:12:34:56:78")),
            ("tap=a,mac=52:54:00:12:34:xx", mac("52:54:00:12:34:xx")),
        ] {
            assert_eq!(text.parse::<NetOption>(), Err(reason), "{text}");
        }
    }
}
