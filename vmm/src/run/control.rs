//! `ftvm run --control PATH`: a Unix socket at which an operator asks for something, one JSON line each way.
//!
//! The socket belongs to the process, whatever its role is at the moment; a role that can be operated says so at the
//! [`Desk`]. Whoever may open the socket (mode 0600) may switch the guest off, so what comes in is trusted in what it
//! wants, and in nothing else: a line is bounded in length and time, and so is the number of clients.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ftvm_schema::entry::Generation;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use ftvm_host::failure::Failure;
use ftvm_host::unix_path::{SocketFile, bind_listener};
use ftvm_roles::operation::{Answer, Operation, Unprotected};

/// Longest request; the longest that makes sense has 40 bytes.
pub const MAX_LINE: u64 = 1024;

/// Clients at a time; further ones wait to be accepted.
const CLIENTS: usize = 8;

/// A client that does not say what it wants for this long is sent away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Operations that wait for the role's task.
const WAITING: usize = 4;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub request: Asked,
}

/// The word of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    Status,
    #[serde(untagged)]
    Operation(Operation),
}

/// What it is answered: just one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The operation is done; in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
    /// It is refused, or has failed; why, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        let (done, error) = match answer {
            Ok(text) => (Some(text), None),
            Err(text) => (None, Some(text)),
        };
        Reply {
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

/// An operation on its way to the role's task.
#[derive(Debug)]
pub struct Order {
    pub operation: Operation,
    pub answer: oneshot::Sender<Answer>,
}

/// Where the roles of this process say how they are, and clients look.
#[derive(Clone, Debug, Default)]
pub struct Desk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    status: Status,
    operator: Option<mpsc::Sender<Order>>,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what clients see.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.state().status);
    }

    /// This process leads a guest: from now on clients see so, and their operations come here. Before the first event that
    /// says so is reported, as whoever hears of it may ask.
    #[must_use]
    pub fn leads(&self, generation: Generation, paused: bool) -> mpsc::Receiver<Order> {
        let (operator, orders) = mpsc::channel(WAITING);
        let mut state = self.state();
        state.operator = Some(operator);
        state.status.role = Role::Primary;
        state.status.generation = generation.0;
        state.status.why = Some(Unprotected::NeedBackup);
        state.status.protected = false;
        state.status.paused = paused;
        orders
    }

    /// This process carries no guest, and follows none. What it did before is over.
    pub fn stands_by(&self) {
        self.update(|status| {
            *status = Status {
                role: Role::Standby,
                last_failover: status.last_failover.take(),
                ..Status::default()
            };
        });
    }

    async fn operate(&self, operation: Operation) -> Answer {
        let (operator, role) = {
            let state = self.state();
            (state.operator.clone(), state.status.role)
        };
        // A role that is over may be followed by another.
        let Some(operator) = operator.filter(|operator| !operator.is_closed()) else {
            return Err(match role {
                Role::Standby => "this host stands by: ask the primary".to_owned(),
                Role::Backup => "this is the backup: ask the primary".to_owned(),
                Role::Primary => "this process is ending, or just beginning: ask again".to_owned(),
            });
        };
        let (answer, answered) = oneshot::channel();
        let order = Order { operation, answer };
        let ending = || "this process is ending".to_owned();
        operator.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "other operations are waiting; ask again".to_owned(),
            mpsc::error::TrySendError::Closed(_) => ending(),
        })?;
        answered.await.unwrap_or_else(|_| Err(ending()))
    }

    async fn reply(&self, line: &[u8]) -> Reply {
        match serde_json::from_slice::<Request>(line) {
            Ok(Request { request: Asked::Status }) => Reply {
                status: Some(self.state().status.clone()),
                ..Reply::default()
            },
            Ok(Request {
                request: Asked::Operation(operation),
            }) => self.operate(operation).await.into(),
            Err(error) => Err(format!(
                "expected one line such as {{\"request\":\"status\"}}, of at most {MAX_LINE} bytes: {error}"
            ))
            .into(),
        }
    }
}

