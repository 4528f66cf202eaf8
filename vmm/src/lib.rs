//! Everything the `ftvm` binary does: the command line, and the roles of a pair with their sockets, threads and clocks.

#![forbid(unsafe_code)]

pub mod cli;
pub mod run;
