//! The seeded simulator: the two roles of the protocol, as they are in production, in a world of simulated time, network,
//! storage and outside (PROTOCOL, last section). One seed is one history, byte for byte.

#![forbid(unsafe_code)]

mod backup;
pub mod checks;
mod common;
mod env;
mod guest;
mod network;
pub mod plants;
mod primary;
mod process;
mod rng;
mod storage;
mod world;

pub use world::{Options, Run, run};
