//! `ftvm run`: a guest as one side of a pair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logging_channel::codec;
use logging_channel::entry::{Generation, Incarnation};
use logging_channel::message::{DiskReads, Heartbeat, Join, PROTOCOL_VERSION, Standby, Welcome};
use logging_channel::session::{HANDSHAKE_TIMEOUT, JoinClient, join};
use logging_channel::transport::{Backoff, TcpFrames, connect};
use shared_disk::arbiter::SharedDirectory;
use shared_disk::plan::Gate;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::accept::{Offers, host_name, nanos};
use super::clone::PageSource;
use super::events::Reporter;
use super::follow::{Follow, Followed, Follower, FromFollower, ToFollower, start_follower};
use super::heartbeat::{Heartbeats, heard};
use super::lead::{Beginning, Lead};
use super::outside::Outside;
use super::record::watch_signals;
use super::vcpu::{self, GuestStream, live, new_clock, pair_sink};
use super::{Failure, guest};
use crate::backends::console;
use crate::backends::net::Inbound;
use crate::backends::queue::{EventQueue, EventSender, event_queue};
use crate::cli::RunArgs;
use crate::hypervisor::DeliveryMode;
use crate::hypervisor::selftest::Capabilities;
use crate::machine::config::MachineConfig;
use crate::machine::state::MAX_RECORD;
use crate::output::Emission;
use crate::roles::backup::{Backup, BackupConfig};
use crate::roles::event::{EXIT_LOST, EXIT_NOT_ENTITLED, Event};
use crate::roles::following::Horizon;
use crate::roles::primary::{Primary, PrimaryConfig, Writes};
use crate::roles::replay::NoDisks;

/// Most bytes of a machine configuration from a peer.
const MAX_CONFIG: usize = 1 << 20;

/// A backup may be started before its primary: it tries for about half a minute.
const PATIENT: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(500),
    attempts: 64,
    each: Duration::from_secs(2),
};

/// A standby looks for itself again.
const ONCE: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_millis(50),
    attempts: 1,
    each: Duration::from_secs(1),
};

/// Between two looks of a standby at its peers.
const STANDBY_PAUSE: Duration = Duration::from_millis(500);

/// `ftvm run`
///
/// # Errors
/// A sentence for the user.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    if args.lease > args.detection {
        let text = format!(
            "--lease {} ms must not exceed --detection {} ms",
            args.lease, args.detection
        );
        return Err(Failure { code: 2, text });
    }
    if args.die_with_parent {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Failure::new)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(Failure::new)?;
    let code = if args.primary {
        runtime.block_on(primary(args))
    } else if args.standby {
        runtime.block_on(standby(args))
    } else {
        runtime.block_on(backup(args))
    };
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

fn arbiter(args: &RunArgs) -> Result<Arc<SharedDirectory>, Failure> {
    let arbiter = SharedDirectory::new(&args.shared, &args.name).map_err(Failure::new)?;
    Ok(Arc::new(arbiter))
}

async fn primary(args: &RunArgs) -> Result<u8, Failure> {
    let me = Incarnation(guest::random_u128()?);
    let kernel = guest::kernel(&args.guest)?;
    let arbiter = arbiter(args)?;
    let mut reporter = Reporter::open("primary", args.events.as_deref())?;
    let (events, queue) = event_queue();
    let keep = Duration::from_millis(2 * args.detection);
    let mut outside =
        Outside::open(&args.host, console::Life::First, Inbound::Forward, keep, &events).map_err(Failure::new)?;
    let sizes = outside.open_disks().map_err(Failure::new)?;
    let capabilities = guest::capabilities()?;
    let config = guest::configure(&args.guest, &args.host, &kernel, &sizes, capabilities.best_delivery())?;
    // The guest's RTC shows the time of its configuration and what has gone by since: loading it takes a while.
    let clock = new_clock();
    let machine = guest::boot(&config, &kernel, &capabilities)?;
    let generation = Generation(arbiter.start(me.0).map_err(Failure::new)?);
    reporter.report(Event::Leading {
        generation: generation.0,
    });
    outside.listen().map_err(Failure::new)?;
    watch_signals(&events, None)?;
    let terms = Terms {
        me,
        guest: guest::random_u128()?,
        generation,
        detection: Duration::from_millis(args.detection),
        lease: Duration::from_millis(args.lease),
        patience: Duration::from_millis(args.guest.patience),
        disk_reads: args.disk_reads.into(),
    };
    let door = Door::closed(generation).open(args, &terms, &arbiter, &config).await?;
    let (sink, stream) = pair_sink(terms.disk_reads);
    let life = vcpu::Life {
        sink,
        queue,
        events: events.clone(),
        clock,
        patience: terms.patience,
    };
    let pages = PageSource::new(machine.memory().clone());
    let thread = std::thread::Builder::new().name("vcpu".to_owned());
    thread.spawn(move || live(machine, life)).map_err(Failure::new)?;
    let core = Primary::new(terms.core(), generation);
    lead(
        core,
        terms,
        outside,
        reporter,
        arbiter,
        events,
        door,
        &config,
        stream,
        pages,
        Beginning::Started,
    )
    .await
}

