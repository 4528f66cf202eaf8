//! How a process that may become a backup joins a guest: connecting, the handshake, and whether this host can carry the guest on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::Incarnation;
use logging_channel::message::{Join, PROTOCOL_VERSION, Standby, Welcome};
use logging_channel::session::{HANDSHAKE_TIMEOUT, JoinClient, join};
use logging_channel::transport::{Backoff, TcpFrames, connect};
use shared_disk::arbiter::Arbiter;

use crate::cli::RunArgs;
use crate::control::Desk;
use crate::failure::Failure;
use crate::guest::{self, GuestError};
use crate::link::handshakes::host_name;
use crate::outside::copies::{CopiesError, agree};
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::profile::ProfileMismatch;

use ftvm_kvm::selftest::Capabilities;
use ftvm_machine::config::{MachineConfig, MachineConfigError};
use ftvm_roles::exit_code::ExitCode;

/// A backup may be started before its primary: it tries for about half a minute.
pub(crate) const PATIENT: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(500),
    attempts: 64,
    each: Duration::from_secs(2),
};

/// A standby looks for itself again.
pub(crate) const ONCE: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(50),
    attempts: 1,
    each: Duration::from_secs(1),
};

/// Why this host cannot carry the guest on, in words that the primary reports too.
#[derive(Debug, thiserror::Error)]
enum Unacceptable {
    /// The guest's configuration cannot be read, or is none that can be built.
    #[error(transparent)]
    Config(#[from] MachineConfigError),
    /// This host's processor lacks something that the guest was promised.
    #[error("the backup's CPU: {0}")]
    Cpu(#[source] ProfileMismatch),
    /// This host's KVM does not run such a guest.
    #[error("the backup: {0}")]
    Kvm(#[source] GuestError),
    /// It was given another number of devices.
    #[error("the guest has {there} of {option}, the backup was given {here}")]
    Count {
        option: &'static str,
        there: usize,
        here: usize,
    },
    /// A disk is not there.
    #[error("the backup's disk {}: {source}", .path.display())]
    Disk { path: PathBuf, source: std::io::Error },
    /// Its disks are none for this guest.
    #[error(transparent)]
    Copies(#[from] CopiesError),
}

/// A process that may become a backup.
#[derive(Debug)]
pub(crate) struct Joiner<'a> {
    pub args: &'a RunArgs,
    pub me: Incarnation,
    pub arbiter: Arc<dyn Arbiter>,
    pub capabilities: Capabilities,
    pub desk: Desk,
}

impl<'a> Joiner<'a> {
    pub(crate) fn new(args: &'a RunArgs, desk: Desk) -> Result<Self, Failure> {
        Ok(Joiner {
            desk,
            args,
            me: Incarnation(ftvm_host::entropy::random_u128()?),
            arbiter: args.arbiter()?,
            capabilities: guest::capabilities()?,
        })
    }

    /// Connects, shakes hands, and checks what this host must be able to do for the guest.
    pub(crate) async fn join(
        &self,
        peer: SocketAddr,
        tries: Backoff,
    ) -> Result<(TcpFrames, Welcome, MachineConfig), Failure> {
        let args = self.args;
        let mut frames = connect(&peer.to_string(), tries).await?;
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
            acceptable(args, &self.capabilities, welcome).map_err(|why| why.to_string())?;
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
        let welcome = welcome.map_err(|error| Failure::with(ExitCode::NotEntitled, error))?;
        let config = MachineConfig::from_record(&welcome.config)?;
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

/// Whether this host, with the devices it was given, can carry the guest on.
fn acceptable(args: &RunArgs, host: &Capabilities, welcome: &Welcome) -> Result<(), Unacceptable> {
    let config = MachineConfig::from_record(&welcome.config)?;
    ftvm_kvm::profile::check_supported(&config.profile).map_err(Unacceptable::Cpu)?;
    guest::check_host(&config, host).map_err(Unacceptable::Kvm)?;
    let counts = [
        ("--disk", args.host.disks.len(), config.platform.disks.len()),
        ("--net", args.host.nets.len(), config.platform.nics.len()),
    ];
    for (option, here, there) in counts {
        if here != there {
            return Err(Unacceptable::Count { option, there, here });
        }
    }
    for disk in &args.host.disks {
        std::fs::metadata(&disk.path).map_err(|source| Unacceptable::Disk {
            path: disk.path.clone(),
            source,
        })?;
    }
    Ok(agree(&args.host.disks, &config.platform)?)
}
