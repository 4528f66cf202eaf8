//! A backup and a standby: how a host joins a guest ([`join`]), what it is while it follows ([`shell`]), its life from there to its
//! end or to a new one as a primary ([`life`]), and how a standby waits and begins again ([`standby`]).

pub mod join;
pub mod life;
pub mod shell;
pub mod standby;