/// What a pair has agreed on.
#[derive(Clone, Copy, Debug)]
struct Terms {
    me: Incarnation,
    guest: u128,
    generation: Generation,
    detection: Duration,
    lease: Duration,
    patience: Duration,
    disk_reads: DiskReads,
}

impl Terms {
    fn core(&self) -> PrimaryConfig {
        PrimaryConfig {
            me: self.me,
            guest: self.guest,
            detection_ns: nanos(self.detection),
            lease_ns: nanos(self.lease),
        }
    }
}

/// Where backups join and heartbeats arrive.
#[derive(Debug)]
struct Door {
    offers: Option<Offers>,
    heartbeats: Vec<Heartbeats>,
    hearing: mpsc::Sender<Heartbeat>,
    heard: mpsc::Receiver<Heartbeat>,
    generation: watch::Sender<Generation>,
}

impl Door {
    fn closed(generation: Generation) -> Self {
        let (hearing, heard) = heard();
        Door {
            offers: None,
            heartbeats: Vec::new(),
            hearing,
            heard,
            generation: watch::Sender::new(generation),
        }
    }

    /// Opens it at `--listen`, if that was asked for.
    async fn open(
        mut self,
        args: &RunArgs,
        terms: &Terms,
        arbiter: &Arc<SharedDirectory>,
        config: &MachineConfig,
    ) -> Result<Self, Failure> {
        let Some(listen) = args.listen else { return Ok(self) };
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| Failure::new(format!("--listen {listen}: {e}")))?;
        let address = listener.local_addr().map_err(Failure::new)?;
        let hearing = self.hearing.clone();
        let heartbeats = Heartbeats::start(address, None, terms.guest, terms.generation, terms.me, hearing).await?;
        self.heartbeats.push(heartbeats);
        tracing::info!("backups may join at {address}");
        self.offers = Some(Offers {
            listener,
            arbiter: Arc::clone(arbiter),
            guest: terms.guest,
            generation: self.generation.subscribe(),
            owner: terms.me,
            config: config.clone(),
            encoded: codec::to_bytes(config).map_err(Failure::new)?,
            detection: terms.detection,
            lease: terms.lease,
            patience: terms.patience,
            disk_reads: terms.disk_reads,
            host: host_name(),
            site: args.site.clone(),
            nonces: Mutex::default(),
        });
        Ok(self)
    }
}

#[allow(clippy::too_many_arguments, reason = "called twice, with all that a primary has")]
async fn lead(
    core: Primary,
    terms: Terms,
    outside: Outside,
    reporter: Reporter,
    arbiter: Arc<SharedDirectory>,
    events: EventSender,
    door: Door,
    config: &MachineConfig,
    stream: GuestStream,
    pages: PageSource,
    beginning: Beginning,
) -> Result<u8, Failure> {
    let lead = Lead {
        core,
        me: terms.me,
        detection: terms.detection,
        outside,
        reporter,
        arbiter,
        events,
        offers: door.offers,
        heartbeats: door.heartbeats,
        heard: door.heard,
        generation: door.generation,
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages,
    };
    lead.run(stream, beginning).await.map_err(Failure::new)
}

async fn backup(args: &RunArgs) -> Result<u8, Failure> {
    let [peer] = args.peer[..] else {
        let text = format!(
            "--backup joins one --peer, {} were given; --standby takes several",
            args.peer.len()
        );
        return Err(Failure { code: 2, text });
    };
    let joiner = Joiner::new(args)?;
    let joined = joiner.join(peer, PATIENT).await?;
    Ok(match protect(args, &joiner, peer, joined).await? {
        Life::Followed(code) | Life::Led(code) => code,
    })
}

/// Waits for a guest that needs a backup, becomes that, and again when the place is lost without having lived.
async fn standby(args: &RunArgs) -> Result<u8, Failure> {
    let mut reporter = Reporter::open("standby", args.events.as_deref())?;
    let mut said = String::new();
    loop {
        for peer in &args.peer {
            let joiner = Joiner::new(args)?;
            let why = match joiner.join(*peer, ONCE).await {
                Err(failure) => format!("{peer}: {failure}"),
                Ok(joined) => match protect(args, &joiner, *peer, joined).await? {
                    Life::Followed(code @ (EXIT_LOST | EXIT_NOT_ENTITLED)) => {
                        format!("{peer}: this backup left the pair with code {code}")
                    }
                    Life::Followed(code) | Life::Led(code) => return Ok(code),
                },
            };
            if why != said {
                reporter.report(Event::StandingBy { why: why.clone() });
                said = why;
            }
        }
        tokio::time::sleep(STANDBY_PAUSE).await;
    }
}

