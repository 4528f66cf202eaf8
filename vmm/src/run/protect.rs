//! A backup's life, from the handshake to its end or to its new life as a primary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::Generation;
use logging_channel::message::{DiskReads, Welcome};
use logging_channel::transport::TcpFrames;
use shared_disk::plan::Gate;

use super::copies::PrivateDisks;
use super::door::{Door, Doorway, Terms};
use super::events::Reporter;
use super::follow::{Follow, Followed, Follower, FromFollower, ToFollower, start_follower};
use super::guest;
use super::health::Probe;
use super::heartbeat::{Heartbeats, heard};
use super::join::Joiner;
use super::lead::{Beginning, Lead};
use super::outside::Outside;
use super::vcpu::{self, new_clock, pair_sink};
use crate::cli::RunArgs;
use crate::failure::Failure;
use crate::signals::watch_signals;
use ftvm_host::console;
use ftvm_host::net::Inbound;
use ftvm_host::queue::{EventQueue, EventSender, event_queue};
use ftvm_machine::config::MachineConfig;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::Emission;
use ftvm_roles::backup::{Backup, BackupConfig};
use ftvm_roles::event::Event;
use ftvm_roles::following::Horizon;
use ftvm_roles::primary::{Primary, Writes};
use ftvm_roles::replay::NoDisks;

/// How a backup's life in this process went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It never went live. Where its test-and-set is `claimed` and not lost, this process must end: the storage may be
    /// asked as long as the process lives, and a late win would end the primary that it stands by for next.
    Followed {
        code: u8,
        claimed: bool,
    },
    Led(u8),
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
    let terms = Terms {
        me,
        guest: welcome.guest,
        generation: welcome.generation,
        detection: Duration::from_nanos(welcome.detection_ns),
        lease: Duration::from_nanos(welcome.lease_ns),
        patience: Duration::from_nanos(welcome.patience_ns),
        disk_reads: welcome.disk_reads,
    };
    let outside = Outside::open(
        &args.host,
        console::ByteStream::Continued,
        Inbound::Keep,
        2 * terms.detection,
        &events,
    );
    let outside = outside.map_err(Failure::new)?;
    let mut machine = guest::empty(&config, capabilities)?;
    let boot = BootCell::default();
    machine.set_boot(Arc::clone(&boot));
    let disks = &args.host.disks;
    let copies = PrivateDisks::open(
        disks,
        &config.platform,
        terms.disk_reads,
        terms.generation,
        welcome.owner,
    )?;
    let mut follower = match terms.disk_reads {
        DiskReads::Log => start_follower(machine, Box::new(copies), NoDisks),
        DiskReads::Backup => start_follower(machine, Box::new(copies), ftvm_host::reads::SharedReads::open(disks)?),
    }?;
    let any = if peer.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let (hearing, heard) = heard();
    let local = SocketAddr::new(any, 0);
    let socket = Heartbeats::bind(local).await?;
    let heartbeats = Heartbeats::start(socket, Some(peer), terms.guest, terms.generation, me, hearing);
    let core = BackupConfig {
        me,
        guest: terms.guest,
        generation: terms.generation,
        detection_ns: welcome.detection_ns,
        lease_ns: welcome.lease_ns,
    };
    let core = Backup::new(core, logging_channel::clock::boottime_ns());
    let owner = welcome.owner;
    let follow = Follow {
        core,
        me,
        owner,
        detection: terms.detection,
        reporter,
        arbiter,
        heartbeats,
        heard,
        desk: desk.clone(),
        boot,
        probe: Probe::start(&args.host),
    };
    match follow.run(frames, &mut follower).await {
        Followed::Ended { code, claimed } => Ok(Life::Followed { code, claimed }),
        Followed::GoLive(generation, follow) => {
            let terms = Terms { generation, ..terms };
            let led = go_live(args, terms, *follow, follower, outside, (events, queue), &config).await;
            led.map(Life::Led)
        }
    }
}

/// The backup's new life: disk requests issued again, unreleased outputs emitted again, then as any primary (PROTOCOL 7,
/// 8, 22).
async fn go_live(
    args: &RunArgs,
    terms: Terms,
    follow: Follow,
    mut follower: Follower,
    mut outside: Outside,
    (events, queue): (EventSender, EventQueue),
    config: &MachineConfig,
) -> Result<u8, Failure> {
    let Follow {
        mut reporter,
        arbiter,
        heartbeats,
        desk,
        boot,
        probe,
        ..
    } = follow;
    reporter.role("primary");
    let (sink, stream) = pair_sink(terms.disk_reads);
    let life = vcpu::Life {
        sink,
        queue,
        events: events.clone(),
        clock: new_clock(),
        patience: terms.patience,
    };
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
    outside.open_disks().map_err(Failure::new)?;
    let paused = horizon.paused;
    outside.fence_disks(terms.me.0).await.map_err(Failure::new)?;
    if let Err(error) = outside.mark_current(terms.generation.0, terms.me.0) {
        tracing::warn!("{error}");
    }
    let orders = desk.leads(terms.generation, paused);
    let (reissued, reemitted) = resume(&mut outside, *horizon, &mut reporter, terms.generation)?;
    outside.forward_frames();
    outside.listen().map_err(Failure::new)?;
    watch_signals(&events, None)?;
    tracing::debug!(reissued, reemitted, "resumed");
    let private_disks = config.platform.private_disks().count();
    let core = Primary::new(terms.core(), terms.generation)
        .with(boot, paused)
        .with_private_disks(private_disks);
    let core = core.gone_live(logging_channel::clock::boottime_ns());
    let place = Doorway::find(args.listen).await;
    let door = place.and_then(|place| Door::closed(terms.generation).open(place, args, &terms, &arbiter, config));
    let mut door = door.unwrap_or_else(|failure| {
        tracing::warn!("no backup can join: {failure}");
        Door::closed(terms.generation)
    });
    door.heartbeats.push(heartbeats);
    let lead = Lead {
        core,
        terms,
        outside,
        reporter,
        arbiter,
        events,
        door,
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages: follower.pages,
        desk,
        orders,
        probe,
    };
    let beginning = Beginning::WentLive { reemitted };
    lead.run(stream, beginning).await.map_err(Failure::new)
}

fn resume(
    outside: &mut Outside,
    horizon: Horizon,
    reporter: &mut Reporter,
    generation: Generation,
) -> Result<(u64, u64), Failure> {
    let reissued = horizon.requests.len() as u64;
    for request in horizon.requests {
        outside
            .accept(&Emission::Disk(request), Gate::Open)
            .map_err(Failure::new)?;
    }
    outside.start_ready(|| Writes::Freely).map_err(Failure::new)?;
    let mut reemitted = 0;
    for output in horizon.outputs {
        if !matches!(output.emission, Emission::Disk(_)) {
            outside.release(&output).map_err(Failure::new)?;
            reemitted += 1;
        }
    }
    if let Some(len) = horizon.entropy {
        outside
            .accept(&Emission::WantEntropy { len }, Gate::Open)
            .map_err(Failure::new)?;
    }
    reporter.report(Event::WentLive {
        generation: generation.0,
        reissued,
        reemitted,
    });
    if reemitted > 0 {
        reporter.report(Event::FirstOutput);
    }
    Ok((reissued, reemitted))
}
