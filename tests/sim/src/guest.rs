//! The guest: a random program for the scripted CPU, with a driver for one virtio disk.
//!
//! It speaks on the serial port, waits in HLT for ticks, typed bytes and finished requests, computes for long stretches
//! without an exit, and writes the same few sectors over and over. Everything that ever reached it, and where, is in
//! every later byte it says or writes.

use std::sync::Arc;

use ftvm_devices::{DiskAccess, DiskConfig, DiskSharing, PlatformConfig};
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::scripted::{Fill, Interrupts, Operand, Scratch, Script, ScriptStep, ScriptedCpu};
use ftvm_machine::config::{self, ImageId, MACHINE_VERSION, MIN_MEMORY, MachineConfig};
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::{BootCell, boot_record};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::rng::Rng;

/// Sectors of the disk: few, so that requests overlap.
pub const SECTORS: u64 = 6;
/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// RAM of a small guest, and of one whose micro-checkpoints take several frames.
const SMALL: usize = 0x4_0000;
const LARGE: usize = 0x20_0000;

/// Where the disk's registers are: the first slot of the bus.
const BAR: u64 = 0xe000_0000;
const DESCRIPTORS: u64 = 0x2000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const BUFFERS: u64 = 0x8000;
const RING: u64 = 128;
/// Request slots: writes, reads, a flush; each of three descriptors.
const WRITES: u64 = 6;
const READS: u64 = 4;
const UART: u16 = 0x3f8;

/// What kind of guest a run has.
#[derive(Clone, Debug)]
pub struct GuestKind {
    /// Whether its micro-checkpoints are longer than a log frame.
    pub large: bool,
    /// Whether it ends by itself.
    pub ends: Ending,
    pub length: u64,
    pub window: bool,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Never,
    PowerOff,
    TripleFault,
}

/// A guest that can be started on any host.
#[derive(Clone, Debug)]
pub struct Guest {
    program: Arc<Script>,
    config: MachineConfig,
    ram: usize,
    /// What a reset starts from.
    boot: Vec<u8>,
}

impl Guest {
    /// Pages of its RAM.
    #[must_use]
    pub fn pages(&self) -> u64 {
        (self.ram / ftvm_machine::machine::state::PAGE) as u64
    }

    /// The guest of a run.
    #[must_use]
    pub fn new(kind: &GuestKind, rng: &mut Rng) -> Self {
        let delivery = if kind.window {
            DeliveryMode::Window
        } else {
            DeliveryMode::None
        };
        let disk = DiskConfig {
            sectors: SECTORS,
            access: DiskAccess::ReadWrite,
            sharing: DiskSharing::Shared,
            serial: "sim".to_owned(),
        };
        let config = MachineConfig {
            version: MACHINE_VERSION,
            memory: MIN_MEMORY,
            kernel: ImageId {
                name: "simulated".to_owned(),
                sha256: [0; 32],
            },
            initrd: None,
            guest: config::GuestKind::BareMetal,
            cmdline: String::new(),
            seed: 0,
            platform: PlatformConfig {
                disks: vec![disk],
                ..PlatformConfig::default()
            },
            profile: CpuProfile {
                cpuid: Vec::new(),
                delivery,
            },
        };
        let mut guest = Guest {
            program: Arc::new(program(kind, rng)),
            config,
            ram: if kind.large { LARGE } else { SMALL },
            boot: Vec::new(),
        };
        let mut machine = guest.machine();
        let cpu = machine.boot_cpu().expect("a state");
        guest.boot = boot_record(cpu, machine.memory(), guest.pages()).expect("readable memory");
        guest
    }

    /// What a reset starts from.
    ///
    /// # Panics
    /// Never: the cell is new.
    #[must_use]
    pub fn boot(&self) -> BootCell {
        let boot = BootCell::default();
        boot.set(self.boot.clone()).expect("a new cell");
        boot
    }

    /// A machine that has not run. Its RAM is smaller than any real guest's, so that thousands of runs are quick.
    ///
    /// # Panics
    /// If the host has no memory left.
    #[must_use]
    pub fn machine(&self) -> Machine<ScriptedCpu> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), self.ram)]).expect("some RAM");
        let cpu = ScriptedCpu::new(&memory, Arc::clone(&self.program), self.config.profile.delivery);
        Machine::new(&self.config, memory, cpu).expect("a valid configuration")
    }
}

