//! `ftvm run`: shells around the pure cores, with the sockets, files, threads and clocks.

pub mod accept;
pub mod clone;
pub mod copies;
pub mod disk_threads;
pub mod door;
pub mod events;
pub mod fence;
pub mod follow;
pub mod health;
pub mod heartbeat;
pub mod join;
pub mod lead;
pub mod link;
pub mod marks;
pub mod mirror;
pub mod outside;
pub mod pair;
pub mod protect;
mod shell;
pub mod vcpu;

use crate::{control, guest};
