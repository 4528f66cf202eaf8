//! How a process that may become a backup joins a guest: connecting, the handshake, and whether this host can carry the guest on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::Incarnation;
use logging_channel::message::{Join, PROTOCOL_VERSION, Standby, Welcome};
use logging_channel::session::{HANDSHAKE_TIMEOUT, JoinClient, join};
use logging_channel::transport::{Backoff, TcpFrames, connect};
use shared_disk::arbiter::Arbiter;

use super::accept::host_name;
use super::control::Desk;
use super::copies::agree;
use super::guest;
use super::pair::arbiter;
use crate::cli::RunArgs;
use ftvm_host::failure::Failure;
use ftvm_hypervisor::DeliveryMode;
use ftvm_kvm::selftest::Capabilities;
use ftvm_machine::config::MachineConfig;
use ftvm_roles::event::EXIT_NOT_ENTITLED;

/// A backup may be started before its primary: it tries for about half a minute.
pub(super) const PATIENT: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(500),
    attempts: 64,
    each: Duration::from_secs(2),
};

/// A standby looks for itself again.
pub(super) const ONCE: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(50),
    attempts: 1,
    each: Duration::from_secs(1),
};

/// A process that may become a backup.
#[derive(Debug)]
pub(super) struct Joiner<'a> {
    pub args: &'a RunArgs,
    pub me: Incarnation,
    pub arbiter: Arc<dyn Arbiter>,
    pub capabilities: Capabilities,
    pub desk: Desk,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(args: &'a RunArgs, desk: Desk) -> Result<Self, Failure> {
        Ok(Joiner {
            desk,
            args,
            me: Incarnation(ftvm_host::entropy::random_u128()?),
            arbiter: arbiter(args)?,
            capabilities: guest::capabilities()?,
        })
    }

    /// Connects, shakes hands, and checks what this host must be able to do for the guest.
    pub(super) async fn join(
        &self,
        peer: SocketAddr,
        tries: Backoff,
    ) -> Result<(TcpFrames, Welcome, MachineConfig), Failure> {
        let args = self.args;
        let mut frames = connect(&peer.to_string(), tries).await.map_err(Failure::new)?;
        let hello = Join {
            version: PROTOCOL_VERSION,
            incarnation: self.me,
            delivery_modes: modes(&self.capabilities),
            host: host_name(),
            standby: args.standby.then(|| Standby {
                priority: args.priority,
                site: args.site.clone(),
                same_host: args.allow_same_host,
                same_site: args.allow_same_site,
            }),
        };
        let client = JoinClient::new(hello);
        let prove = async |welcome: &Welcome| {
            acceptable(args, &self.capabilities, welcome)?;
            let (arbiter, name) = (Arc::clone(&self.arbiter), welcome.nonce_name.clone());
            let proof = move || {
                arbiter
                    .read_nonce(&name)
                    .and_then(|nonce| arbiter.check_access().map(|()| nonce))
            };
            let read = tokio::task::spawn_blocking(proof).await;
            read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        };
        let welcome = join(&mut frames, client, HANDSHAKE_TIMEOUT, prove).await;
        let welcome = welcome.map_err(|e| Failure {
            code: EXIT_NOT_ENTITLED,
            text: e.to_string(),
        })?;
        let config = MachineConfig::from_record(&welcome.config).map_err(Failure::new)?;
        Ok((frames, welcome, config))
    }
}

/// The delivery modes this host can replay; `none` needs nothing of a host.
fn modes(host: &Capabilities) -> Vec<String> {
    let own = host.delivery_modes.iter().filter(|mode| **mode != DeliveryMode::None);
    own.chain([&DeliveryMode::None])
        .map(|mode| mode.name().to_owned())
        .collect()
}

/// Whether this host, with the devices it was given, can carry the guest on; if not, the reason for the primary too.
fn acceptable(args: &RunArgs, host: &Capabilities, welcome: &Welcome) -> Result<(), String> {
    let config = MachineConfig::from_record(&welcome.config).map_err(|e| e.to_string())?;
    ftvm_kvm::profile::check_supported(&config.profile).map_err(|e| format!("the backup's CPU: {e}"))?;
    guest::check_host(&config, host).map_err(|why| format!("the backup: {why}"))?;
    let counts = [
        ("--disk", args.host.disks.len(), config.platform.disks.len()),
        ("--net", args.host.nets.len(), config.platform.nics.len()),
    ];
    for (what, here, there) in counts {
        if here != there {
            return Err(format!("the guest has {there} of {what}, the backup was given {here}"));
        }
    }
    for disk in &args.host.disks {
        std::fs::metadata(&disk.path).map_err(|e| format!("the backup's disk {}: {e}", disk.path.display()))?;
    }
    agree(&args.host.disks, &config.platform)
}
