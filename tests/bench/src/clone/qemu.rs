//! QEMU's side: a guest that is migrated from process to process.
//!
//! The machine is `pc`. `dirty` enters by PVH, behind SeaBIOS; Linux has the interrupt controllers and clocks that ftvm's has.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::stats::{median, number};
use super::qmp::Qemu;
use super::{CLONE_LIMIT, Clone, Guest, Kind, LOOK, Settings, during, rates_on, text, warm_up};
use ftvm_lab::nested::programs;
use ftvm_lab::pair::free_address;

/// What the guest's stop may last, in ms: QEMU's default, and ftvm's goal.
const DOWNTIME_LIMITS: [u32; 2] = [300, 50];
/// Limit on the bytes of a second, which by default is 128 MiB: ftvm has none.
const BANDWIDTH: u64 = 1 << 34;

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// QEMU's emulator, on the machine outside the nested host: the processor that QEMU 7.2 emulates there leaves out nested
    /// paging for a guest that has switched off paging of its own, so that the guest's firmware would be the host's.
    Tcg,
}

/// Migrations, of one kind for each limit, in turns. `each` is told of progress.
///
/// # Errors
/// A sentence: QEMU is not there, or its guest does not come up.
pub(super) fn measure(settings: &Settings, each: &mut dyn FnMut(&str)) -> Result<Vec<Kind>, String> {
    let program = &programs::find("qemu-system-x86_64").map_err(|e| e.to_string())?;
    each("QEMU: the guest boots");
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let arguments = arguments(settings, folder.path())?;
    let mut kinds: Vec<Kind> = DOWNTIME_LIMITS.map(kind).to_vec();
    let mut source = Qemu::start(program, folder.path(), "0", &arguments)?;
    let turns = (0..settings.clones).flat_map(|_| (0..).zip(DOWNTIME_LIMITS));
    for (number, (at, limit)) in (1..).zip(turns) {
        let before = rates_on(&source.console()).len();
        let warm = warm_up(&source.console(), before).map_err(|wrong| format!("{wrong}; {}", source.last_words()))?;
        let incoming = [arguments.clone(), vec!["-incoming".to_owned(), "defer".to_owned()]].concat();
        let mut target = Qemu::start(program, folder.path(), &number.to_string(), &incoming)?;
        let clone = migrate(&mut source, &mut target, limit, median(&warm));
        each(&format!("{}: {clone:?}", kinds[at].name));
        let done = clone.is_ok();
        kinds[at].clones.push(clone);
        if done {
            source = target;
        } else if source.ask("query-status", &json!({}))?["running"] != true {
            break;
        }
    }
    Ok(kinds)
}

fn kind(limit: u32) -> Kind {
    Kind {
        name: format!("QEMU, limit {limit} ms"),
        key: format!("qemu_{limit}"),
        clones: Vec::new(),
    }
}

fn arguments(settings: &Settings, folder: &Path) -> Result<Vec<String>, String> {
    let machine = match (&settings.guest, settings.accelerator) {
        (_, Accelerator::Tcg) => "accel=tcg",
        (Guest::Builtin, Accelerator::Kvm) => "accel=kvm",
        // Without a local APIC in the processor there is none in the kernel.
        (Guest::Linux(_), Accelerator::Kvm) => "accel=kvm,kernel-irqchip=off",
    };
    let guest = match &settings.guest {
        Guest::Builtin => builtin(settings, folder)?,
        Guest::Linux(built) => vec![
            "-M".to_owned(),
            "pc,smm=off,acpi=off".to_owned(),
            "-cpu".to_owned(),
            "qemu64,-tsc,-apic".to_owned(),
            "-kernel".to_owned(),
            text(&built.kernel),
            "-initrd".to_owned(),
            text(&built.initrd),
            "-append".to_owned(),
            format!(
                "console=ttyS0 quiet nokaslr mitigations=off lpj=4000000 no_timer_check acpi=off noapic nolapic nosmp \
                 pci=conf1 panic=-1 reboot=t {}",
                settings.cmdline()
            ),
        ],
    };
    let memory = settings.memory_mib.to_string();
    let all = [
        "-M",
        machine,
        "-m",
        &memory,
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
    ];
    Ok(guest.into_iter().chain(all.map(str::to_owned)).collect())
}

fn builtin(settings: &Settings, folder: &Path) -> Result<Vec<String>, String> {
    let guest = guest_images::find("dirty").ok_or("the guest `dirty` is not built in")?;
    let image = folder.join("dirty.elf");
    fs::write(&image, guest.image).map_err(|e| format!("{}: {e}", image.display()))?;
    let (image, cmdline) = (text(&image), settings.cmdline());
    let words = [
        "-M",
        "pc,smm=off",
        "-cpu",
        "qemu64",
        "-kernel",
        &image,
        "-append",
        &cmdline,
    ];
    Ok(words.map(str::to_owned).to_vec())
}

fn migrate(source: &mut Qemu, target: &mut Qemu, limit: u32, rate_before: f64) -> Result<Clone, String> {
    let uri = json!({ "uri": format!("tcp:{}", free_address()) });
    target.ask("migrate-incoming", &uri)?;
    let parameters = json!({ "max-bandwidth": BANDWIDTH, "downtime-limit": limit });
    source.ask("migrate-set-parameters", &parameters)?;
    let lines = rates_on(&source.console()).len();
    source.forget_events();
    source.ask("migrate", &uri)?;
    let seen = completed(source, target)?;
    let stopped = target.wait_event("RESUME")? - source.wait_event("STOP")?;
    let figure = |value: &Value| number(value.as_u64().unwrap_or(0));
    Ok(Clone {
        stopped_ms: stopped * 1e3,
        downtime_ms: Some(figure(&seen["downtime"])),
        total_ms: figure(&seen["total-time"]),
        bytes: seen["ram"]["transferred"].as_u64().unwrap_or(0),
        rate_before,
        rate_during: during(&rates_on(&source.console())[lines..]),
    })
}

/// Waits until it is over: what `query-migrate` says then. One that does not end is called off, and the guest goes on.
fn completed(source: &mut Qemu, target: &Qemu) -> Result<Value, String> {
    let begun = Instant::now();
    let mut called_off = None;
    loop {
        let seen = source.ask("query-migrate", &json!({}))?;
        match (seen["status"].as_str(), &called_off) {
            (Some("completed"), _) => return Ok(seen),
            (Some("cancelled"), Some(last)) => return Err(format!("not over after {CLONE_LIMIT:?}: {last}")),
            (Some("failed" | "cancelled"), _) => {
                return Err(format!("{seen}; the target: {}", target.last_words()));
            }
            (_, None) if begun.elapsed() > CLONE_LIMIT => {
                source.ask("migrate_cancel", &json!({}))?;
                called_off = Some(seen);
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}
