//! What `ftvm demo` shows a failover with: a network, a client, and a picture.
//!
//! Everything runs on one machine without root: [`hub`] is an Ethernet switch over Unix sockets, [`client`] a TCP client
//! with its own stack on it, whose one connection must outlive the primary, [`relay`] a cable for the logging channel
//! that can be cut without anybody being told, and [`timeline`] draws what happened. [`command`] brings them together with the
//! processes of two hosts, kills, and figures.

#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod hub;
pub mod relay;
mod switch;
pub mod timeline;
