//! The primary's side of the handshake.

use std::time::Duration;

use super::{SessionError, presentable};
use crate::message::{Join, Message, PROTOCOL_VERSION, Standby, Welcome};
use ftvm_schema::entry::Incarnation;

/// The most of a backup's delivery modes that a refusal lists: there are fewer than that.
const MAX_MODES_SHOWN: usize = 16;

/// So much earlier may a standby join than the one of the next priority.
pub const HEAD_START: Duration = Duration::from_secs(1);

/// What the primary has to offer a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Sent as it is. `version` must be [`PROTOCOL_VERSION`].
    pub welcome: Welcome,
    /// The delivery mode the guest runs with since its first exit.
    pub delivery_mode: String,
    /// What stands in `welcome.nonce_name` on the shared storage: fresh random bytes for each handshake.
    pub nonce: Vec<u8>,
    /// Identifies this host, as `Join::host` does the other.
    pub host: String,
    /// This side's site, as `Standby::site` is the other's.
    pub site: String,
    /// How long the guest has been without a backup.
    pub unprotected: Duration,
}

/// A backup that has passed the handshake: it may be cloned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub incarnation: Incarnation,
    pub host: String,
    pub placement: Placement,
}

/// Where the backup runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    OtherHost,
    /// Allowed, but said: it protects from a dead process, not from a dead host.
    SameHost,
}

/// What to do after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStep {
    Send(Message),
    Accepted(Candidate),
}

#[derive(Debug)]
enum State {
    AwaitJoin,
    AwaitProof(Candidate),
    Over,
}

/// The primary's side. After an error or [`ServerStep::Accepted`] it takes no more messages.
#[derive(Debug)]
pub struct JoinServer {
    offer: Offer,
    state: State,
}

impl JoinServer {
    #[must_use]
    pub fn new(offer: Offer) -> JoinServer {
        JoinServer {
            offer,
            state: State::AwaitJoin,
        }
    }

    /// The generation to stamp on what is sent.
    #[must_use]
    pub fn generation(&self) -> ftvm_schema::entry::Generation {
        self.offer.welcome.generation
    }

    /// Takes the next message of the backup.
    ///
    /// # Errors
    /// The backup cannot be taken, for the reason given ([`SessionError::refusal`] says it to the other side).
    pub fn on_message(&mut self, message: Message) -> Result<ServerStep, SessionError> {
        match (std::mem::replace(&mut self.state, State::Over), message) {
            (State::AwaitJoin, Message::Join(join)) => {
                self.state = State::AwaitProof(self.check(join)?);
                Ok(ServerStep::Send(Message::Welcome(self.offer.welcome.clone())))
            }
            (State::AwaitJoin, other) => Err(SessionError::unexpected("a Join message", other)),
            (State::AwaitProof(candidate), Message::Proof { nonce }) => {
                // An empty nonce would be proved by an empty file.
                if nonce.is_empty() || nonce != self.offer.nonce {
                    return Err(SessionError::WrongNonce {
                        name: self.offer.welcome.nonce_name.clone(),
                    });
                }
                Ok(ServerStep::Accepted(candidate))
            }
            (State::AwaitProof(_), other) => Err(SessionError::unexpected("a Proof message", other)),
            (State::Over, other) => Err(SessionError::unexpected("nothing more", other)),
        }
    }

    fn check_standby(&self, standby: &Standby, same_host: bool) -> Result<(), SessionError> {
        let same_site = !standby.site.is_empty() && standby.site == self.offer.site;
        if same_host && !standby.same_host {
            return Err(SessionError::SameHost);
        }
        if same_site && !standby.same_site {
            return Err(SessionError::SameSite {
                site: presentable(&standby.site),
            });
        }
        let turn = HEAD_START * u32::from(standby.priority);
        if self.offer.unprotected < turn {
            return Err(SessionError::NotItsTurn {
                priority: standby.priority,
                left: turn.saturating_sub(self.offer.unprotected),
            });
        }
        Ok(())
    }

    fn check(&self, join: Join) -> Result<Candidate, SessionError> {
        if join.version != PROTOCOL_VERSION {
            return Err(SessionError::Version {
                who: "backup",
                expected: PROTOCOL_VERSION,
                found: join.version,
            });
        }
        if join.incarnation == self.offer.welcome.owner {
            return Err(SessionError::SameIncarnation(join.incarnation));
        }
        if !join.delivery_modes.contains(&self.offer.delivery_mode) {
            return Err(SessionError::DeliveryMode {
                needed: self.offer.delivery_mode.clone(),
                offered: join
                    .delivery_modes
                    .iter()
                    .take(MAX_MODES_SHOWN)
                    .map(|mode| presentable(mode))
                    .collect(),
            });
        }
        let same = join.host == self.offer.host;
        if let Some(standby) = &join.standby {
            self.check_standby(standby, same)?;
        }
        Ok(Candidate {
            incarnation: join.incarnation,
            host: presentable(&join.host),
            placement: if same {
                Placement::SameHost
            } else {
                Placement::OtherHost
            },
        })
    }
}