fn out(port: u16, size: u8, value: u64) -> ScriptStep {
    ScriptStep::PortWrite {
        port,
        size,
        value: Operand::Const(value),
    }
}

fn store(addr: u64, len: u8, value: u64) -> ScriptStep {
    ScriptStep::Store {
        addr,
        len,
        value: Operand::Const(value),
    }
}

fn register(offset: u64, len: u8, value: u64) -> ScriptStep {
    ScriptStep::MmioWrite {
        addr: BAR + offset,
        len,
        value: Operand::Const(value),
    }
}

fn program(kind: &GuestKind, rng: &mut Rng) -> Script {
    let mut steps = platform(rng);
    steps.extend(driver());
    steps.push(ScriptStep::SetInterrupts(Interrupts::On));
    let mut disk = Disk::default();
    for _ in 0..kind.length {
        random_step(kind, rng, &mut disk, &mut steps);
    }
    match kind.ends {
        Ending::PowerOff => steps.push(out(0xf4, 1, 0)),
        Ending::TripleFault => steps.push(ScriptStep::Fail),
        Ending::Never => {}
    }
    let repeat_from = steps.len();
    steps.extend([
        ScriptStep::SetInterrupts(Interrupts::On),
        speak(),
        ScriptStep::PortRead { port: UART, size: 1 },
        ScriptStep::Halt,
    ]);
    let handler = vec![
        ScriptStep::MmioRead {
            addr: BAR + 0x1000,
            len: 1,
        },
        ScriptStep::Store {
            addr: 0x7000,
            len: 8,
            value: Operand::Accumulator,
        },
        out(0x20, 1, 0x20),
    ];
    // Checkpoints of a large guest span several chunks, compressed as they are.
    let scratch = if kind.large {
        Scratch {
            first: 0x4_0000,
            pages: 400,
            fill: Fill::Page,
        }
    } else {
        Scratch {
            first: 0x2_0000,
            pages: 8,
            fill: Fill::Word,
        }
    };
    Script {
        steps,
        repeat_from,
        handler,
        scratch,
    }
}

fn speak() -> ScriptStep {
    ScriptStep::PortWrite {
        port: UART,
        size: 1,
        value: Operand::Accumulator,
    }
}

/// Interrupt controller: edge-triggered, vectors from 0x20; timer, serial port and disk let through. Timer: mode 2.
fn platform(rng: &mut Rng) -> Vec<ScriptStep> {
    let divisor = rng.pick(&[2983, 5966, 11932]);
    let mask = 0xff & !(1 << 0 | 1 << 4 | 1 << 5);
    vec![
        out(0x20, 1, 0x11),
        out(0x21, 1, 0x20),
        out(0x21, 1, 0x04),
        out(0x21, 1, 0x01),
        out(0x21, 1, mask),
        out(0x43, 1, 0x34),
        out(0x40, 1, divisor & 0xff),
        out(0x40, 1, divisor >> 8),
        out(UART + 1, 1, 1),
    ]
}

/// Descriptors for every slot, and the driver's initialisation.
fn driver() -> Vec<ScriptStep> {
    let mut steps = Vec::new();
    for slot in 0..=WRITES + READS {
        let kind = slot_kind(slot);
        let (first, header) = (slot * 3, HEADERS + slot * 16);
        let mut describe = |index: u64, addr: u64, len: u64, flags: u64| {
            let at = DESCRIPTORS + 16 * index;
            steps.push(store(at, 8, addr));
            steps.push(store(at + 8, 8, len | flags << 32 | (index + 1) << 48));
        };
        describe(first, header, 16, 1);
        match kind {
            1 => describe(first + 1, buffer(slot), 512, 1),
            0 => describe(first + 1, buffer(slot), 512, 1 | 2),
            _ => {}
        }
        let status = if kind == 4 { first + 1 } else { first + 2 };
        describe(status, STATUS + slot, 1, 2);
        steps.push(store(header, 8, kind));
    }
    steps.extend([
        register(0x14, 1, 0),
        register(0x14, 1, 1),
        register(0x14, 1, 3),
        register(0x08, 4, 0),
        register(0x0c, 4, 1 << 9),
        register(0x08, 4, 1),
        register(0x0c, 4, 1),
        register(0x14, 1, 3 | 8),
        register(0x16, 2, 0),
        register(0x18, 2, RING),
        register(0x20, 8, DESCRIPTORS),
        register(0x28, 8, AVAILABLE),
        register(0x30, 8, USED),
        register(0x1c, 2, 1),
        register(0x14, 1, 3 | 8 | 4),
    ]);
    steps
}

