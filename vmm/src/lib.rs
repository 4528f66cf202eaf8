//! Everything the `ftvm` binary does: the command line ([`cli`]), its commands ([`command`]), and the roles of a pair with
//! their sockets, threads and clocks ([`run`]).

#![forbid(unsafe_code)]

pub mod cli;
pub mod command;
pub mod control;
pub mod failure;
pub mod guest;
pub mod run;
mod signals;
