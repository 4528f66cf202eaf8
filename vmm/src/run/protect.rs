//! A backup's life, from the handshake to its end or to its new life as a primary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ftvm_schema::entry::Incarnation;
use logging_channel::message::{DiskReads, Welcome};
use logging_channel::transport::TcpFrames;

use super::control::LastFailover;
use super::copies::PrivateDisks;
use super::door::Door;
use super::events::Reporter;
use super::follow::{BackupShell, Follower, FromFollower, Standing, ToFollower, follow_until_over, start_follower};
use super::guest;
use super::health::Probe;
use super::heartbeat::{HeartbeatSocket, Heartbeats, heard};
use super::join::Joiner;
use super::lead::{Hears, Leading, Pending, begin, lead};
use super::link::{Connection, connection_id};
use super::outside::Outside;
use super::shell::Shell;
use super::vcpu::{self, new_clock};
use crate::cli::RunArgs;
use crate::failure::Failure;
use ftvm_host::console;
use ftvm_host::net::Inbound;
use ftvm_host::queue::{EventQueue, EventSender, event_queue};
use ftvm_kvm::KvmCpu;
use ftvm_machine::config::MachineConfig;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::link::backup::{BackupLink, Followed};
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::replay::NoDisks;
use ftvm_roles::terms::Terms;

/// How a backup's life in this process went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It never went live. Where its test-and-set is `claimed` and not lost, this process must end: the storage may be
    /// asked as long as the process lives, and a late win would end the primary that it stands by for next.
    Followed {
        code: ExitCode,
        claimed: bool,
    },
    Led(ExitCode),
}

/// With a backup that has just joined `peer`.
pub(super) async fn protect(
    joiner: &Joiner<'_>,
    peer: SocketAddr,
    (frames, welcome, config): (TcpFrames, Welcome, MachineConfig),
) -> Result<Life, Failure> {
    let Joiner {
        args,
        me,
        arbiter,
        capabilities,
        desk,
    } = joiner;
    let (me, arbiter) = (*me, Arc::clone(arbiter));
    let reporter = Reporter::open("backup", args.events.as_deref())?;
    let (events, queue) = event_queue();
    let terms = Terms::welcomed(me, &welcome);
    let keep = 2 * terms.detection();
    let outside = Outside::open(&args.host, console::ByteStream::Continued, Inbound::Keep, keep, &events);
    let outside = outside.map_err(Failure::new)?;
    let mut machine = guest::empty(&config, capabilities)?;
    let boot = BootCell::default();
    machine.set_boot(Arc::clone(&boot));
    let follower = follower(joiner, &terms, welcome.owner, machine, &config)?;
    let (hearing, heard) = heard();
    let heartbeats = Heartbeats::start(heartbeat_socket(peer)?, Some(peer), &terms, hearing);
    let standing = Standing {
        follower,
        heard,
        desk: desk.clone(),
        boot,
        probe: Probe::start(&args.host),
    };
    let mut shell = Shell::new(me, reporter, arbiter, standing);
    shell.heartbeats.push(heartbeats);
    let connection = connection_id();
    shell.connection = Some(Connection::start(connection, frames, &shell.link));
    let link = BackupLink::begin(terms, welcome.owner, connection, &mut shell);
    match follow_until_over(&mut shell, link, terms.detection()).await {
        Followed::Ended { code, why, claimed } => {
            shell.last_words().await;
            shell.reporter.report(Event::Ending { code, why });
            Ok(Life::Followed { code, claimed })
        }
        Followed::GoLive {
            generation,
            took_ns,
            planned,
        } => {
            let last = LastFailover {
                generation: generation.0,
                took_ns,
                planned,
            };
            desk.update(|status| status.last_failover = Some(last));
            let terms = Terms { generation, ..terms };
            let led = go_live(args, terms, shell, outside, (events, queue), &config).await;
            led.map(Life::Led)
        }
    }
}

/// The vCPU thread of the backup.
fn follower(
    joiner: &Joiner<'_>,
    terms: &Terms,
    owner: Incarnation,
    machine: Machine<KvmCpu>,
    config: &MachineConfig,
) -> Result<Follower, Failure> {
    let disks = &joiner.args.host.disks;
    let (reads, generation) = (terms.disk_reads, terms.generation);
    let copies = Box::new(PrivateDisks::open(disks, &config.platform, reads, generation, owner)?);
    match reads {
        DiskReads::Log => start_follower(machine, copies, NoDisks),
        DiskReads::Backup => start_follower(machine, copies, ftvm_host::reads::SharedReads::open(disks)?),
    }
}

/// A socket for heartbeats to and from `peer`.
fn heartbeat_socket(peer: SocketAddr) -> Result<HeartbeatSocket, Failure> {
    let any = if peer.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let local = SocketAddr::new(any, 0);
    HeartbeatSocket::bind(local).map_err(|e| Failure::new(format!("heartbeats at UDP {local}: {e}")))
}

/// The backup's new life: from its horizon on it is a primary.
async fn go_live(
    args: &RunArgs,
    terms: Terms,
    shell: BackupShell,
    outside: Outside,
    (events, queue): (EventSender, EventQueue),
    config: &MachineConfig,
) -> Result<ExitCode, Failure> {
    let Shell {
        mut reporter,
        arbiter,
        heartbeats,
        side:
            Standing {
                mut follower,
                desk,
                boot,
                probe,
                ..
            },
        ..
    } = shell;
    reporter.role("primary");
    let (life, guest, reins) = vcpu::Life::new(&terms, queue, &events, new_clock());
    let gone = || Failure::new("the vCPU thread is gone");
    follower
        .orders
        .send(ToFollower::GoLive(Box::new(life)))
        .map_err(|_| gone())?;
    let horizon = loop {
        if let FromFollower::AtHorizon(horizon) = follower.reports.recv().await.ok_or_else(gone)? {
            break horizon;
        }
    };
    let (hearing, heard) = heard();
    let door = Door::new(args.listen, None, &args.site, config, &arbiter, hearing);
    let side = Leading {
        terms,
        outside,
        events,
        reins,
        door,
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages: follower.pages,
        desk,
        pending: Pending::default(),
    };
    let mut shell = Shell::new(terms.me, reporter, arbiter, side);
    shell.heartbeats = heartbeats;
    let link = begin(&mut shell, boot, Beginning::WentLive(horizon)).await;
    let hears = Hears {
        guest,
        heartbeats: heard,
        probe,
    };
    let led = lead(shell, link.map_err(Failure::new)?, hears).await;
    led.map_err(Failure::new)
}
