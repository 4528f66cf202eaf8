//! Everything the `ftvm` binary does: the command line ([`cli`]), its commands ([`command`]), and the two sides of a
//! pair ([`primary`], [`backup`]) with the sockets, threads and clocks of their [`link`] and of what is [`outside`].

#![forbid(unsafe_code)]

pub mod backup;
pub mod cli;
pub mod command;
pub mod control;
pub mod events;
pub mod failure;
pub mod guest;
pub mod link;
pub mod outside;
pub mod primary;
mod signals;
