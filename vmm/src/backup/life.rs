//! A backup's life, from the handshake to its end or to its new life as a primary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ftvm_schema::entry::Incarnation;
use logging_channel::message::{DiskReads, Welcome};
use logging_channel::transport::TcpFrames;

use crate::backup::join::Joiner;
use crate::backup::shell::{
    BackupShell, BackupSide, BackupThread, FromBackupThread, ToBackupThread, follow_until_over, start_backup_thread,
};
use crate::cli::RunArgs;
use crate::control::LastFailover;
use crate::events::Reporter;
use crate::failure::Failure;
use crate::guest;
use crate::link::connection::{Connection, connection_id};
use crate::link::heartbeats::{HeartbeatSocket, Heartbeats, heard};
use crate::link::listening::Listener;
use crate::link::shell::Shell;
use crate::link::vcpu::{self, new_clock};
use crate::outside::Outside;
use crate::outside::copies::PrivateDisks;
use crate::outside::probe::Probe;
use crate::primary::shell::{Hears, Pending, PrimarySide, begin, lead};
use ftvm_host::console;
use ftvm_host::net::Inbound;
use ftvm_host::queue::{EventQueue, EventSender, event_queue};
use ftvm_kvm::KvmCpu;
use ftvm_machine::config::MachineConfig;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::following::Takeover;
use ftvm_roles::link::backup::{BackupLink, Followed};
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::replay::NoDisks;
use ftvm_roles::terms::Terms;

/// How a backup's life in this process went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackupOutcome {
    /// It never went live. Where its test-and-set is `claimed` and not lost, this process must end: the storage may be
    /// asked as long as the process lives, and a late win would end the primary that it stands by for next.
    Followed {
        code: ExitCode,
        claimed: bool,
    },
    Led(ExitCode),
}

/// With a backup that has just joined `peer`.
pub(crate) async fn protect(
    joiner: &Joiner<'_>,
    peer: SocketAddr,
    (frames, welcome, config): (TcpFrames, Welcome, MachineConfig),
) -> Result<BackupOutcome, Failure> {
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
    let outside = Outside::open(&args.host, console::ByteStream::Continued, Inbound::Keep, keep, &events)?;
    let mut machine = guest::empty(&config, capabilities)?;
    let boot = BootCell::default();
    machine.set_boot(Arc::clone(&boot));
    let backup_thread = backup_thread(joiner, &terms, welcome.owner, machine, &config)?;
    let (hearing, heard) = heard();
    let heartbeats = Heartbeats::start(heartbeat_socket(peer)?, Some(peer), &terms, hearing);
    let standing = BackupSide {
        backup_thread,
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
            Ok(BackupOutcome::Followed { code, claimed })
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
            led.map(BackupOutcome::Led)
        }
    }
}

/// The vCPU thread of the backup.
fn backup_thread(
    joiner: &Joiner<'_>,
    terms: &Terms,
    owner: Incarnation,
    machine: Machine<KvmCpu>,
    config: &MachineConfig,
) -> Result<BackupThread, Failure> {
    let disks = &joiner.args.host.disks;
    let (reads, generation) = (terms.disk_reads, terms.generation);
    let copies = Box::new(PrivateDisks::open(disks, &config.platform, reads, generation, owner)?);
    match reads {
        DiskReads::Log => start_backup_thread(machine, copies, NoDisks),
        DiskReads::Backup => start_backup_thread(machine, copies, ftvm_host::reads::SharedReads::open(disks)?),
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
            BackupSide {
                mut backup_thread,
                desk,
                boot,
                probe,
                ..
            },
        ..
    } = shell;
    reporter.role("primary");
    let (life, guest, reins) = vcpu::Life::new(&terms, queue, &events, new_clock());
    let horizon = at_horizon(&mut backup_thread, life).await?;
    let (hearing, heard) = heard();
    let listener = Listener::new(args.listen, None, &args.site, config, &arbiter, hearing);
    let side = PrimarySide {
        terms,
        outside,
        events,
        reins,
        listener,
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages: backup_thread.pages,
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
    Ok(lead(shell, link?, hears).await?)
}

/// The vCPU thread executes what is left of the log, and lives on; what the new life must do first.
async fn at_horizon(backup_thread: &mut BackupThread, life: vcpu::Life) -> Result<Box<Takeover>, Failure> {
    let gone = || Failure::new("the vCPU thread is gone");
    let order = ToBackupThread::GoLive(Box::new(life));
    backup_thread.orders.send(order).map_err(|_| gone())?;
    loop {
        if let FromBackupThread::AtHorizon(horizon) = backup_thread.reports.recv().await.ok_or_else(gone)? {
            return Ok(horizon);
        }
    }
}