/// VIRTIO_BLK_T_OUT, _IN or _FLUSH.
fn slot_kind(slot: u64) -> u64 {
    match slot {
        _ if slot < WRITES => 1,
        _ if slot < WRITES + READS => 0,
        _ => 4,
    }
}

fn buffer(slot: u64) -> u64 {
    BUFFERS + slot * 1024
}

/// The driver's side of the ring while the program is written.
#[derive(Debug, Default)]
struct Disk {
    available: u64,
}

impl Disk {
    fn request(&mut self, slot: u64, rng: &mut Rng, steps: &mut Vec<ScriptStep>) {
        let kind = slot_kind(slot);
        if kind != 4 {
            let sectors = rng.between(1, 2);
            steps.push(store(HEADERS + slot * 16 + 8, 8, rng.between(0, SECTORS - sectors)));
            steps.push(store(DESCRIPTORS + 16 * (slot * 3 + 1) + 8, 4, sectors * SECTOR as u64));
        }
        if kind == 1 {
            for offset in [0, 504, 512, 1016] {
                steps.push(ScriptStep::Store {
                    addr: buffer(slot) + offset,
                    len: 8,
                    value: Operand::Accumulator,
                });
            }
        }
        self.offer(slot, steps);
    }

    /// More flushes than the device takes at once: the rest leave when others are finished, from within an input.
    fn flood(&mut self, steps: &mut Vec<ScriptStep>) {
        for round in [100, 60] {
            for _ in 0..round {
                self.offer(WRITES + READS, steps);
            }
            steps.push(NOTIFY);
        }
    }

    fn offer(&mut self, slot: u64, steps: &mut Vec<ScriptStep>) {
        steps.push(store(AVAILABLE + 4 + 2 * (self.available % RING), 2, slot * 3));
        self.available += 1;
        steps.push(store(AVAILABLE + 2, 2, self.available & 0xffff));
    }
}

const NOTIFY: ScriptStep = ScriptStep::MmioWrite {
    addr: BAR + 0x3000,
    len: 2,
    value: Operand::Const(0),
};

fn random_step(kind: &GuestKind, rng: &mut Rng, disk: &mut Disk, steps: &mut Vec<ScriptStep>) {
    match rng.between(0, 99) {
        0..25 => steps.push(speak()),
        25..30 => steps.push(ScriptStep::PortRead {
            port: UART + 5,
            size: 1,
        }),
        30..40 => steps.push(ScriptStep::PortRead { port: UART, size: 1 }),
        40..45 => steps.push(ScriptStep::PortRead { port: 0x608, size: 4 }),
        45..48 => steps.push(ScriptStep::MmioUpdate {
            addr: 0xe800_0000,
            len: 4,
        }),
        48..50 => steps.push(ScriptStep::ReadMsr { index: 0x10 }),
        50..55 => steps.push(ScriptStep::Load {
            addr: buffer(WRITES + rng.between(0, READS - 1)) + 504,
            len: 8,
        }),
        55..58 => steps.push(ScriptStep::Spin {
            units: rng.delay(10, 4000),
        }),
        58 if kind.large => {
            disk.flood(steps);
            steps.push(ScriptStep::Spin { units: 2000 });
        }
        58..60 => steps.extend([
            ScriptStep::SetInterrupts(Interrupts::Off),
            ScriptStep::Spin {
                units: rng.delay(1, 300),
            },
            speak(),
            ScriptStep::SetInterrupts(Interrupts::On),
        ]),
        60..76 => {
            for _ in 0..rng.between(1, 3) {
                let slot = rng.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4, 5]);
                disk.request(slot, rng, steps);
            }
            steps.push(NOTIFY);
        }
        76 if rng.permille(30) => disk.flood(steps),
        _ => steps.extend([ScriptStep::SetInterrupts(Interrupts::On), ScriptStep::Halt]),
    }
}
