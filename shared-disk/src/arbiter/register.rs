//! What a value of the register means, for every kind of storage.
//!
//! A storage brings four things ([`GenerationRegister`]): it reads the newest record, tries to put the next one in its
//! place, makes what was read stable, and knows how a person frees a guest. All else is decided here, by looking at
//! records only, so that a directory, a SCSI device and an etcd key cannot differ in it: who may start, claim or end.
//! After every attempt the register is read again, and that is believed instead of the answer to the attempt, which may
//! be lost, late or wrong.

use std::error::Error;

use super::{ArbiterError, ClaimOutcome, GenerationRecord, LifeState};
use crate::textfile::{is_plain_byte, this_host, unix_seconds};

/// The longest name of a guest or nonce, in bytes: with a prefix it fits any file system.
pub(super) const NAME_BYTES: usize = 64;

/// The longest nonce, in bytes.
pub const NONCE_BYTES: usize = 256;

/// What is wrong with a register, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    #[error("generation {0} was written but is not seen")]
    NotSeen(u64),
    #[error("the guest's place on the shared storage holds no generation")]
    Emptied,
    #[error("the generation is the last number there is")]
    LastGeneration,
    #[error("incarnation 0 stands for nobody and cannot own a guest")]
    Nobody,
    #[error("{what} name {name:?} is not usable as a file name")]
    Name {
        what: &'static str,
        /// Its first characters.
        name: String,
    },
    #[error("nonce {0} is longer than {NONCE_BYTES} bytes")]
    LongNonce(String),
    #[error("the primary wrote {0} but this host does not see it")]
    NoNonce(String),
    #[error("{place} was not written by this version of ftvm: {cause}")]
    Foreign {
        place: String,
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// A storage that holds a record and lets it be replaced by the next.
pub(super) trait GenerationRegister {
    /// What [`GenerationRegister::attempt`] needs to know of the value that was read, so that it replaces that one and
    /// no other.
    type Place;

    /// The newest record, and its place. `None` if the guest has a place and there is no record in it. If it has no
    /// place either, that is [`ArbiterError::Unreachable`]: this may be the wrong storage, or one that is not mounted
    /// yet.
    fn newest(&self) -> Result<(Option<GenerationRecord>, Self::Place), ArbiterError>;

    /// Puts `record` where `place` was read, unless something else is there by now. `Ok` says only that the storage did
    /// not complain. An error is shown only if the register, read again, has not changed.
    fn attempt(&self, place: Self::Place, record: &GenerationRecord) -> Result<(), ArbiterError>;

    /// Makes the newest record stable, whoever wrote it.
    fn settle(&self) -> Result<(), ArbiterError>;

    /// How a person frees the guest from an owner that is dead: an imperative.
    fn remedy(&self) -> String;
}

/// Whether a start was made now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    Now(u64),
    Before(u64),
}

impl Started {
    pub(super) fn generation(self) -> u64 {
        match self {
            Started::Now(generation) | Started::Before(generation) => generation,
        }
    }
}

/// [`Arbiter::start`](super::Arbiter::start), for a guest that has a place.
pub(super) fn start<R: GenerationRegister>(register: &R, me: u128) -> Result<Started, ArbiterError> {
    check_id(me)?;
    let (newest, place) = register.newest()?;
    let ended = match newest {
        Some(record) if record.is(record.generation, me) => {
            register.settle()?;
            return Ok(Started::Before(record.generation));
        }
        Some(record) if record.state == LifeState::Running => return Err(taken(register, record)),
        Some(record) => record.generation,
        None => 0,
    };
    let newest = swap(register, place, &record(next(ended)?, me, LifeState::Running))?;
    if !newest.is(newest.generation, me) {
        return Err(taken(register, newest));
    }
    register.settle()?;
    Ok(Started::Now(newest.generation))
}

/// [`TestAndSet::claim`](super::TestAndSet::claim).
pub(super) fn claim<R: GenerationRegister>(
    register: &R,
    generation: u64,
    owner: u128,
    me: u128,
) -> Result<ClaimOutcome, ArbiterError> {
    check_id(me)?;
    let claimed = next(generation)?;
    let (mut newest, place) = register.newest()?;
    if newest.as_ref().is_some_and(|held| held.is(generation, owner)) {
        newest = Some(swap(register, place, &record(claimed, me, LifeState::Running))?);
    }
    let (generation, owner) = match newest {
        Some(held) if held.is(claimed, me) => {
            register.settle()?;
            return Ok(ClaimOutcome::Won { generation: claimed });
        }
        Some(held) => (held.generation, held.owner),
        None => (0, 0),
    };
    Ok(ClaimOutcome::Lost { generation, owner })
}

