//! The whole platform with guest RAM, and a guest and a host that do to it whatever a tape says.

use std::sync::OnceLock;

use ftvm_devices::{
    Access, AccessDirection, Chipset, ChipsetState, DeviceEnv, DiskAccess, DiskConfig, DiskSharing, Effect, NicConfig,
    PlatformConfig,
};
use ftvm_hypervisor::GuestMemory;
use ftvm_schema::entry::{ConsolePort, DiskStatus, Input};
use ftvm_schema::request::DiskOp;
use vm_memory::{Bytes, GuestAddress};

use crate::Tape;

/// Bytes of RAM.
const RAM: u64 = 0x4_0000;
/// Where the rings lie, three pages each: descriptors, available, used. What is below is for buffers.
const RINGS: u64 = 0x2_0000;
/// Bytes from one ring to the next.
const RING: u64 = 0x3000;
/// Entries of a ring: few, so that indices wrap.
const RING_SIZE: u16 = 8;
/// Where the functions' registers begin, and how far they are apart.
const BARS: u64 = 0xE000_0000;
const BAR: u64 = 0x4000;
const NOTIFY: u64 = 0x3000;

/// Queues of each function, by slot: two cards, two disks, console, entropy source.
const QUEUES: [u16; 6] = [2, 2, 1, 1, 2, 1];

/// Most effects of one access or input: a chain in each entry of a ring, and for each of them what it leads to. More would
/// mean that a guest can multiply its own work without bound.
const MOST_EFFECTS: usize = 4 * RING_SIZE as usize;

/// Two cards, two disks (the second is read-only), console and entropy source.
#[must_use]
pub fn platform() -> PlatformConfig {
    let nic = |last| NicConfig {
        mac: [2, 0, 0, 0, 0, last],
    };
    let disk = |access| DiskConfig {
        sectors: 64,
        access,
        sharing: DiskSharing::Shared,
        serial: "fuzz".to_owned(),
    };
    PlatformConfig {
        nics: vec![nic(1), nic(2)],
        disks: vec![disk(DiskAccess::ReadWrite), disk(DiskAccess::ReadOnly)],
        virtio_console: true,
        rng: true,
        wall_clock_ns: 1_800_000_000_123_456_789,
    }
}

/// The platform, its RAM and the time.
#[derive(Debug)]
pub struct Board {
    chipset: Chipset,
    memory: GuestMemory,
    now: u64,
    effects: Vec<Effect>,
}

impl Default for Board {
    fn default() -> Self {
        Board::new(&platform()).expect("a platform within its bounds")
    }
}

