//! A plain variable as arbiter, right and with faults.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

use shared_disk::arbiter::{Arbiter, ArbiterError, ClaimOutcome, GenerationRecord, LifeState, NONCE_BYTES, TestAndSet};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A claim writes without comparing.
    WritesWithoutComparing,
    /// It compares, and writes what may have changed meanwhile.
    ComparesAndThenWrites,
    /// A claim looks at the generation only, not at its owner.
    AnyOwner,
    /// A claim takes the next free number.
    NextFreeNumber,
    /// A repeated claim of the winner is lost.
    NotIdempotent,
    /// A winner that asks again is told so for ever.
    WinsForEver,
    /// A start takes the guest over.
    StartsOverAnOwner,
    /// The end forgets everything.
    EndForgets,
    /// Anyone can end a life.
    AnyoneEnds,
    /// A guest that was never started is a loss.
    UnknownIsLost,
    /// One register for all guests.
    OneForAll,
    /// The other host sees another nonce.
    NonceIsPrivate,
}

/// All of them.
pub const FAULTS: [Fault; 12] = [
    Fault::WritesWithoutComparing,
    Fault::ComparesAndThenWrites,
    Fault::AnyOwner,
    Fault::NextFreeNumber,
    Fault::NotIdempotent,
    Fault::WinsForEver,
    Fault::StartsOverAnOwner,
    Fault::EndForgets,
    Fault::AnyoneEnds,
    Fault::UnknownIsLost,
    Fault::OneForAll,
    Fault::NonceIsPrivate,
];

/// What hosts share.
#[derive(Debug, Default)]
struct Guest {
    /// Generation, owner, state; 0 for none.
    held: Option<(u64, u128, LifeState)>,
    nonces: BTreeMap<String, Vec<u8>>,
}

/// A storage in memory.
#[derive(Clone, Debug)]
pub struct Memory {
    guests: Arc<Mutex<BTreeMap<String, Arc<Mutex<Guest>>>>>,
    fault: Fault,
}

/// A host's view of one guest in it.
#[derive(Debug)]
struct Variable {
    guest: Arc<Mutex<Guest>>,
    private: Mutex<BTreeMap<String, Vec<u8>>>,
    fault: Fault,
}

impl Memory {
    /// An empty one.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        let guests = Arc::default();
        Memory { guests, fault }
    }

    /// The arbiter of a guest, as one host has it.
    #[must_use]
    pub fn host(&self, guest: &str) -> Arc<dyn Arbiter> {
        let name = if self.fault == Fault::OneForAll { "one" } else { guest };
        let mut guests = self.guests.lock();
        let guest = Arc::clone(guests.entry(name.to_owned()).or_default());
        let (private, fault) = (Mutex::default(), self.fault);
        Arc::new(Variable { guest, private, fault })
    }
}

impl Variable {
    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock()
    }

    fn unknown() -> ArbiterError {
        ArbiterError::unreachable("never started")
    }

    fn held(&self) -> Result<(u64, u128, LifeState), ArbiterError> {
        self.guest().held.ok_or_else(Self::unknown)
    }

    fn refuse(what: &str) -> ArbiterError {
        ArbiterError::broken(what, "none")
    }

    fn record((generation, owner, state): (u64, u128, LifeState)) -> GenerationRecord {
        let (host, pid, time) = ("test".to_owned(), 0, 0);
        GenerationRecord {
            generation,
            owner,
            state,
            host,
            pid,
            time,
        }
    }

    fn taken(held: (u64, u128, LifeState)) -> ArbiterError {
        ArbiterError::Taken {
            remedy: "do nothing".into(),
            record: Box::new(Self::record(held)),
        }
    }

    fn check_nonce(name: &str) -> Result<(), ArbiterError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
            return Ok(());
        }
        Err(Self::refuse("a name"))
    }

    fn nonces<T>(&self, with: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        if self.fault == Fault::NonceIsPrivate {
            return with(&mut self.private.lock());
        }
        with(&mut self.guest().nonces)
    }
}

impl TestAndSet for Variable {
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<ClaimOutcome, ArbiterError> {
        if me == 0 {
            return Err(Self::refuse("nobody"));
        }
        let lost = |(generation, owner, _): (u64, u128, LifeState)| Ok(ClaimOutcome::Lost { generation, owner });
        let mut guest = self.guest();
        let Some(held) = guest.held else {
            return match self.fault {
                Fault::UnknownIsLost => lost((0, 0, LifeState::Ended)),
                _ => Err(Self::unknown()),
            };
        };
        let claimed = match self.fault {
            Fault::NextFreeNumber => held.0 + 1,
            _ => generation + 1,
        };
        let mine = (claimed, me, LifeState::Running);
        if held == mine && self.fault != Fault::NotIdempotent {
            return Ok(ClaimOutcome::Won { generation: claimed });
        }
        if self.fault == Fault::WinsForEver && guest.nonces.contains_key(&format!("{mine:?}")) {
            return Ok(ClaimOutcome::Won { generation: claimed });
        }
        let same = match self.fault {
            Fault::WritesWithoutComparing => true,
            Fault::NextFreeNumber => held.2 == LifeState::Running,
            Fault::AnyOwner => (held.0, held.2) == (generation, LifeState::Running),
            _ => held == (generation, owner, LifeState::Running),
        };
        if !same {
            return lost(held);
        }
        if self.fault == Fault::ComparesAndThenWrites {
            drop(guest);
            std::thread::sleep(std::time::Duration::from_millis(2));
            guest = self.guest();
        }
        guest.held = Some(mine);
        if self.fault == Fault::WinsForEver {
            guest.nonces.insert(format!("{mine:?}"), Vec::new());
        }
        Ok(ClaimOutcome::Won { generation: claimed })
    }
}

impl Arbiter for Variable {
    fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        if me == 0 {
            return Err(Self::refuse("nobody"));
        }
        let mut guest = self.guest();
        let generation = match guest.held {
            Some((generation, owner, LifeState::Running)) if owner == me => return Ok(generation),
            Some(held @ (_, _, LifeState::Running)) if self.fault != Fault::StartsOverAnOwner => {
                return Err(Self::taken(held));
            }
            held => held.map_or(0, |held| held.0) + 1,
        };
        guest.held = Some((generation, me, LifeState::Running));
        Ok(generation)
    }

    fn end(&self, me: u128) -> Result<(), ArbiterError> {
        let held = self.held()?;
        if held.1 != me && self.fault != Fault::AnyoneEnds {
            return Err(Self::taken(held));
        }
        self.disown()
    }

    fn disown(&self) -> Result<(), ArbiterError> {
        let held = self.held()?;
        if held.2 == LifeState::Running {
            let ended = (held.0 + 1, held.1, LifeState::Ended);
            self.guest().held = Some(ended).filter(|_| self.fault != Fault::EndForgets);
        }
        Ok(())
    }

    fn last(&self) -> Result<Option<GenerationRecord>, ArbiterError> {
        Ok(self.guest().held.map(Self::record))
    }

    fn check_access(&self) -> Result<(), ArbiterError> {
        self.held().map(drop)
    }

    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        Self::check_nonce(name)?;
        if bytes.len() > NONCE_BYTES {
            return Err(Self::refuse("a nonce"));
        }
        self.nonces(|nonces| nonces.insert(name.to_owned(), bytes.to_owned()));
        Ok(())
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        Self::check_nonce(name)?;
        let found = self.nonces(|nonces| nonces.get(name).cloned());
        found.ok_or_else(|| Self::refuse("this host does not see it"))
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        Self::check_nonce(name)?;
        self.nonces(|nonces| nonces.remove(name));
        Ok(())
    }
}
