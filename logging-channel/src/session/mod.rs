//! The handshake: who may join whom, decided before a byte of state travels (PROTOCOL 10, 17, 21).
//!
//! ```text
//! backup                         primary
//!   Join      ─────────────────►          version, delivery mode
//!             ◄─────────────────   Welcome   version, terms, name of a file on the shared storage
//!   Proof     ─────────────────►          what the backup read there, through its own mount
//! ```
//!
//! What follows, the guest's state and the grant, is decided by the roles that use this crate.
//!
//! [`JoinServer`] and [`JoinClient`] are pure: messages in, decisions out. Either side ends a handshake that cannot
//! succeed with a `Refuse` whose reason names what was expected and what was found. `run` drives them over a
//! connection, each step within a bound, so that a peer that stalls or babbles holds up nobody.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod client;
mod run;
mod server;
#[cfg(test)]
mod tests;

pub use client::JoinClient;
pub use run::{HANDSHAKE_LIMIT, HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, accept_backup, join, serve_join};
pub use server::{Candidate, JoinServer, Offer, Placement, ServerStep};

use std::time::Duration;

use crate::message::Message;
use crate::transport::TransportError;
use ftvm_schema::entry::Incarnation;

/// The longest nonce, in bytes: far more than chance needs.
pub const MAX_NONCE_BYTES: usize = 256;

/// The most characters of the other side's reason that are shown.
const MAX_REASON_CHARS: usize = 400;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the {who} speaks protocol version {found}, expected {expected}: run the same release on both hosts")]
    Version {
        who: &'static str,
        expected: u32,
        found: u32,
    },
    #[error("the guest needs delivery mode `{needed}`, which the backup's host lacks; it can do: {}", offered.join(", "))]
    DeliveryMode { needed: String, offered: Vec<String> },
    #[error("a standby does not protect a guest on its own host: start it elsewhere, or with --allow-same-host")]
    SameHost,
    #[error(
        "a standby does not protect a guest at its own site, {site}: start it elsewhere, or with --allow-same-site"
    )]
    SameSite { site: String },
    #[error("a standby of priority {priority} waits for those before it, {} ms more", left.as_millis())]
    NotItsTurn { priority: u8, left: Duration },
    #[error("primary and backup have the same incarnation {:032x}: this is one process talking to itself", .0.0)]
    SameIncarnation(Incarnation),
    #[error(
        "the file `{name}` in the backup's shared directory does not hold what the primary wrote: it is not the same \
         storage; mount the same directory on both hosts"
    )]
    WrongNonce { name: String },
    #[error("the primary asks for a file called {name:?}; a plain file name was expected")]
    NonceName { name: String },
    /// What the caller found when it looked at the terms or read the nonce.
    #[error(transparent)]
    Unacceptable(Box<dyn std::error::Error + Send + Sync>),
    #[error("the primary's lease of {lease_ns} ns must be above 0 and at most its detection time of {detection_ns} ns")]
    Lease { lease_ns: u64, detection_ns: u64 },
    #[error("expected {expected}, found a {found} message")]
    Unexpected {
        expected: &'static str,
        found: &'static str,
    },
    #[error("the other side refuses: {reason}")]
    Refused { reason: String },
    #[error("{what} within {after:?}")]
    TimedOut {
        what: &'static str,
        after: std::time::Duration,
    },
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl SessionError {
    /// What to tell the other side, if it can still be told and does not know already.
    #[must_use]
    pub fn refusal(&self) -> Option<Message> {
        match self {
            SessionError::Refused { .. } => None,
            SessionError::Transport(TransportError::Frame { .. }) | SessionError::TimedOut { .. } => {
                Some(Message::Refuse {
                    reason: self.to_string(),
                })
            }
            SessionError::Transport(_) => None,
            _ => Some(Message::Refuse {
                reason: self.to_string(),
            }),
        }
    }

    /// The error for a message that has no place in a state: a refusal, or something unexpected.
    fn unexpected(expected: &'static str, message: Message) -> SessionError {
        match message {
            Message::Refuse { reason } => SessionError::Refused {
                reason: presentable(&reason),
            },
            other => SessionError::Unexpected {
                expected,
                found: other.name(),
            },
        }
    }
}

/// A stranger's text, fit for a terminal: no control characters, bounded.
#[must_use]
pub fn presentable(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    clean.take(MAX_REASON_CHARS).collect()
}
