//! A guest as one machine: its CPU, its RAM and its devices, how it is booted, and which of its effects are outputs.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what a guest is made of |
//! | [`machine`] | exits in, effects out: the same on both sides of a pair |
//! | [`boot`] | kernels into RAM, and what is rewritten in them |
//! | [`output`] | which effects the output rule holds back |
//! | [`audit`] | what in an image could make a replay diverge |

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
#![forbid(unsafe_code)]

pub mod audit;
pub mod boot;
pub mod config;
#[cfg(test)]
mod golden_errors;
pub mod machine;
pub mod output;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
