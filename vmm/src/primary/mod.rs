//! A primary, from the guest's start on this host: what it needs ([`Prepared`]), its right to live, and its link ([`shell`]).

pub mod shell;

use std::sync::Arc;
use std::time::Duration;

use ftvm_host::console;
use ftvm_host::entropy::random_u128;
use ftvm_host::net::Inbound;
use ftvm_host::queue::{EventSender, event_queue};
use ftvm_kvm::KvmCpu;
use ftvm_machine::config::MachineConfig;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::clock::LiveClock;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::terms::Terms;
use ftvm_schema::entry::{Generation, Incarnation};

use crate::cli::RunArgs;
use crate::control::Desk;
use crate::events::Reporter;
use crate::failure::Failure;
use crate::guest;
use crate::link::heartbeats::heard;
use crate::link::listening::{BoundSockets, Listener};
use crate::link::pages::PageSource;
use crate::link::shell::Shell;
use crate::link::vcpu::{self, live, new_clock};
use crate::outside::Outside;
use crate::outside::probe::Probe;
use shell::{Hears, Pending, PrimarySide, begin, lead};

/// A guest that is ready to be started here.
struct Prepared {
    outside: Outside,
    config: MachineConfig,
    clock: LiveClock,
    machine: Machine<KvmCpu>,
    /// The state to reset to, or where it will be.
    boot: BootCell,
}

impl Prepared {
    fn new(args: &RunArgs, events: &EventSender) -> Result<Self, Failure> {
        let kernel = guest::kernel(&args.guest)?;
        let keep = Duration::from_millis(2 * args.detection);
        let mut outside = Outside::open(&args.host, console::ByteStream::New, Inbound::Forward, keep, events)?;
        let sizes = outside.disks.open()?;
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
        Ok(Prepared {
            outside,
            config,
            clock,
            machine,
            boot,
        })
    }
}

/// Starts the guest here, and leads until this process is to end.
///
/// # Errors
/// A sentence for the user.
pub(crate) async fn primary(args: &RunArgs, desk: Desk) -> Result<ExitCode, Failure> {
    let me = Incarnation(random_u128()?);
    let arbiter = args.arbiter()?;
    let reporter = Reporter::open("primary", args.events.as_deref())?;
    let (events, queue) = event_queue();
    let Prepared {
        outside,
        config,
        clock,
        machine,
        boot,
    } = Prepared::new(args, &events)?;
    outside.disks.may_start(arbiter.last()?.as_ref())?;
    // Before this guest's name is taken on the storage: a port that is not free then costs nothing but another start.
    let place = args.listen.map(BoundSockets::find).transpose()?;
    let terms = Terms {
        me,
        guest: random_u128()?,
        generation: Generation(arbiter.start(me.0)?),
        detection_ns: nanos(args.detection),
        lease_ns: nanos(args.lease),
        patience_ns: nanos(args.guest.patience),
        disk_reads: args.disk_reads.into(),
    };
    let (life, guest, reins) = vcpu::Life::new(&terms, queue, &events, clock);
    let (hearing, heard) = heard();
    let side = PrimarySide {
        terms,
        outside,
        events,
        reins,
        listener: Listener::new(args.listen, place, &args.site, &config, &arbiter, hearing),
        macs: config.platform.nics.iter().map(|nic| nic.mac).collect(),
        pages: PageSource::new(machine.memory().clone()),
        desk,
        pending: Pending::default(),
    };
    let mut shell = Shell::new(me, reporter, arbiter, side);
    let link = begin(&mut shell, boot, Beginning::Started).await?;
    let thread = std::thread::Builder::new().name("vcpu".to_owned());
    thread.spawn(move || live(machine, life))?;
    let hears = Hears {
        guest,
        heartbeats: heard,
        probe: Probe::start(&args.host),
    };
    Ok(lead(shell, link, hears).await?)
}

/// Nanoseconds of a time that the command line gives in milliseconds.
fn nanos(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000_000)
}
