//! From a command line to a machine.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use ftvm_devices::{DiskAccess, DiskConfig, DiskSharing, NicConfig, PlatformConfig};
use ftvm_host::entropy::{EntropyError, random_u64};
use ftvm_hypervisor::{CpuError, DeliveryMode};
use ftvm_kvm::KvmCpu;
use ftvm_kvm::selftest::{Capabilities, CheckVerdict, NoLinux};
use ftvm_machine::audit::modules::{Uncaught, uncaught};
use ftvm_machine::boot::{BootError, BuiltIn, Kernel};
use ftvm_machine::config::{GuestKind, MACHINE_VERSION, MachineConfig, MachineConfigError};
use ftvm_machine::machine::intervention::{BootCell, boot_record};
use ftvm_machine::machine::state::PAGE;
use ftvm_machine::machine::{Machine, MachineError, allocate_memory};
use ftvm_schema::request::SECTOR;
use shared_disk::image::ImageAccess;

use crate::cli::{GuestArgs, HostArgs};
use crate::failure::Failure;

/// First bytes of a MAC address drawn for a card that was given none: locally administered, as QEMU's.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

/// Why there is no guest to be run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The start-up self-test found something that replays would not survive.
    #[error("{reason}. {remedy} `ftvm doctor` tells more.")]
    Unfit { reason: String, remedy: String },
    /// No `--kernel`.
    #[error("--kernel IMAGE is needed; `ftvm guests` lists what is built in")]
    NoKernel,
    /// The kernel, or its initrd, is none.
    #[error(transparent)]
    Image(#[from] BootError),
    /// The machine's configuration is none that can be built.
    #[error("{0}")]
    Config(#[from] MachineConfigError),
    /// The machine as this host's KVM makes it can boot no Linux.
    #[error("this host's KVM does not run Linux guests: {0}")]
    NoLinux(#[from] NoLinux),
    /// For a MAC address or the guest's seed.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// KVM refuses.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The machine refuses.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host has no thread to give.
    #[error("cannot start a thread for the boot record: {0}")]
    Thread(#[source] std::io::Error),
}

/// What this host's KVM can do, as the start-up self-test finds it.
///
/// # Errors
/// If it cannot run guests so that they can be replayed; the first reason, and what to do.
pub fn capabilities() -> Result<Capabilities, GuestError> {
    let capabilities = Capabilities::at_startup();
    match capabilities
        .checks
        .iter()
        .find(|check| check.verdict == CheckVerdict::Failed)
    {
        None => Ok(capabilities),
        Some(check) => Err(GuestError::Unfit {
            reason: check.reason.clone(),
            remedy: check.remedy.clone(),
        }),
    }
}

/// Nanoseconds of Unix time.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The guests that this program brings with it.
#[must_use]
pub fn built_in() -> Vec<BuiltIn> {
    let brought = guest_images::all().iter();
    brought
        .map(|guest| BuiltIn {
            name: guest.name,
            image: guest.image,
        })
        .collect()
}

/// The kernel the user asked for.
///
/// # Errors
/// If none was named, or it cannot be read.
pub fn kernel(args: &GuestArgs) -> Result<Kernel, Failure> {
    let Some(name) = &args.kernel else {
        return Err(Failure::usage(GuestError::NoKernel));
    };
    let kernel = Kernel::open(name, args.initrd.as_deref(), &built_in());
    Ok(kernel.map_err(GuestError::Image)?)
}

/// The configuration of a new guest. `disk_sizes` are bytes, in the order of `host.disks`.
///
/// # Errors
/// If it cannot be built.
pub fn configure(
    args: &GuestArgs,
    host: &HostArgs,
    kernel: &Kernel,
    disk_sizes: &[u64],
    delivery: DeliveryMode,
) -> Result<MachineConfig, Failure> {
    let cmdline = kernel
        .cmdline(&args.cmdline, &modules_to_keep_out(kernel))
        .map_err(Failure::usage)?;
    let mut nics = Vec::new();
    for net in &host.nets {
        let [.., a, b, c] = random_u64()?.to_le_bytes();
        let mac = net
            .mac
            .unwrap_or([MAC_PREFIX[0], MAC_PREFIX[1], MAC_PREFIX[2], a, b, c]);
        nics.push(NicConfig { mac });
    }
    let disks = host
        .disks
        .iter()
        .zip(disk_sizes)
        .enumerate()
        .map(|(index, (option, size))| DiskConfig {
            sectors: size / SECTOR,
            access: match option.access() {
                ImageAccess::ReadOnly => DiskAccess::ReadOnly,
                ImageAccess::ReadWrite => DiskAccess::ReadWrite,
            },
            sharing: if option.is_private() {
                DiskSharing::Private
            } else {
                DiskSharing::Shared
            },
            serial: format!("ftvm{index}"),
        });
    let config = MachineConfig {
        version: MACHINE_VERSION,
        memory: args.memory.0,
        kernel: kernel.id().clone(),
        initrd: kernel.initrd().cloned(),
        guest: kernel.kind(),
        cmdline,
        seed: random_u64()?,
        platform: PlatformConfig {
            nics,
            disks: disks.collect(),
            virtio_console: host.virtio_console.is_some(),
            rng: host.rng,
            wall_clock_ns: unix_ns(),
        },
        profile: ftvm_kvm::profile::of_this_host(delivery)?,
    };
    config.validate().map_err(GuestError::Config)?;
    Ok(config)
}

/// Modules in the initrd that would make a replay diverge; the user hears of them, and of what could not be searched.
fn modules_to_keep_out(kernel: &Kernel) -> BTreeSet<String> {
    let Uncaught { names, unsearched } = kernel.initrd_bytes().map(uncaught).unwrap_or_default();
    if !names.is_empty() {
        let list: Vec<&str> = names.iter().map(String::as_str).collect();
        tracing::warn!(
            "modules in the initrd that read the time stamp counter where nothing catches it are kept out \
             (module_blacklist): {}",
            list.join(", ")
        );
    }
    for what in unsearched {
        tracing::warn!("not searched for modules that read the time stamp counter, which would diverge: {what}");
    }
    names
}

/// Whether this host's KVM can run the guest at all.
///
/// # Errors
/// [`GuestError::NoLinux`]: why it cannot, and what to do.
pub fn check_host(config: &MachineConfig, host: &Capabilities) -> Result<(), GuestError> {
    match config.guest {
        GuestKind::BareMetal => Ok(()),
        GuestKind::Linux => host.check_linux().map_err(GuestError::NoLinux),
    }
}

/// A machine with `kernel` loaded, about to make its first step.
///
/// # Errors
/// If this host's KVM does not run such guests, or KVM or the image refuses.
pub fn boot(config: &MachineConfig, kernel: &Kernel, host: &Capabilities) -> Result<Machine<KvmCpu>, GuestError> {
    check_host(config, host)?;
    let memory = allocate_memory(config.memory)?;
    let entry = kernel.load(config, &memory)?;
    let mut cpu = KvmCpu::new(&memory, &config.profile)?;
    cpu.set_page_table_refresh(host.page_table_refresh());
    cpu.set_entry(&entry)?;
    Ok(Machine::new(config, memory, cpu)?)
}

/// Makes the record from which a reset starts, on a thread of its own: the kernel is loaded once more for it.
///
/// # Errors
/// If KVM refuses, or the host has no thread to give.
pub fn keep_boot(
    machine: &mut Machine<KvmCpu>,
    config: MachineConfig,
    kernel: Kernel,
    boot: BootCell,
) -> Result<(), GuestError> {
    let cpu = machine.boot_cpu()?;
    let make = move || -> Result<Vec<u8>, GuestError> {
        let memory = allocate_memory(config.memory)?;
        kernel.load(&config, &memory)?;
        Ok(boot_record(cpu, &memory, config.memory / PAGE as u64)?)
    };
    let thread = std::thread::Builder::new().name("boot-record".to_owned());
    let thread = thread.spawn(move || match make() {
        Ok(record) => boot.set(record).unwrap_or_default(),
        Err(error) => tracing::warn!("the guest cannot be reset: {error}"),
    });
    thread.map(|_| ()).map_err(GuestError::Thread)
}

/// A machine for a state record to be loaded into.
///
/// # Errors
/// If KVM refuses.
pub fn empty(config: &MachineConfig, host: &Capabilities) -> Result<Machine<KvmCpu>, GuestError> {
    let memory = allocate_memory(config.memory)?;
    let mut cpu = KvmCpu::new(&memory, &config.profile)?;
    cpu.set_page_table_refresh(host.page_table_refresh());
    Ok(Machine::new(config, memory, cpu)?)
}