impl Board {
    /// A fresh platform; none where `config` breaks its bounds.
    #[must_use]
    pub fn new(config: &PlatformConfig) -> Option<Self> {
        let size = RAM.try_into().expect("a 64-bit host");
        Some(Board {
            chipset: Chipset::new(config).ok()?,
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), size)]).expect("RAM for a test"),
            now: 0,
            effects: Vec::new(),
        })
    }

    /// A platform whose functions a driver has brought up, as [`Board::bring_up`] does, but at once.
    #[must_use]
    pub fn running() -> Self {
        static RUNNING: OnceLock<ChipsetState> = OnceLock::new();
        let state = RUNNING.get_or_init(|| {
            let mut board = Board::default();
            board.bring_up();
            board.chipset.save()
        });
        let mut board = Board::default();
        board.chipset.restore(state).expect("a state of the same platform");
        board
    }

    fn act<T>(&mut self, act: impl FnOnce(&mut Chipset, &mut DeviceEnv<'_>) -> T) -> T {
        let mut env = DeviceEnv {
            memory: &self.memory,
            now: self.now,
            effects: &mut self.effects,
        };
        let result = act(&mut self.chipset, &mut env);
        let count = self.effects.len();
        assert!(count <= MOST_EFFECTS, "{count} effects of one call");
        self.effects.clear();
        result
    }

    /// Writes as much of `bytes` as there is RAM for.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        // Beyond the end there is nothing to write to, and that is all.
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// The time moves on, as far as it goes.
    pub fn pass(&mut self, ns: u64) {
        self.now = self.now.saturating_add(ns);
        let now = self.now;
        let applied = self.act(|chipset, env| chipset.apply(&Input::Clock(now), env));
        applied.expect("the time has only moved forward");
    }

    /// A port access of 1, 2 or 4 bytes, after a fresh clock where the access asks for one, as the machine does it.
    pub fn port(&mut self, port: u16, direction: AccessDirection, data: &mut [u8]) {
        if self.chipset.access_needs_clock(Access::Port { port, dir: direction }) {
            self.pass(1);
        }
        self.act(|chipset, env| match direction {
            AccessDirection::Read => chipset.port_read(port, data, env),
            AccessDirection::Write => chipset.port_write(port, data, env),
        });
    }

    /// An access of 1 to 8 bytes to an address without RAM.
    pub fn mmio(&mut self, address: u64, direction: AccessDirection, data: &mut [u8]) {
        self.act(|chipset, env| match direction {
            AccessDirection::Read => chipset.mmio_read(address, data, env),
            AccessDirection::Write => chipset.mmio_write(address, data, env),
        });
    }

    /// One access to a register of PCI configuration space, by mechanism 1.
    pub fn configure(&mut self, slot: u8, register: u8, direction: AccessDirection, data: &mut [u8]) {
        let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & 0xFC);
        self.port(0xCF8, AccessDirection::Write, &mut address.to_le_bytes());
        self.port(0xCFC + u16::from(register & 3), direction, data);
    }

    fn write_bar(&mut self, slot: usize, register: u64, data: &[u8]) {
        self.mmio(
            BARS + BAR * slot as u64 + register,
            AccessDirection::Write,
            &mut data.to_vec(),
        );
    }

    /// Brings every virtio function up with empty rings, as a driver does (virtio 1.2, 3.1.1).
    pub fn bring_up(&mut self) {
        let mut ring = RINGS;
        for (slot, queues) in QUEUES.into_iter().enumerate() {
            for status in [0u8, 1, 3] {
                self.write_bar(slot, 0x14, &[status]);
            }
            for half in [0u32, 1] {
                self.write_bar(slot, 0x00, &half.to_le_bytes());
                let mut offered = [0; 4];
                self.mmio(BARS + BAR * slot as u64 + 0x04, AccessDirection::Read, &mut offered);
                self.write_bar(slot, 0x08, &half.to_le_bytes());
                self.write_bar(slot, 0x0C, &offered);
            }
            self.write_bar(slot, 0x14, &[0x0B]);
            for queue in 0..queues {
                self.poke(ring, &[0; RING as usize]);
                self.write_bar(slot, 0x16, &queue.to_le_bytes());
                self.write_bar(slot, 0x18, &RING_SIZE.to_le_bytes());
                for (register, page) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
                    self.write_bar(slot, register, &(ring + page).to_le_bytes()[..4]);
                }
                self.write_bar(slot, 0x1C, &1u16.to_le_bytes());
                ring += RING;
            }
            self.write_bar(slot, 0x14, &[0x0F]);
        }
    }

    /// Something from outside arrives; what does not fit the devices' state must be refused without a change.
    pub fn receive(&mut self, tape: &mut Tape<'_>) {
        let kind = tape.u8() % 5;
        let len = usize::from(tape.u8());
        let input = match kind {
            0 => Input::NetRx {
                nic: tape.u8() % 3,
                frame: tape.bytes(8 * len).to_vec(),
            },
            1 => Input::ConsoleRx {
                port: tape.pick(&[ConsolePort::Serial, ConsolePort::Virtio]),
                bytes: tape.bytes(len).to_vec(),
            },
            2 => Input::Entropy {
                bytes: tape.bytes(len).to_vec(),
            },
            3 => self.completion(tape, len),
            _ => Input::DiskDone {
                disk: tape.u8() % 3,
                id: tape.u64(),
                status: tape.pick(&[DiskStatus::Ok, DiskStatus::IoError, DiskStatus::Unsupported]),
                data: tape.bytes(len).to_vec(),
            },
        };
        let before = self.chipset.save();
        if self.act(|chipset, env| chipset.apply(&input, env)).is_err() {
            assert!(
                before == self.chipset.save(),
                "an input was refused and has changed something"
            );
        }
    }

    /// The end of a request that a disk really has outstanding, if one has.
    fn completion(&self, tape: &mut Tape<'_>, which: usize) -> Input {
        let outstanding = self.chipset.outstanding_requests();
        let Some(request) = outstanding.get(which % outstanding.len().max(1)) else {
            return Input::Entropy { bytes: Vec::new() };
        };
        let status = tape.pick(&[DiskStatus::Ok, DiskStatus::Ok, DiskStatus::IoError]);
        let data = match request.op {
            DiskOp::Read { len, .. } if status == DiskStatus::Ok => vec![tape.u8(); len as usize],
            _ => Vec::new(),
        };
        Input::DiskDone {
            disk: request.disk,
            id: request.id,
            status,
            data,
        }
    }

    /// A step of a driver whose rings and buffers hold whatever it likes.
    pub fn drive(&mut self, tape: &mut Tape<'_>) {
        let slot = usize::from(tape.u8()) % QUEUES.len();
        let queue = u16::from(tape.u8()) % QUEUES[slot];
        let before: u16 = QUEUES[..slot].iter().sum();
        let ring = RINGS + RING * u64::from(before + queue);
        match tape.u8() % 4 {
            // A descriptor: address, length, flags, next.
            0 => {
                let at = ring + 16 * u64::from(u16::from(tape.u8()) % RING_SIZE);
                let address = match tape.u8() % 4 {
                    0 => tape.u64(),
                    _ => u64::from(tape.u32()) % (RAM + 0x1000),
                };
                let len = match tape.u8() % 4 {
                    0 => tape.u32(),
                    _ => u32::from(tape.u16()),
                };
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(len.to_le_bytes());
                bytes.extend(u16::from(tape.u8() % 8).to_le_bytes());
                bytes.extend(u16::from(tape.u8() % 9).to_le_bytes());
                self.poke(at, &bytes);
            }
            // Heads made available, and the index; then the notification.
            1 => {
                let (slots, index) = (tape.bytes(8), tape.u16());
                for (at, head) in (ring + 0x1004..).step_by(2).zip(slots) {
                    self.poke(at, &u16::from(head % 9).to_le_bytes());
                }
                self.poke(ring + 0x1002, &index.to_le_bytes());
                self.write_bar(slot, NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
            }
            // The head of a disk request, or anything else, in RAM.
            2 => {
                let (at, len) = (u64::from(tape.u32()) % RAM, usize::from(tape.u8()));
                self.poke(at, tape.bytes(len));
            }
            _ => self.write_bar(slot, NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes()),
        }
    }

    /// What the devices have come to is a state like any other: it is taken back, and is the same.
    pub fn go_through_a_save(&mut self) {
        let state = self.chipset.save();
        self.chipset.restore(&state).expect("a state that the devices are in");
        assert!(state == self.chipset.save(), "a restored state is another one");
    }

    /// The guest takes an interrupt, if there is one, and the host asks what it asks at every exit.
    pub fn look(&mut self) {
        if self.chipset.interrupt_pending() {
            self.chipset.acknowledge_interrupt();
        }
        let _ = (
            self.chipset.next_deadline(),
            self.chipset.entropy_wanted(),
            self.chipset.faults().count(),
        );
        for port in [ConsolePort::Serial, ConsolePort::Virtio] {
            let _ = self.chipset.console_rx_room(port);
        }
        for nic in 0..3 {
            let _ = self.chipset.net_rx_ready(nic);
        }
    }

    /// The guest resets the machine.
    pub fn reset(&mut self) {
        self.chipset.reset().expect("the platform was built before");
    }
}
