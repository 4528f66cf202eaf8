//! The test-and-set as a key of an etcd cluster, for pairs without shared storage.
//!
//! `ftvm/GUEST/generation` holds the newest record. A swap is a transaction that writes the next one if the key's revision is
//! still the one that was read; revisions count all writes to the store and never come back, so a transaction that was long on
//! its way finds another one and does nothing. Reads go through a majority. Whatever the answer to a transaction, or none, the
//! key is read back and believed instead. Members are tried in turn, and all must be of one cluster.
//!
//! What a claim rests on is etcd's: a majority of members that keep what they have confirmed. A cluster restored from a backup
//! has forgotten the latest generations, and must not be used by guests that run.

mod endpoint;
mod wire;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use self::endpoint::Endpoint;
use self::wire::{From, Held};
use super::register::{self, Register, Started, check_id, check_nonce, foreign, no_nonce, plain_name};
use super::{Arbiter, ArbiterError, Outcome, Record, TestAndSet};

/// For one request to one member, all of it. A cluster that elects a leader needs one to two seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

/// For the connection alone: a host that is down is passed over.
const CONNECT: Duration = Duration::from_secs(1);

/// The longest answer that is read; a record's has less than 1 KiB.
const ANSWER_BYTES: u64 = 64 << 10;

/// The longest header of an answer.
const HEADER_BYTES: usize = 16 << 10;

/// The most members asked in turn; etcd advises 7 at most.
pub(super) const ENDPOINTS: usize = 16;

/// A generation register in an etcd cluster (3.4 or later) without authentication and TLS.
#[derive(Debug)]
pub struct Etcd {
    endpoints: Vec<Endpoint>,
    guest: String,
    agent: ureq::Agent,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    /// The cluster that answered first.
    cluster: OnceLock<u64>,
}

impl Etcd {
    /// The register of `guest` in the cluster with these members. Asks nobody yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot; or without members.
    pub fn new(endpoints: Vec<Endpoint>, guest: &str) -> Result<Self, ArbiterError> {
        plain_name("guest", guest)?;
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS {
            return Err(ArbiterError::Broken {
                what: format!("{} etcd endpoints", endpoints.len()),
                advice: "Name 1 to 16 members of the cluster",
            });
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT))
            .max_response_header_size(HEADER_BYTES)
            // A status is looked at here; a redirection would be an answer from somewhere else.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The environment's proxy is for the world outside.
            .proxy(None)
            // A connection that a restarted member has forgotten costs more than a new one.
            .max_idle_connections(0)
            .build();
        Ok(Etcd {
            endpoints,
            guest: guest.to_owned(),
            agent: config.into(),
            preferred: AtomicUsize::new(0),
            cluster: OnceLock::new(),
        })
    }

    fn key(&self) -> String {
        format!("ftvm/{}/generation", self.guest)
    }

    fn nonces(&self) -> String {
        format!("ftvm/{}/nonce/", self.guest)
    }

    fn read(&self, key: &str) -> Result<Option<Held>, ArbiterError> {
        self.ask("range", &wire::range(key), |answer| wire::parse_range(key, answer))
    }

    fn change(&self, what: &str, request: &str) -> Result<(), ArbiterError> {
        self.ask(what, request, wire::parse_done)
    }

    /// Asks the members in turn, the one that answered last first, until one gives an answer that makes sense.
    fn ask<T>(
        &self,
        what: &str,
        request: &str,
        parse: impl Fn(&[u8]) -> Result<From<T>, String>,
    ) -> Result<T, ArbiterError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let (mut said, mut passing) = (Vec::new(), false);
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let answer = self.ask_one(&self.endpoints[index], what, request);
            match answer.and_then(|answer| self.examine(parse(&answer).map_err(Fault::lasting)?)) {
                Ok(content) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(content);
                }
                Err(Fault { what, is_passing }) => {
                    passing |= is_passing;
                    said.push(format!("{}: {what}", self.endpoints[index]));
                }
            }
        }
        let what = format!("etcd {what}: {}", said.join("; "));
        Err(if passing {
            ArbiterError::Unreachable { what }
        } else {
            ArbiterError::Broken {
                what,
                advice: "The endpoints must be client URLs of one etcd cluster of version 3.4 or later, without \
                         authentication",
            }
        })
    }

    fn ask_one(&self, endpoint: &Endpoint, what: &str, request: &str) -> Result<Vec<u8>, Fault> {
        let post = self.agent.post(format!("{endpoint}/v3/kv/{what}"));
        let mut response = post.header("content-type", "application/json").send(request)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec()?;
        if status == 200 {
            return Ok(body);
        }
        let reason = wire::parse_refusal(&body).unwrap_or_else(|| "no reason that etcd would give".to_owned());
        Err(Fault {
            what: format!("HTTP status {status}, {reason}"),
            // No leader, too slow, out of space: etcd says 5xx or 429.
            is_passing: status >= 500 || status == 408 || status == 429,
        })
    }

    /// Members of two clusters would each keep a register of their own.
    fn examine<T>(&self, answer: From<T>) -> Result<T, Fault> {
        let expected = *self.cluster.get_or_init(|| answer.cluster);
        if answer.cluster == expected {
            return Ok(answer.content);
        }
        Err(Fault::lasting(format!(
            "it belongs to cluster {:x}, others to {expected:x}",
            answer.cluster
        )))
    }
}