/// The socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    _file: SocketFile,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at `path`.
///
/// # Errors
/// If it is in use by a living process, or no socket.
pub fn listen(path: &Path, desk: Desk) -> Result<Socket, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("--control {error}"));
    let (listener, file) = bind_listener(path).map_err(|e| failed(&e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|e| failed(&e))?;
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    let listener = UnixListener::from_std(listener).map_err(|e| failed(&e))?;
    let task = tokio::spawn(serve(listener, desk));
    Ok(Socket { _file: file, task })
}

async fn serve(listener: UnixListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    if let Err(error) = attend(stream, &desk).await {
                        tracing::debug!("control socket: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("control socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One line, one answer.
async fn attend(stream: UnixStream, desk: &Desk) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_LINE));
    tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let reply = desk.reply(&line).await;
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    tokio::time::timeout(PATIENCE, writer.write_all(&text)).await??;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(desk: &Desk, line: &[u8]) -> Reply {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(desk.reply(line))
    }

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
            let request = Request { request: asked };
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn nonsense_is_answered_with_what_was_expected() {
        for line in [
            &b""[..],
            b"\n",
            b"status",
            b"\xff\xfe",
            b"{\"request\":\"explode\"}",
            b"{\"request\":\"status\",\"more\":1}",
            b"[[[[[[[[[[",
        ] {
            let reply = reply(&Desk::default(), line);
            assert!(
                reply.error.is_some_and(|error| error.contains("expected one line")),
                "{line:?}"
            );
            assert_eq!((reply.done, reply.status), (None, None));
        }
    }

    #[test]
    fn who_is_no_primary_says_so() {
        let desk = Desk::default();
        let answer = |desk: &Desk| reply(desk, br#"{"request":"pause"}"#).error.unwrap();
        assert!(answer(&desk).contains("stands by"));
        desk.update(|status| status.role = Role::Backup);
        assert!(answer(&desk).contains("ask the primary"));
        drop(desk.leads(Generation(1), false));
        assert!(answer(&desk).contains("ending"));
        desk.update(|status| status.role = Role::Backup);
        assert!(answer(&desk).contains("ask the primary"));
    }

    #[test]
    fn who_stands_by_says_nothing_of_its_last_guest_but_the_failover() {
        let desk = Desk::default();
        let last = LastFailover {
            generation: 3,
            took_ns: 7_000_000,
            planned: true,
        };
        let _ = desk.leads(Generation(3), true);
        desk.update(|status| (status.protected, status.last_failover) = (true, Some(last)));
        desk.stands_by();
        let status = reply(&desk, br#"{"request":"status"}"#).status.unwrap();
        assert_eq!(
            (status.role, status.protected, status.paused),
            (Role::Standby, false, false)
        );
        assert_eq!((status.generation, status.last_failover), (0, Some(last)));
        let text = status.to_string();
        assert!(
            !text.contains("Protected") && text.contains("to generation 3 in 7 ms"),
            "{text}"
        );
    }

    #[test]
    fn who_leads_is_seen_to_and_takes_orders() {
        let desk = Desk::default();
        let mut orders = desk.leads(Generation(3), true);
        let status = reply(&desk, br#"{"request":"status"}"#).status.unwrap();
        assert_eq!(
            (status.role, status.generation, status.paused),
            (Role::Primary, 3, true)
        );
        assert_eq!((status.protected, status.why), (false, Some(Unprotected::NeedBackup)));
        assert!(orders.try_recv().is_err());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let asked = desk.operate(Operation::Resume);
            let led = async {
                let order = orders.recv().await.unwrap();
                assert_eq!(order.operation, Operation::Resume);
                order.answer.send(Ok("done".to_owned())).unwrap();
            };
            assert_eq!(tokio::join!(asked, led).0, Ok("done".to_owned()));
        });
    }
}