/// How a backup's life in this process went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It never went live.
    Followed(u8),
    Led(u8),
}

/// A process that may become a backup.
#[derive(Debug)]
struct Joiner<'a> {
    args: &'a RunArgs,
    me: Incarnation,
    arbiter: Arc<SharedDirectory>,
    capabilities: Capabilities,
}

/// With a backup that has just joined `peer`.
async fn protect(
    args: &RunArgs,
    joiner: &Joiner<'_>,
    peer: SocketAddr,
    (frames, welcome, config): (TcpFrames, Welcome, MachineConfig),
) -> Result<Life, Failure> {
    let Joiner {
        me,
        arbiter,
        capabilities,
        ..
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
        console::Life::Continued,
        Inbound::Keep,
        2 * terms.detection,
        &events,
    );
    let outside = outside.map_err(Failure::new)?;
    let machine = guest::empty(&config, capabilities)?;
    let mut follower = match terms.disk_reads {
        DiskReads::Log => start_follower(machine, NoDisks),
        DiskReads::Backup => start_follower(machine, super::reads::DiskReads::open(&args.host.disks)?),
    }?;
    let any = if peer.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let (hearing, heard) = heard();
    let local = SocketAddr::new(any, 0);
    let heartbeats = Heartbeats::start(local, Some(peer), terms.guest, terms.generation, me, hearing).await?;
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
    };
    match follow.run(frames, &mut follower).await {
        Followed::Ended(code) => Ok(Life::Followed(code)),
        Followed::GoLive(generation, follow) => {
            let terms = Terms { generation, ..terms };
            let led = go_live(args, terms, *follow, follower, outside, (events, queue), &config).await;
            led.map(Life::Led)
        }
    }
}

impl<'a> Joiner<'a> {
    fn new(args: &'a RunArgs) -> Result<Self, Failure> {
        Ok(Joiner {
            args,
            me: Incarnation(guest::random_u128()?),
            arbiter: arbiter(args)?,
            capabilities: guest::capabilities()?,
        })
    }

    /// Connects, shakes hands, and checks what this host must be able to do for the guest.
    async fn join(&self, peer: SocketAddr, tries: Backoff) -> Result<(TcpFrames, Welcome, MachineConfig), Failure> {
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
        let mut client = JoinClient::new(hello, MAX_RECORD);
        let prove = async |welcome: &Welcome| {
            acceptable(args, welcome)?;
            let (arbiter, name) = (Arc::clone(&self.arbiter), welcome.nonce_name.clone());
            let read = tokio::task::spawn_blocking(move || arbiter.read_nonce(&name)).await;
            read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        };
        let welcome = join(&mut frames, &mut client, HANDSHAKE_TIMEOUT, prove).await;
        let welcome = welcome.map_err(|e| Failure {
            code: EXIT_NOT_ENTITLED,
            text: e.to_string(),
        })?;
        let config = codec::from_bytes(&welcome.config, MAX_CONFIG).map_err(Failure::new)?;
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
fn acceptable(args: &RunArgs, welcome: &Welcome) -> Result<(), String> {
    let config: MachineConfig = codec::from_bytes(&welcome.config, MAX_CONFIG).map_err(|e| e.to_string())?;
    config.validate()?;
    config
        .profile
        .check_supported()
        .map_err(|e| format!("the backup's CPU: {e}"))?;
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
    Ok(())
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
    let (reissued, reemitted) = resume(&mut outside, *horizon, &mut reporter, terms.generation)?;
    outside.forward_frames();
    outside.listen().map_err(Failure::new)?;
    watch_signals(&events, None)?;
    tracing::debug!(reissued, reemitted, "resumed");
    let core = Primary::new(terms.core(), terms.generation);
    let door = Door::closed(terms.generation)
        .open(args, &terms, &arbiter, config)
        .await;
    let mut door = door.unwrap_or_else(|failure| {
        tracing::warn!("no backup can join: {failure}");
        Door::closed(terms.generation)
    });
    door.heartbeats.push(heartbeats);
    lead(
        core,
        terms,
        outside,
        reporter,
        arbiter,
        events,
        door,
        config,
        stream,
        follower.pages,
        Beginning::WentLive { reemitted },
    )
    .await
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