/// [`Arbiter::end`](super::Arbiter::end); the generation of the record that says so.
pub(super) fn end<R: GenerationRegister>(register: &R, me: u128) -> Result<u64, ArbiterError> {
    check_id(me)?;
    let (newest, place) = register.newest()?;
    let newest = newest.ok_or_else(emptied)?;
    if newest.owner != me {
        return Err(taken(register, newest));
    }
    put_end(register, newest, place)
}

/// [`Arbiter::disown`](super::Arbiter::disown); the generation of the record that says so.
pub(super) fn disown<R: GenerationRegister>(register: &R) -> Result<u64, ArbiterError> {
    let (newest, place) = register.newest()?;
    put_end(register, newest.ok_or_else(emptied)?, place)
}

/// Replaces the record that is `held` by one that says that its owner's life has ended.
fn put_end<R: GenerationRegister>(register: &R, held: GenerationRecord, place: R::Place) -> Result<u64, ArbiterError> {
    let owner = held.owner;
    let mut newest = held;
    if newest.state == LifeState::Running {
        let end = record(next(newest.generation)?, owner, LifeState::Ended);
        newest = swap(register, place, &end)?;
    }
    if (newest.owner, newest.state) != (owner, LifeState::Ended) {
        return Err(taken(register, newest));
    }
    register.settle()?;
    Ok(newest.generation)
}

/// Tries to make `record` the register's value, and returns the newest record afterwards, whosever it is.
fn swap<R: GenerationRegister>(
    register: &R,
    place: R::Place,
    record: &GenerationRecord,
) -> Result<GenerationRecord, ArbiterError> {
    let answer = register.attempt(place, record);
    match register.newest()?.0 {
        Some(newest) if newest.generation >= record.generation => Ok(newest),
        _ => Err(answer
            .err()
            .unwrap_or_else(|| ArbiterError::unreachable(RegisterError::NotSeen(record.generation)))),
    }
}

fn taken<R: GenerationRegister>(register: &R, record: GenerationRecord) -> ArbiterError {
    ArbiterError::Taken {
        remedy: register.remedy(),
        record: Box::new(record),
    }
}

fn emptied() -> ArbiterError {
    ArbiterError::broken(
        RegisterError::Emptied,
        "Someone has emptied it while the guest ran, or no start came so far; the guest can be started",
    )
}

impl GenerationRecord {
    /// Whether it says that `owner` lives under `generation`.
    fn is(&self, generation: u64, owner: u128) -> bool {
        (self.generation, self.owner, self.state) == (generation, owner, LifeState::Running)
    }
}

/// A record of this process, written now.
pub(super) fn record(generation: u64, owner: u128, state: LifeState) -> GenerationRecord {
    GenerationRecord {
        generation,
        owner,
        state,
        host: this_host(),
        pid: std::process::id(),
        time: unix_seconds(),
    }
}

fn next(generation: u64) -> Result<u64, ArbiterError> {
    generation.checked_add(1).ok_or_else(|| {
        ArbiterError::broken(
            RegisterError::LastGeneration,
            "Nobody can have got there by failing over: empty the guest's place if the guest is not running",
        )
    })
}

/// `me` must be an incarnation.
pub(super) fn check_id(me: u128) -> Result<(), ArbiterError> {
    if me != 0 {
        return Ok(());
    }
    let advice = "This is a bug in ftvm: please report it with the log";
    Err(ArbiterError::broken(RegisterError::Nobody, advice))
}

/// `name`, which is that of a `what`, must be usable as a file name everywhere.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), ArbiterError> {
    if (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain_byte) && !name.starts_with('.') {
        return Ok(());
    }
    let name = name.chars().take(NAME_BYTES).collect();
    Err(ArbiterError::broken(
        RegisterError::Name { what, name },
        "Use 1 to 64 letters, digits, '.', '-' or '_', not beginning with a dot",
    ))
}

/// `bytes`, which are to be or were found at `place`, must be a nonce.
pub(super) fn check_nonce(place: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
    if bytes.len() <= NONCE_BYTES {
        return Ok(());
    }
    Err(ArbiterError::broken(
        RegisterError::LongNonce(place.to_owned()),
        "It was not written by ftvm: give ftvm a shared storage of its own",
    ))
}

/// The nonce that the primary wrote is not at `place`.
pub(super) fn no_nonce(place: impl Into<String>, advice: &'static str) -> ArbiterError {
    ArbiterError::broken(RegisterError::NoNonce(place.into()), advice)
}

/// What is at `place` is no record or nonce of ours.
pub(super) fn foreign(place: impl Into<String>, cause: impl Error + Send + Sync + 'static) -> ArbiterError {
    let (place, cause) = (place.into(), Box::new(cause));
    ArbiterError::broken(
        RegisterError::Foreign { place, cause },
        "Find out who wrote it before you remove it: it may protect a running guest",
    )
}
