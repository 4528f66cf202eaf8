//! The machine, its roles, and everything the `ftvm` binary does.

pub mod devices;
pub mod hypervisor;
