//! The key-value store of the guest `kv`, without its devices: protocol, commands, store and append-only log.
//!
//! Everything here is a function of its arguments: requests and time go in, replies, log records and disk steps come out.
//! The guest's program around it owns the sockets and the disk. That keeps a guest's behaviour a function of its inputs,
//! and lets this part be tested on the host, broken clients and torn disks included. It speaks RESP2 as Redis 5 does, so
//! that stock `redis-cli` and `redis-benchmark` are its clients. Values are strings: a Redis with all its types runs in a
//! Linux guest. Integer code only.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod command;
pub mod connection;
pub mod crc;
pub mod engine;
pub mod journal;
pub mod log;
pub mod reply;
pub mod resp;
pub mod session;
pub mod store;
