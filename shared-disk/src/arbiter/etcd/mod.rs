//! The test-and-set as a key of an etcd cluster, for pairs without shared storage.
//!
//! `ftvm/GUEST/generation` holds the newest record. A swap is a transaction that writes the next one if the key's
//! revision is still the one that was read. Revisions count all writes to the store and never come back, so a
//! transaction that was long on its way finds another revision and does nothing. Reads go through a majority. The
//! answer to a transaction is not believed, and the key is read again instead. Members are asked in turn, and all must
//! belong to one cluster.
//!
//! What a claim rests on is etcd's promise: a majority of members keep what they have confirmed. A cluster restored
//! from a backup has forgotten the latest generations, and must not be used by guests that run.

mod endpoint;
mod wire;

#[cfg(feature = "fuzzing")]
pub use self::wire::fuzz;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use self::endpoint::{Endpoint, EndpointError};
use self::wire::{EtcdAnswerError, KeyVersion, MemberAnswer};
use super::register::{self, GenerationRegister, Started, check_id, check_name, check_nonce, foreign, no_nonce};
use super::{Arbiter, ArbiterError, ClaimOutcome, GenerationRecord, TestAndSet};

/// For one request to one member, from the connection to the end of the answer. A cluster that elects a leader needs
/// one to two seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

/// For the connection alone, so that a host that is down is passed over sooner.
const CONNECT: Duration = Duration::from_secs(1);

/// The longest answer that is read, in bytes. One with a record has less than 1 KiB.
const ANSWER_BYTES: u64 = 64 << 10;

/// The longest header of an answer that is read, in bytes.
const HEADER_BYTES: usize = 16 << 10;

/// The most members asked in turn; etcd advises 7 at most.
pub(super) const ENDPOINTS: usize = 16;

/// What etcd answers, or why it cannot be asked.
#[derive(Debug, thiserror::Error)]
enum EtcdError {
    #[error("{0} etcd endpoints")]
    Endpoints(usize),
    #[error("etcd has no key {0}; is it the cluster with which the guest was started?")]
    NoKey(String),
    #[error("etcd {request}: {members}")]
    Members {
        request: &'static str,
        #[source]
        members: MemberErrors,
    },
}

/// Why no member gave an answer that makes sense: the reason of each.
#[derive(Debug)]
struct MemberErrors(Vec<(Endpoint, MemberError)>);

impl MemberErrors {
    /// Whether waiting may mend it.
    fn is_passing(&self) -> bool {
        self.0.iter().any(|(_, error)| error.is_passing())
    }
}

impl fmt::Display for MemberErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self
            .0
            .iter()
            .map(|(member, error)| format!("{member}: {error}"))
            .collect();
        f.write_str(&each.join("; "))
    }
}

impl std::error::Error for MemberErrors {
    /// That of the member that was asked last.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.last().map(|(_, error)| error as _)
    }
}

