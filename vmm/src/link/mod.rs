//! What both roles of a pair have of the link in production: connections, heartbeats, handshakes, and the vCPU thread's channel.
//!
//! | module | what it is |
//! |---|---|
//! | [`shell`] | the world of a link (`roles::link::world`), as far as both sides share it |
//! | [`connection`] | a TCP connection as two tasks that turn what happens into events |
//! | [`heartbeats`] | heartbeats over UDP |
//! | [`handshakes`] | where peers that want to join are heard, beside the link |
//! | [`listening`] | a primary's listening sockets, and what it offers there |
//! | [`pages`], [`blocks`] | RAM and private disks on their way to a joining backup, beside the link |
//! | [`vcpu`] | the vCPU thread, and how it speaks to the link |

pub mod blocks;
pub mod connection;
pub mod handshakes;
pub mod heartbeats;
pub mod listening;
pub mod pages;
pub mod shell;
pub mod vcpu;
