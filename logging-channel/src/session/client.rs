//! The backup's side of the handshake. What comes after it, the state and the grant, is the business of whoever joined.

use super::SessionError;
use crate::message::{Join, Message, PROTOCOL_VERSION, Welcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Joining,
    /// The caller looks at the terms and proves that it sees the same storage.
    Welcomed,
    Over,
}

/// The backup's side: takes the primary's one answer.
#[derive(Debug)]
pub struct JoinClient {
    join: Join,
    state: State,
}

impl JoinClient {
    /// A backup that wants to join.
    #[must_use]
    pub fn new(join: Join) -> JoinClient {
        JoinClient {
            join,
            state: State::Joining,
        }
    }

    /// The first message, to be sent with generation 0: the backup knows no other yet.
    #[must_use]
    pub fn hello(&self) -> Message {
        Message::Join(self.join.clone())
    }

    /// Takes the primary's answer: its terms. The caller is to look at them, read the file `nonce_name` in the shared
    /// directory, and send its content in a `Proof`.
    ///
    /// # Errors
    /// The primary cannot be joined, or refuses, or has answered already.
    pub fn on_message(&mut self, message: Message) -> Result<Welcome, SessionError> {
        match (std::mem::replace(&mut self.state, State::Over), message) {
            (State::Joining, Message::Welcome(welcome)) => {
                self.check(&welcome)?;
                self.state = State::Welcomed;
                Ok(welcome)
            }
            (State::Joining, other) => Err(SessionError::unexpected("a Welcome message", other)),
            (State::Welcomed, other) => Err(SessionError::unexpected("nothing before the proof", other)),
            (State::Over, other) => Err(SessionError::unexpected("nothing more", other)),
        }
    }

    fn check(&self, welcome: &Welcome) -> Result<(), SessionError> {
        if welcome.version != PROTOCOL_VERSION {
            return Err(SessionError::Version {
                who: "primary",
                expected: PROTOCOL_VERSION,
                found: welcome.version,
            });
        }
        if welcome.owner == self.join.incarnation {
            return Err(SessionError::SameIncarnation(welcome.owner));
        }
        // The file's content goes back over the network: it must not be any file the primary likes.
        let name = &welcome.nonce_name;
        let plain = !name.is_empty()
            && name.len() <= 255
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain {
            return Err(SessionError::NonceName {
                name: super::presentable(name),
            });
        }
        if welcome.lease_ns == 0 || welcome.lease_ns > welcome.detection_ns {
            return Err(SessionError::Lease {
                lease_ns: welcome.lease_ns,
                detection_ns: welcome.detection_ns,
            });
        }
        Ok(())
    }
}
