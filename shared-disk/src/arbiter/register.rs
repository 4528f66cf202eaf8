//! What a value of the register means, for every kind of storage.
//!
//! A storage brings four things ([`Register`]): read the newest record, try to put the next one in its place, make what was
//! read stable, and words for a person. All else is decided here, from records alone, so that a directory, a SCSI device
//! and an etcd key cannot differ: who may start, claim or end, and that after every try the register is read back and
//! believed instead of the answer, which may be lost, late or wrong.

use std::time::{SystemTime, UNIX_EPOCH};

use super::record::host_name;
use super::{ArbiterError, LifeState, NONCE_BYTES, Outcome, Record};

/// The longest name of a guest or nonce, in bytes: with a prefix it fits any file system.
pub(super) const NAME_BYTES: usize = 64;

/// A storage that holds a record and lets it be replaced by the next.
pub(super) trait Register {
    /// What [`Register::attempt`] needs to know of the value that was read, to replace that one and no other.
    type Place;

    /// The newest record, and its place. `None` where the guest has a place with no record in it; without a place it is
    /// [`ArbiterError::Unreachable`], for this may be the wrong storage, or one that is not there yet.
    fn newest(&self) -> Result<(Option<Record>, Self::Place), ArbiterError>;

    /// Puts `record` where `place` was read, unless something else is there by now. The answer matters only if the register
    /// shows no trace of the attempt: `Ok` says only that the storage did not complain.
    fn attempt(&self, place: Self::Place, record: &Record) -> Result<(), ArbiterError>;

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

pub(super) fn start<R: Register>(register: &R, me: u128) -> Result<Started, ArbiterError> {
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

pub(super) fn claim<R: Register>(
    register: &R,
    generation: u64,
    owner: u128,
    me: u128,
) -> Result<Outcome, ArbiterError> {
    check_id(me)?;
    let claimed = next(generation)?;
    let (mut newest, place) = register.newest()?;
    if newest.as_ref().is_some_and(|held| held.is(generation, owner)) {
        newest = Some(swap(register, place, &record(claimed, me, LifeState::Running))?);
    }
    let (generation, owner) = match newest {
        Some(held) if held.is(claimed, me) => {
            register.settle()?;
            return Ok(Outcome::Won { generation: claimed });
        }
        Some(held) => (held.generation, held.owner),
        None => (0, 0),
    };
    Ok(Outcome::Lost { generation, owner })
}

/// The generation of the end's mark.
pub(super) fn end<R: Register>(register: &R, me: u128) -> Result<u64, ArbiterError> {
    check_id(me)?;
    let (newest, place) = register.newest()?;
    let newest = newest.ok_or_else(emptied)?;
    if newest.owner != me {
        return Err(taken(register, newest));
    }
    mark_end(register, newest, place)
}

/// Ends the life of whoever owns the guest.
pub(super) fn disown<R: Register>(register: &R) -> Result<u64, ArbiterError> {
    let (newest, place) = register.newest()?;
    mark_end(register, newest.ok_or_else(emptied)?, place)
}

fn mark_end<R: Register>(register: &R, held: Record, place: R::Place) -> Result<u64, ArbiterError> {
    let owner = held.owner;
    let mut newest = held;
    if newest.state == LifeState::Running {
        let mark = record(next(newest.generation)?, owner, LifeState::Ended);
        newest = swap(register, place, &mark)?;
    }
    if (newest.owner, newest.state) != (owner, LifeState::Ended) {
        return Err(taken(register, newest));
    }
    register.settle()?;
    Ok(newest.generation)
}

/// Tries to make `record` the register's value, and returns the newest record afterwards, whosever it is.
fn swap<R: Register>(register: &R, place: R::Place, record: &Record) -> Result<Record, ArbiterError> {
    let answer = register.attempt(place, record);
    match register.newest()?.0 {
        Some(newest) if newest.generation >= record.generation => Ok(newest),
        _ => Err(answer.err().unwrap_or_else(|| ArbiterError::Unreachable {
            what: format!("generation {} was written but is not seen", record.generation),
        })),
    }
}

fn taken<R: Register>(register: &R, record: Record) -> ArbiterError {
    ArbiterError::Taken {
        remedy: register.remedy(),
        record: Box::new(record),
    }
}

fn emptied() -> ArbiterError {
    ArbiterError::Broken {
        what: "the guest's place on the shared storage holds no generation".to_owned(),
        advice: "Someone has emptied it while the guest ran, or no start came so far; the guest can be started",
    }
}

impl Record {
    fn is(&self, generation: u64, owner: u128) -> bool {
        (self.generation, self.owner, self.state) == (generation, owner, LifeState::Running)
    }
}

/// A record of this process, written now.
pub(super) fn record(generation: u64, owner: u128, state: LifeState) -> Record {
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Record {
        generation,
        owner,
        state,
        host: host_name(rustix::system::uname().nodename().to_bytes()),
        pid: std::process::id(),
        time,
    }
}

fn next(generation: u64) -> Result<u64, ArbiterError> {
    generation.checked_add(1).ok_or_else(|| ArbiterError::Broken {
        what: "the generation is the last number there is".to_owned(),
        advice: "Nobody can have got there by failing over: empty the guest's place if the guest is not running",
    })
}

pub(super) fn check_id(me: u128) -> Result<(), ArbiterError> {
    if me != 0 {
        return Ok(());
    }
    Err(ArbiterError::Broken {
        what: "incarnation 0 stands for nobody and cannot own a guest".to_owned(),
        advice: "This is a bug in ftvm: please report it with the log",
    })
}

pub(super) fn plain_name(what: &str, name: &str) -> Result<(), ArbiterError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(ArbiterError::Broken {
        what: format!(
            "{what} name {:?} is not usable as a file name",
            name.chars().take(NAME_BYTES).collect::<String>()
        ),
        advice: "Use 1 to 64 letters, digits, '.', '-' or '_', not beginning with a dot",
    })
}

/// Whether `bytes` may be a nonce at `place`.
pub(super) fn check_nonce(place: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
    if bytes.len() <= NONCE_BYTES {
        return Ok(());
    }
    Err(ArbiterError::Broken {
        what: format!("nonce {place} is longer than {NONCE_BYTES} bytes"),
        advice: "It was not written by ftvm: give ftvm a shared storage of its own",
    })
}

/// The nonce that the primary wrote is not at `place`.
pub(super) fn no_nonce(place: &str, advice: &'static str) -> ArbiterError {
    ArbiterError::Broken {
        what: format!("the primary wrote {place} but this host does not see it"),
        advice,
    }
}

/// A register's content that is no record.
pub(super) fn foreign(place: &str, error: impl std::fmt::Display) -> ArbiterError {
    ArbiterError::Broken {
        what: format!("{place} was not written by this version of ftvm: {error}"),
        advice: "Find out who wrote it before you remove it: it may protect a running guest",
    }
}
