//! The control socket itself: clients come, ask one thing each, and go.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::Desk;
use ftvm_host::unix_path::{SocketFile, SocketPathError, bind_listener};

/// Longest request; the longest that makes sense has 40 bytes.
pub(super) const MAX_LINE: u64 = 1024;

/// Clients at a time; further ones wait to be accepted.
const CLIENTS: usize = 8;

/// A client that does not say what it wants for this long is sent away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nobody can be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path is not usable, or another process's.
    #[error("--control {0}")]
    Path(#[from] SocketPathError),
    /// The socket cannot be set up.
    #[error("--control {}: {source}", .path.display())]
    Socket { path: PathBuf, source: std::io::Error },
}

/// The socket. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    _file: SocketFile,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at `path`.
///
/// # Errors
/// [`ControlError`]: for example, it is in use by a living process, or no socket.
pub fn listen(path: &Path, desk: Desk) -> Result<ControlSocket, ControlError> {
    let (listener, file) = bind_listener(path)?;
    let set_up = || {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    let listener = set_up().map_err(|source| ControlError::Socket {
        path: path.to_owned(),
        source,
    })?;
    let task = tokio::spawn(serve(listener, desk));
    Ok(ControlSocket { _file: file, task })
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
