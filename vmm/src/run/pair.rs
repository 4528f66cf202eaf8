//! `ftvm run`: a guest as one side of a pair.

use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::{Generation, Incarnation};
use shared_disk::arbiter::Arbiter;

use super::clone::PageSource;
use super::control::{self, Desk};
use super::door::{Door, Doorway};
use super::events::Reporter;
use super::guest;
use super::health::Probe;
use super::heartbeat::heard;
use super::join::{Joiner, ONCE, PATIENT};
use super::lead::{Hears, Leading, Pending, begin, lead};
use super::outside::Outside;
use super::protect::{Life, protect};
use super::shell::Shell;
use super::vcpu::{self, live, new_clock};
use crate::cli::RunArgs;
use crate::failure::Failure;
use ftvm_host::console;
use ftvm_host::net::Inbound;
use ftvm_host::queue::event_queue;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::event::Event;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::terms::Terms;

/// Between two looks of a standby at its peers.
const STANDBY_PAUSE: Duration = Duration::from_millis(500);

/// `ftvm run`
///
/// # Errors
/// A sentence for the user.
pub fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    if args.lease > args.detection {
        let text = format!(
            "--lease {} ms must not exceed --detection {} ms",
            args.lease, args.detection
        );
        return Err(Failure::usage(text));
    }
    if args.die_with_parent {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Failure::new)?;
    }
    // One thread: an output waits for a frame to leave and an ack to come back, and each change of thread on that way takes as
    // long as the network. What takes time (pages, blocks, storage) has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::new)?;
    let desk = Desk::default();
    let socket = args.control.as_ref().map(|path| {
        let _entered = runtime.enter();
        control::listen(path, desk.clone())
    });
    let socket = socket.transpose()?;
    let code = if args.primary {
        runtime.block_on(async {
            match primary(args, desk.clone()).await? {
                ExitCode::HandedOver if !args.peer.is_empty() => standby(args, desk).await,
                code => Ok(code),
            }
        })
    } else if args.standby {
        runtime.block_on(standby(args, desk))
    } else {
        runtime.block_on(backup(args, desk))
    };
    drop(socket);
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

pub(super) fn arbiter(args: &RunArgs) -> Result<Arc<dyn Arbiter>, Failure> {
    args.storage.shared.open(&args.storage.name).map_err(Failure::new)
}

async fn primary(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let me = Incarnation(ftvm_host::entropy::random_u128()?);
    let kernel = guest::kernel(&args.guest)?;
    let arbiter = arbiter(args)?;
    let reporter = Reporter::open("primary", args.events.as_deref())?;
    let (events, queue) = event_queue();
    let keep = Duration::from_millis(2 * args.detection);
    let mut outside =
        Outside::open(&args.host, console::ByteStream::New, Inbound::Forward, keep, &events).map_err(Failure::new)?;
    let sizes = outside.open_disks().map_err(Failure::new)?;
    let capabilities = guest::capabilities()?;
    let config = guest::configure(&args.guest, &args.host, &kernel, &sizes, capabilities.best_delivery())?;
    // The guest's RTC shows the time of its configuration and what has gone by since: loading it takes a while.
    let clock = new_clock();
    let mut machine = guest::boot(&config, &kernel, &capabilities)?;
    let boot = BootCell::default();
    if args.control.is_some() {
        machine.set_boot(Arc::clone(&boot));
        guest::keep_boot(&mut machine, config.clone(), kernel, Arc::clone(&boot))?;
    }
    outside
        .may_start(arbiter.last().map_err(Failure::new)?.as_ref())
        .map_err(Failure::new)?;
    // Before this guest's name is taken on the storage: a port that is not free then costs nothing but another start.
    let place = args.listen.map(Doorway::find).transpose().map_err(Failure::new)?;
    let generation = Generation(arbiter.start(me.0).map_err(Failure::new)?);
    let terms = Terms {
        me,
        guest: ftvm_host::entropy::random_u128()?,
        generation,
        detection_ns: nanos(args.detection),
        lease_ns: nanos(args.lease),
        patience_ns: nanos(args.guest.patience),
        disk_reads: args.disk_reads.into(),
    };
    let (life, guest, reins) = vcpu::Life::new(&terms, queue, &events, clock);
    let (hearing, heard) = heard();
    let side = Leading {
        terms,
        outside,
        events,
        reins,
        door: Door::new(args.listen, place, &args.site, &config, &arbiter, hearing),
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages: PageSource::new(machine.memory().clone()),
        desk,
        pending: Pending::default(),
    };
    let mut shell = Shell::new(me, reporter, arbiter, side);
    let link = begin(&mut shell, boot, Beginning::Started).await;
    let link = link.map_err(Failure::new)?;
    let thread = std::thread::Builder::new().name("vcpu".to_owned());
    thread.spawn(move || live(machine, life)).map_err(Failure::new)?;
    let hears = Hears {
        guest,
        heartbeats: heard,
        probe: Probe::start(&args.host),
    };
    lead(shell, link, hears).await.map_err(Failure::new)
}

/// Nanoseconds of a time that the command line gives in milliseconds.
fn nanos(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000_000)
}

async fn backup(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let [peer] = args.peer[..] else {
        let text = format!(
            "--backup joins one --peer, {} were given; --standby takes several",
            args.peer.len()
        );
        return Err(Failure::usage(text));
    };
    let joiner = Joiner::new(args, desk)?;
    let joined = joiner.join(peer, PATIENT).await?;
    Ok(match protect(&joiner, peer, joined).await? {
        Life::Followed { code, .. } | Life::Led(code) => code,
    })
}

/// Waits for a guest that needs a backup, becomes that, and again when the place is lost without having lived. Each try is
/// another incarnation: a backup is never taken for the one that was there before it.
async fn standby(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let mut reporter = Reporter::open("standby", args.events.as_deref())?;
    let mut joiner = Joiner::new(args, desk)?;
    let mut said = String::new();
    loop {
        for peer in &args.peer {
            joiner.me = Incarnation(ftvm_host::entropy::random_u128()?);
            let why = match joiner.join(*peer, ONCE).await {
                Err(failure) => format!("{peer}: {failure}"),
                Ok(joined) => match protect(&joiner, *peer, joined).await? {
                    Life::Followed {
                        code: code @ (ExitCode::Lost | ExitCode::NotEntitled),
                        claimed: false,
                    } => format!("{peer}: this backup left the pair with code {code}"),
                    Life::Led(ExitCode::HandedOver) => "the guest has been handed over".to_owned(),
                    Life::Followed { code, .. } | Life::Led(code) => return Ok(code),
                },
            };
            joiner.desk.stands_by();
            if why != said {
                reporter.report(Event::StandingBy { why: why.clone() });
                said = why;
            }
        }
        tokio::time::sleep(STANDBY_PAUSE).await;
    }
}
