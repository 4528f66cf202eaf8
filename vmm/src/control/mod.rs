//! `ftvm run --control PATH`: a Unix socket at which an operator asks for something, one JSON line each way.
//!
//! Here is what the lines say. The socket ([`ControlSocket`]) belongs to the process, whatever its role is at the moment; a role that
//! can be operated says so at the [`Desk`]. Whoever may open the socket (mode 0600) may switch the guest off, so what comes in
//! is trusted in what it wants, and in nothing else: a line is bounded in length and time, and so is the number of clients.

mod desk;
mod socket;

pub use desk::{Desk, Order};
pub use socket::{ControlError, ControlSocket, listen};

use serde::{Deserialize, Serialize};

use ftvm_roles::operation::{Answer, Unprotected};
pub use ftvm_roles::operation::{Asked, ControlRequest};

/// What it is answered: just one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReply {
    /// The operation is done; in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
    /// It is refused, or has failed; why, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl From<Answer> for ControlReply {
    fn from(answer: Answer) -> Self {
        let (done, error) = match answer {
            Answer::Done(text) => (Some(text), None),
            Answer::Failed(why) => (None, Some(why)),
        };
        ControlReply {
            done,
            error,
            status: None,
        }
    }
}

/// What this process is to its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Backup,
    /// It waits for a guest that needs a backup.
    #[default]
    Standby,
}

/// A failover that brought the guest to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailover {
    /// The generation under which it has lived since.
    pub generation: u64,
    /// Nanoseconds from the suspicion, or the primary's word, until it was live here.
    pub took_ns: u64,
    /// Whether the operator wanted it.
    pub planned: bool,
}

/// What `ftvm status` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub role: Role,
    pub generation: u64,
    /// Whether somebody would carry the guest on.
    pub protected: bool,
    /// If not, why.
    pub why: Option<Unprotected>,
    pub paused: bool,
    /// How far the backup's execution is behind the guest.
    pub execution_lag_ns: u64,
    /// Thousandths of the time that the guest stands still for the backup to keep up.
    pub slowed_permille: u32,
    /// Bytes of log per second, in the last second.
    pub log_bytes_per_second: u64,
    /// Exits that the log covers.
    pub exits: u64,
    pub checkpoints: u64,
    /// Backups that were found diverged since this process leads.
    pub divergences: u64,
    /// Disks that do not answer.
    pub silent_disks: Vec<u8>,
    pub last_failover: Option<LastFailover>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = match self.role {
            Role::Primary => "primary",
            Role::Backup => "backup",
            Role::Standby => "standby",
        };
        writeln!(f, "role            {role}, generation {}", self.generation)?;
        let protection = match self.why {
            None if self.role == Role::Standby => "none by this host: it waits for a guest that needs a backup",
            None => "Protected",
            Some(Unprotected::Starting) => "Not Protected: Starting (a backup is receiving the guest's state)",
            Some(Unprotected::NeedBackup) => "Not Protected: Need Backup",
            Some(Unprotected::Suspended) => "Not Protected: Suspended (by the operator)",
            Some(Unprotected::NotRunning) => "Not Protected: VM not Running",
            Some(Unprotected::Deciding) => "Not Protected: Deciding (the test-and-set is under way)",
        };
        writeln!(f, "protection      {protection}")?;
        if self.role == Role::Primary {
            writeln!(f, "guest           {}", if self.paused { "paused" } else { "running" })?;
            let (ms, us) = (self.execution_lag_ns / 1_000_000, self.execution_lag_ns / 1000 % 1000);
            let (percent, tenth) = (self.slowed_permille / 10, self.slowed_permille % 10);
            writeln!(f, "execution lag   {ms}.{us:03} ms, slowed by {percent}.{tenth} %")?;
            let log = self.log_bytes_per_second;
            let (exits, checkpoints) = (self.exits, self.checkpoints);
            writeln!(
                f,
                "log             {log} bytes/s, {exits} exits, {checkpoints} micro-checkpoints"
            )?;
            writeln!(f, "divergences     {}", self.divergences)?;
            for disk in &self.silent_disks {
                writeln!(f, "disk {disk}          does not answer")?;
            }
        }
        match self.last_failover {
            Some(last) => {
                let kind = if last.planned { "planned" } else { "after a failure" };
                let (ms, generation) = (last.took_ns / 1_000_000, last.generation);
                write!(f, "last failover   {kind}, to generation {generation} in {ms} ms")
            }
            None => write!(f, "last failover   none to this process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ftvm_roles::operation::Operation;

    use super::*;

    #[test]
    fn requests_are_single_words() {
        for (text, asked) in [
            (r#"{"request":"status"}"#, Asked::Status),
            (r#"{"request":"failover"}"#, Asked::Operation(Operation::Failover)),
            (
                r#"{"request":"resume-protection"}"#,
                Asked::Operation(Operation::ResumeProtection),
            ),
        ] {
            let request = ControlRequest { request: asked };
            assert_eq!(serde_json::from_str::<ControlRequest>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }
}
