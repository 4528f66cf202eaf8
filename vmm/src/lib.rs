//! The machine, its roles, and everything the `ftvm` binary does.

pub mod audit;
pub mod backends;
pub mod boot;
pub mod cli;
pub mod demo;
pub mod devices;
pub mod hypervisor;
pub mod machine;
pub mod output;
pub mod roles;
pub mod run;