/// Why a member is passed over.
struct Fault {
    what: String,
    is_passing: bool,
}

impl Fault {
    fn lasting(what: String) -> Self {
        Fault {
            what,
            is_passing: false,
        }
    }
}

impl std::convert::From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Self {
        let is_passing = matches!(
            error,
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed
        );
        let what = error.to_string();
        Fault { what, is_passing }
    }
}

impl Register for Etcd {
    /// The key's revision.
    type Place = u64;

    fn newest(&self) -> Result<(Option<Record>, u64), ArbiterError> {
        let key = self.key();
        let Some(held) = self.read(&key)? else {
            return Err(ArbiterError::Unreachable {
                what: format!("etcd has no key {key}; is it the cluster with which the guest was started?"),
            });
        };
        if held.value.is_empty() {
            return Ok((None, held.revision));
        }
        let record = Record::parse_any(&held.value).map_err(|error| foreign(&format!("etcd's key {key}"), error))?;
        Ok((Some(record), held.revision))
    }

    fn attempt(&self, revision: u64, record: &Record) -> Result<(), ArbiterError> {
        let request = wire::put_if(&self.key(), revision, record.encode().as_bytes());
        self.change("txn", &request)
    }

    /// What etcd has answered is on the disks of a majority.
    fn settle(&self) -> Result<(), ArbiterError> {
        Ok(())
    }

    fn remedy(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        format!(
            "run `ftvm disown --shared etcd:{} --name {}`",
            endpoints.join(","),
            self.guest
        )
    }
}

impl TestAndSet for Etcd {
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<Outcome, ArbiterError> {
        register::claim(self, generation, owner, me)
    }
}

impl Arbiter for Etcd {
    /// Makes the guest's key if there is none, and removes old nonces.
    fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        check_id(me)?;
        self.change("txn", &wire::put_if(&self.key(), 0, b""))?;
        let started = register::start(self, me)?;
        if let Started::Now(_) = started
            && let Err(error) = self.change("deleterange", &wire::delete_below(&self.nonces()))
        {
            tracing::debug!("old nonces are left lying: {error}");
        }
        Ok(started.generation())
    }

    fn end(&self, me: u128) -> Result<(), ArbiterError> {
        register::end(self, me).map(drop)
    }

    fn disown(&self) -> Result<(), ArbiterError> {
        register::disown(self).map(drop)
    }

    fn last(&self) -> Result<Option<Record>, ArbiterError> {
        if self.read(&self.key())?.is_none() {
            return Ok(None);
        }
        Ok(register::Register::newest(self)?.0)
    }

    /// Removes a key that is not there: the shortest write.
    fn check_access(&self) -> Result<(), ArbiterError> {
        register::Register::newest(self)?;
        let key = format!("{}access-check", self.nonces());
        self.change("deleterange", &wire::delete(&key))
    }

    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        plain_name("nonce", name)?;
        check_nonce(name, bytes)?;
        self.change("put", &wire::put(&(self.nonces() + name), bytes))
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        plain_name("nonce", name)?;
        match self.read(&(self.nonces() + name))? {
            Some(held) => check_nonce(name, &held.value).map(|()| held.value),
            None => Err(no_nonce(
                &format!("the nonce {name} to etcd"),
                "Give both hosts endpoints of the same etcd cluster",
            )),
        }
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        plain_name("nonce", name)?;
        self.change("deleterange", &wire::delete(&(self.nonces() + name)))
    }
}
