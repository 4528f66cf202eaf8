//! The backup's side of the handshake, and of taking over the state.

use super::SessionError;
use crate::chunk::Assembler;
use crate::entry::Generation;
use crate::message::{Grant, Join, Message, PROTOCOL_VERSION, Welcome};

/// What to do after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Look at the terms, read the file `nonce_name` in the shared directory, and give its content to
    /// [`JoinClient::prove`].
    Prove(Welcome),
    /// Part of a record has come.
    Wait,
    /// A record is whole and its checksum good.
    Record(Vec<u8>),
    /// The last record is the state to start from; this is now a backup.
    Granted(Grant),
}

#[derive(Debug)]
enum State {
    Joining,
    /// The caller is looking at the terms.
    Proving(Generation),
    Receiving {
        generation: Generation,
        records: u64,
    },
    Over,
}

/// The backup's side. After an error or [`ClientStep::Granted`] it takes no more messages.
#[derive(Debug)]
pub struct JoinClient {
    join: Join,
    assembler: Assembler,
    state: State,
}

impl JoinClient {
    /// `state_cap` bounds one record of the state, in bytes: what this host is ready to hold for a guest.
    #[must_use]
    pub fn new(join: Join, state_cap: u64) -> JoinClient {
        JoinClient {
            join,
            assembler: Assembler::new(state_cap),
            state: State::Joining,
        }
    }

    /// The first message, to be sent with generation 0: the backup knows no other yet.
    #[must_use]
    pub fn hello(&self) -> Message {
        Message::Join(self.join.clone())
    }

    /// The answer to [`ClientStep::Prove`]: what stood in the nonce file.
    pub fn prove(&mut self, nonce: Vec<u8>) -> Message {
        if let State::Proving(generation) = self.state {
            self.state = State::Receiving { generation, records: 0 };
        }
        Message::Proof { nonce }
    }

    /// Takes the next message of the primary.
    ///
    /// # Errors
    /// The primary cannot be joined, or refuses. A half received state is worthless: nothing of it may be used.
    pub fn on_message(&mut self, generation: Generation, message: Message) -> Result<ClientStep, SessionError> {
        match (std::mem::replace(&mut self.state, State::Over), message) {
            (State::Joining, Message::Welcome(welcome)) => {
                self.check(&welcome)?;
                self.state = State::Proving(welcome.generation);
                Ok(ClientStep::Prove(welcome))
            }
            (State::Joining, other) => Err(SessionError::unexpected("a Welcome message", other)),
            (State::Proving(_), other) => Err(SessionError::unexpected("nothing before the proof", other)),
            (
                State::Receiving {
                    generation: joined,
                    records,
                },
                Message::State(chunk),
            ) => {
                let record = self.assembler.add(chunk)?;
                self.state = State::Receiving {
                    generation: joined,
                    records: records + u64::from(record.is_some()),
                };
                Ok(record.map_or(ClientStep::Wait, ClientStep::Record))
            }
            (
                State::Receiving {
                    generation: joined,
                    records,
                },
                Message::Grant(grant),
            ) => {
                self.check_grant(&grant, generation.max(joined), records)?;
                Ok(ClientStep::Granted(grant))
            }
            (State::Receiving { .. }, other) => Err(SessionError::unexpected("a State or Grant message", other)),
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

    fn check_grant(&self, grant: &Grant, expected: Generation, records: u64) -> Result<(), SessionError> {
        if records == 0 || self.assembler.held().is_some() {
            return Err(SessionError::GrantTooEarly);
        }
        if grant.incarnation != self.join.incarnation {
            return Err(SessionError::GrantForAnother {
                expected: self.join.incarnation,
                found: grant.incarnation,
            });
        }
        if grant.generation != expected {
            return Err(SessionError::GrantGeneration {
                expected,
                found: grant.generation,
            });
        }
        Ok(())
    }
}
