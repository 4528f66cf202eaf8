//! From a command line to a machine.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::{GuestArgs, HostArgs};
use ftvm_devices::{DiskAccess, DiskConfig, DiskSharing, NicConfig, PlatformConfig};
use ftvm_host::entropy::random_u64;
use ftvm_host::failure::Failure;
use ftvm_host::stdio::answer;
use ftvm_hypervisor::DeliveryMode;
use ftvm_kvm::KvmCpu;
use ftvm_kvm::selftest::{Capabilities, CheckVerdict};
use ftvm_machine::audit::modules::{Uncaught, uncaught};
use ftvm_machine::boot::{BuiltIn, Kernel};
use ftvm_machine::config::{GuestKind, MACHINE_VERSION, MachineConfig};
use ftvm_machine::machine::intervention::{BootCell, boot_record};
use ftvm_machine::machine::state::PAGE;
use ftvm_machine::machine::{Machine, allocate_memory};

/// First bytes of a MAC address drawn for a card that was given none: locally administered, as QEMU's.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

/// What this host's KVM can do, as the start-up self-test finds it.
///
/// # Errors
/// If it cannot run guests so that they can be replayed; the first reason, and what to do.
pub fn capabilities() -> Result<Capabilities, Failure> {
    let capabilities = Capabilities::at_startup();
    match capabilities
        .checks
        .iter()
        .find(|check| check.verdict == CheckVerdict::Failed)
    {
        None => Ok(capabilities),
        Some(check) => Err(Failure::new(format!(
            "{}. {} `ftvm doctor` tells more.",
            check.reason, check.remedy
        ))),
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
        return Err(Failure {
            code: 2,
            text: "--kernel IMAGE is needed; `ftvm guests` lists what is built in".to_owned(),
        });
    };
    Kernel::open(name, args.initrd.as_deref(), &built_in()).map_err(Failure::new)
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
        .map_err(|error| Failure {
            code: 2,
            text: error.to_string(),
        })?;
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
            sectors: size / 512,
            access: if option.readonly {
                DiskAccess::ReadOnly
            } else {
                DiskAccess::ReadWrite
            },
            sharing: if option.private {
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
        profile: ftvm_kvm::profile::of_this_host(delivery).map_err(Failure::new)?,
    };
    config.validate().map_err(Failure::new)?;
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
/// Why it cannot, and what to do.
pub fn check_host(config: &MachineConfig, host: &Capabilities) -> Result<(), String> {
    match config.guest {
        GuestKind::BareMetal => Ok(()),
        GuestKind::Linux => host
            .check_linux()
            .map_err(|why| format!("this host's KVM does not run Linux guests: {why}")),
    }
}

/// A machine with `kernel` loaded, about to make its first step.
///
/// # Errors
/// If this host's KVM does not run such guests, or KVM or the image refuses.
pub fn boot(config: &MachineConfig, kernel: &Kernel, host: &Capabilities) -> Result<Machine<KvmCpu>, Failure> {
    check_host(config, host).map_err(Failure::new)?;
    let memory = allocate_memory(config.memory).map_err(Failure::new)?;
    let entry = kernel.load(config, &memory).map_err(Failure::new)?;
    let mut cpu = KvmCpu::new(&memory, &config.profile).map_err(Failure::new)?;
    cpu.set_page_table_refresh(host.page_table_refresh());
    cpu.set_entry(&entry).map_err(Failure::new)?;
    Machine::new(config, memory, cpu).map_err(Failure::new)
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
) -> Result<(), Failure> {
    let cpu = machine.boot_cpu().map_err(Failure::new)?;
    let make = move || {
        let memory = allocate_memory(config.memory).map_err(|e| e.to_string())?;
        kernel.load(&config, &memory).map_err(|e| e.to_string())?;
        boot_record(cpu, &memory, config.memory / PAGE as u64).map_err(|e| e.to_string())
    };
    let thread = std::thread::Builder::new().name("boot-record".to_owned());
    let thread = thread.spawn(move || match make() {
        Ok(record) => boot.set(record).unwrap_or_default(),
        Err(error) => tracing::warn!("the guest cannot be reset: {error}"),
    });
    thread.map(|_| ()).map_err(Failure::new)
}

/// A machine for a state record to be loaded into.
///
/// # Errors
/// If KVM refuses.
pub fn empty(config: &MachineConfig, host: &Capabilities) -> Result<Machine<KvmCpu>, Failure> {
    let memory = allocate_memory(config.memory).map_err(Failure::new)?;
    let mut cpu = KvmCpu::new(&memory, &config.profile).map_err(Failure::new)?;
    cpu.set_page_table_refresh(host.page_table_refresh());
    Machine::new(config, memory, cpu).map_err(Failure::new)
}

/// `ftvm guests`
///
/// # Errors
/// If standard output is gone.
pub fn list(json: bool) -> Result<u8, Failure> {
    let guests = guest_images::all();
    if json {
        let list: Vec<_> = guests
            .iter()
            .map(|guest| serde_json::json!({ "name": guest.name, "about": guest.about, "bytes": guest.image.len() }))
            .collect();
        answer(serde_json::Value::Array(list))?;
    } else {
        for guest in guests {
            let (name, bytes) = (guest.name, guest.image.len());
            answer(format_args!("builtin:{name:<8} {bytes:>8} bytes  {}", guest.about))?;
        }
    }
    Ok(0)
}
