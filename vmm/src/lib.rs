//! The machine, its roles, and everything the `ftvm` binary does.

pub mod backends;
pub mod demo;
pub mod devices;
pub mod hypervisor;