/// Why a member is passed over.
#[derive(Debug, thiserror::Error)]
enum MemberError {
    #[error(transparent)]
    Http(#[from] ureq::Error),
    #[error("HTTP status {status}, {}", reason.as_deref().unwrap_or("no reason that etcd would give"))]
    Refused { status: u16, reason: Option<String> },
    #[error(transparent)]
    Answer(#[from] EtcdAnswerError),
    // Members of two clusters would each keep a register of their own.
    #[error("it belongs to cluster {found:x}, others to {expected:x}")]
    OtherCluster { found: u64, expected: u64 },
}

impl MemberError {
    fn is_passing(&self) -> bool {
        match self {
            MemberError::Http(error) => matches!(
                error,
                ureq::Error::Io(_)
                    | ureq::Error::Timeout(_)
                    | ureq::Error::HostNotFound
                    | ureq::Error::ConnectionFailed
            ),
            // No leader, too slow, out of space: etcd says 5xx or 429.
            MemberError::Refused { status, .. } => *status >= 500 || *status == 408 || *status == 429,
            MemberError::Answer(_) | MemberError::OtherCluster { .. } => false,
        }
    }
}

/// A generation register in an etcd cluster (3.4 or later) without authentication and TLS.
#[derive(Debug)]
pub(super) struct Etcd {
    /// Where its members listen, 1 to [`ENDPOINTS`] of them.
    endpoints: Vec<Endpoint>,
    guest: String,
    agent: ureq::Agent,
    /// Which endpoint answered last.
    preferred: AtomicUsize,
    /// The cluster of the member that answered first.
    cluster: OnceLock<u64>,
}

impl Etcd {
    /// The register of `guest` in the cluster with these members. Asks nobody yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot; or without
    /// members.
    pub(super) fn new(endpoints: Vec<Endpoint>, guest: &str) -> Result<Self, ArbiterError> {
        check_name("guest", guest)?;
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS {
            let error = EtcdError::Endpoints(endpoints.len());
            return Err(ArbiterError::broken(error, "Name 1 to 16 members of the cluster"));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT))
            .max_response_header_size(HEADER_BYTES)
            // A status is looked at in `ask_one`. A redirection is not followed: it would lead to something else than
            // etcd.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The environment may name a proxy, which is for the world outside.
            .proxy(None)
            // Connections are not kept: one that a restarted member has forgotten costs more than a new one.
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

    fn read(&self, key: &str) -> Result<Option<KeyVersion>, ArbiterError> {
        self.ask("range", &wire::range(key), |answer| wire::parse_range(key, answer))
    }

    fn change(&self, what: &'static str, request: &str) -> Result<(), ArbiterError> {
        self.ask(what, request, wire::parse_done)
    }

    /// Asks the members in turn, the one that answered last first, until one gives an answer that makes sense.
    fn ask<T>(
        &self,
        what: &'static str,
        request: &str,
        parse: impl Fn(&[u8]) -> Result<MemberAnswer<T>, EtcdAnswerError>,
    ) -> Result<T, ArbiterError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut errors = Vec::new();
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let answer = self.ask_one(endpoint, what, request);
            match answer.and_then(|answer| self.of_this_cluster(parse(&answer)?)) {
                Ok(content) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(content);
                }
                Err(error) => errors.push((endpoint.clone(), error)),
            }
        }
        let members = MemberErrors(errors);
        let is_passing = members.is_passing();
        let error = EtcdError::Members { request: what, members };
        if is_passing {
            return Err(ArbiterError::unreachable(error));
        }
        Err(ArbiterError::broken(
            error,
            "The endpoints must be client URLs of one etcd cluster of version 3.4 or later, without authentication",
        ))
    }

    /// The body of a member's answer.
    fn ask_one(&self, endpoint: &Endpoint, what: &str, request: &str) -> Result<Vec<u8>, MemberError> {
        let post = self.agent.post(format!("{endpoint}/v3/kv/{what}"));
        let mut response = post.header("content-type", "application/json").send(request)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec()?;
        if status == 200 {
            return Ok(body);
        }
        let reason = wire::parse_refusal(&body);
        Err(MemberError::Refused { status, reason })
    }

    /// What the answer says, if it comes from the cluster from which the first answer came.
    fn of_this_cluster<T>(&self, answer: MemberAnswer<T>) -> Result<T, MemberError> {
        let (found, expected) = (answer.cluster, *self.cluster.get_or_init(|| answer.cluster));
        if found == expected {
            return Ok(answer.content);
        }
        Err(MemberError::OtherCluster { found, expected })
    }
}

impl GenerationRegister for Etcd {
    /// The key's revision.
    type Place = u64;

    fn newest(&self) -> Result<(Option<GenerationRecord>, u64), ArbiterError> {
        let key = self.key();
        let Some(held) = self.read(&key)? else {
            return Err(ArbiterError::unreachable(EtcdError::NoKey(key)));
        };
        if held.value.is_empty() {
            return Ok((None, held.revision));
        }
        let record =
            GenerationRecord::parse_any(&held.value).map_err(|error| foreign(format!("etcd's key {key}"), error))?;
        Ok((Some(record), held.revision))
    }

    fn attempt(&self, revision: u64, record: &GenerationRecord) -> Result<(), ArbiterError> {
        let request = wire::put_if(&self.key(), revision, record.encode().as_bytes());
        self.change("txn", &request)
    }

    /// Nothing to do: what etcd has answered is on the disks of a majority.
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
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<ClaimOutcome, ArbiterError> {
        register::claim(self, generation, owner, me)
    }
}

impl Arbiter for Etcd {
    /// Makes the guest's key if there is none. The winner removes old nonces.
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

    fn last(&self) -> Result<Option<GenerationRecord>, ArbiterError> {
        if self.read(&self.key())?.is_none() {
            return Ok(None);
        }
        Ok(GenerationRegister::newest(self)?.0)
    }

    /// Removes a key that is not there, which needs the same right as any other write.
    fn check_access(&self) -> Result<(), ArbiterError> {
        GenerationRegister::newest(self)?;
        let key = format!("{}access-check", self.nonces());
        self.change("deleterange", &wire::delete(&key))
    }

    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        check_name("nonce", name)?;
        check_nonce(name, bytes)?;
        self.change("put", &wire::put(&(self.nonces() + name), bytes))
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        check_name("nonce", name)?;
        match self.read(&(self.nonces() + name))? {
            Some(held) => check_nonce(name, &held.value).map(|()| held.value),
            None => Err(no_nonce(
                format!("the nonce {name} to etcd"),
                "Give both hosts endpoints of the same etcd cluster",
            )),
        }
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        check_name("nonce", name)?;
        self.change("deleterange", &wire::delete(&(self.nonces() + name)))
    }
}
