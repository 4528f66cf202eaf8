//! The tests that see the whole: with real processes on a real KVM, in emulated hosts, and in the simulator.
//!
//! One program, since each would link everything anew; a module for each matter.

#![forbid(unsafe_code)]
#![cfg(test)]

mod arbiter;
mod audit;
mod chaos;
mod clone;
mod control;
mod demo;
mod demo_scripts;
mod docs;
mod hostile;
mod hypervisor;
mod kv;
mod linux;
mod linux_boot;
mod linux_image;
mod mirror;
mod nested;
mod pair;
mod paths;
mod replay;
mod simulation;
mod standby;
mod storage;
mod tidy;
mod walls;

/// Exits that a long form of a test is to record and replay, if one is asked for.
fn soak_exits() -> Option<u64> {
    let wanted = std::env::var("FTVM_SOAK_EXITS").ok()?;
    Some(wanted.parse().expect("FTVM_SOAK_EXITS is a number of exits"))
}
