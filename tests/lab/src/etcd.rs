//! A real etcd of one member, as a child process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shared_disk::arbiter::SharedStorage;
use tempfile::TempDir;

use crate::pair::{free_address, wait};
use crate::scaled;

/// A running etcd; it dies with this.
#[derive(Debug)]
pub struct EtcdServer {
    child: Child,
    dir: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
}

impl EtcdServer {
    /// A fresh cluster.
    ///
    /// # Panics
    /// If etcd cannot be started: `tests/install-deps` installs it.
    #[must_use]
    pub fn start() -> Self {
        // A test that is not about slow storage must not meet any: in memory, if this machine has such a folder.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let child = spawn(dir.path(), client, peer);
        let server = EtcdServer {
            child,
            dir,
            client,
            peer,
        };
        server.wait_ready();
        server
    }

    /// Where it serves clients.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Sends a signal by name.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, name: &str) {
        let (signal, process) = (format!("-{name}"), self.child.id().to_string());
        let status = Command::new("kill").args([signal, process]).status();
        assert!(status.expect("kill").success(), "kill -{name}");
    }

    /// Kills it; what it has confirmed is in its folder.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("etcd dies");
        self.child.wait().expect("etcd ends");
    }

    /// Starts it again after [`EtcdServer::kill`].
    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.client, self.peer);
        self.wait_ready();
    }

    /// Waits until it answers: it listens long before it has a leader.
    fn wait_ready(&self) {
        let storage: SharedStorage = format!("etcd:{}", self.endpoint()).parse().expect("an endpoint");
        let probe = storage.open("nobody").expect("a name");
        wait("etcd", scaled(Duration::from_secs(20)), || {
            let answer = probe.check_access().expect_err("nobody was ever started");
            answer.to_string().contains("has no key").then_some(())
        });
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, client: SocketAddr, peer: SocketAddr) -> Child {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let cluster = format!("t={peer}");
    let dir = dir.join("data");
    // Two clusters of equal settings would have equal ids.
    let arguments = [
        ("--initial-cluster-token", peer.as_str()),
        ("--name", "t"),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &cluster),
        ("--log-level", "error"),
        ("--logger", "zap"),
    ];
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir);
    for (name, value) in arguments {
        command.args([name, value]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.expect("etcd starts: tests/install-deps installs it")
}
