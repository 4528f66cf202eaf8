//! The command line, and how memory is shared out.

use core::fmt;
use core::net::{AddrParseError, Ipv4Addr};
use core::num::ParseIntError;
use core::str::FromStr;

use guest_rt::CommandLine;
use kv_core::connection::Limits;
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

/// Bytes of a socket's buffers.
#[derive(Clone, Copy)]
pub struct Buffers {
    pub receive: usize,
    pub transmit: usize,
}

impl Buffers {
    /// Of a client that is served: a large window, because a failover is a time without acknowledgements.
    pub const LARGE: Buffers = Buffers {
        receive: 64 << 10,
        transmit: 32 << 10,
    };
    /// Of one that is told that there are too many: room for its first request, which nobody reads, and for the error.
    pub const SMALL: Buffers = Buffers {
        receive: 128,
        transmit: 256,
    };

    const fn sum(self) -> usize {
        self.receive + self.transmit
    }
}

/// Connections of clients that were served and have not quite ended.
const LEAVING: usize = 14;
/// Clients that are told at a time that there are too many. Their buffers take 192 KiB of TCP's memory.
pub const MAX_REFUSALS: usize = 512;
const MAX_CLIENTS: usize = 128;
/// Least heap: that which makes 64 clients.
pub const MIN_HEAP: usize = 30 << 20;

/// How the heap is shared out: a quarter to TCP's buffers, an eighth to requests and replies, half to the store by its own
/// estimate. The last eighth is for the log's frames, what is known of each connection, and what estimates and
/// fragmentation miss.
#[derive(Clone, Copy)]
pub struct Shares {
    pub connections: Limits,
    pub session_memory: usize,
    pub max_reply: usize,
    pub max_store: usize,
}

impl Shares {
    pub fn of(heap: usize) -> Self {
        let session_memory = heap / 8;
        Self {
            connections: Limits {
                clients: large_places(heap).saturating_sub(LEAVING).min(MAX_CLIENTS),
                leaving: LEAVING,
                refusals: MAX_REFUSALS,
            },
            session_memory,
            max_reply: session_memory / 4,
            max_store: heap / 2,
        }
    }
}

/// Large sockets for which TCP's quarter of the heap has room, beside the small ones.
const fn large_places(heap: usize) -> usize {
    (heap / 4).saturating_sub(MAX_REFUSALS * Buffers::SMALL.sum()) / Buffers::LARGE.sum()
}

const _: () = assert!(large_places(MIN_HEAP) >= 64 + LEAVING);
