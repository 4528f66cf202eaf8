//! The command line, and how memory is shared out.

use core::fmt;
use core::net::{AddrParseError, Ipv4Addr};
use core::num::ParseIntError;
use core::str::FromStr;

use guest_rt::CommandLine;
use kv_core::log::FlushPolicy;

/// What the command line says.
pub struct Config {
    pub address: Address,
    pub gateway: Ipv4Addr,
    pub port: u16,
    pub append_fsync: FlushPolicy,
    pub format: Format,
}

impl Config {
    /// Reads the command line. What is wrong with it ends the guest.
    pub fn parse(cmdline: CommandLine<'_>) -> Self {
        cmdline.allow(&["ip", "gw", "port", "appendfsync", "format"]);
        let default = Address {
            ip: Ipv4Addr::new(192, 168, 7, 2),
            prefix: 24,
        };
        Self {
            address: cmdline.get("ip", default),
            gateway: cmdline.get("gw", Ipv4Addr::new(192, 168, 7, 1)),
            port: cmdline.get("port", 6379),
            append_fsync: cmdline.get("appendfsync", FlushPolicy::EverySecond),
            format: cmdline.get("format", Format::IfBlank),
        }
    }
}

/// When the disk is formatted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    IfBlank,
    Always,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "no" => Ok(Format::IfBlank),
            "yes" => Ok(Format::Always),
            _ => Err("expected yes or no"),
        }
    }
}

/// An address with the length of its network's prefix, as in 192.168.7.2/24.
#[derive(Clone, Copy)]
pub struct Address {
    pub ip: Ipv4Addr,
    pub prefix: u8,
}

/// What is wrong with an address.
pub enum AddressError {
    NoPrefix,
    Ip(AddrParseError),
    Prefix(ParseIntError),
    PrefixTooLong(u8),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::NoPrefix => f.write_str("expected ADDRESS/PREFIX, as in 192.168.7.2/24"),
            AddressError::Ip(error) => write!(f, "{error}"),
            AddressError::Prefix(error) => write!(f, "prefix: {error}"),
            AddressError::PrefixTooLong(prefix) => write!(f, "prefix {prefix} is longer than 32"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ip, prefix) = text.split_once('/').ok_or(AddressError::NoPrefix)?;
        let prefix = prefix.parse().map_err(AddressError::Prefix)?;
        if prefix > 32 {
            return Err(AddressError::PrefixTooLong(prefix));
        }
        Ok(Self {
            ip: ip.parse().map_err(AddressError::Ip)?,
            prefix,
        })
    }
}

/// Bytes of each TCP receive and transmit buffer: a large window, because a failover is a time without acknowledgements.
pub const RECEIVE_BUFFER: usize = 64 << 10;
pub const TRANSMIT_BUFFER: usize = 32 << 10;
/// Connections that listen for clients, or tell those beyond the limit that there are too many.
pub const SPARE_CONNECTIONS: usize = 16;
const MAX_CLIENTS: usize = 128;
/// Least heap: that which makes 64 clients.
pub const MIN_HEAP: usize = 30 << 20;

/// How the heap is shared out: a quarter to TCP's buffers, an eighth to requests and replies, half to the store by its own
/// estimate. The last eighth is for the log's frames and for what estimates and fragmentation miss.
#[derive(Clone, Copy)]
pub struct Shares {
    pub max_clients: usize,
    pub session_memory: usize,
    pub max_reply: usize,
    pub max_store: usize,
}

impl Shares {
    pub fn of(heap: usize) -> Self {
        let connections = heap / 4 / (RECEIVE_BUFFER + TRANSMIT_BUFFER);
        let session_memory = heap / 8;
        Self {
            max_clients: connections.saturating_sub(SPARE_CONNECTIONS).min(MAX_CLIENTS),
            session_memory,
            max_reply: session_memory / 4,
            max_store: heap / 2,
        }
    }
}

const _: () = assert!(MIN_HEAP / 4 / (RECEIVE_BUFFER + TRANSMIT_BUFFER) >= 64 + SPARE_CONNECTIONS);
