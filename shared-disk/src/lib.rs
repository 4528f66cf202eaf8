//! Disks that both hosts can reach.

pub mod request;
