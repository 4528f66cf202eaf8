//! The contract for the whole platform, with every device in it and everything a machine does to it.
//!
//! Beyond what each device keeps by itself: interrupt lines are settled when a call returns, and an access that does
//! not ask for a clock does not depend on one.

use ftvm_schema::request::DiskOp;

use super::*;
use crate::config::{DiskAccess, DiskConfig, DiskSharing, NicConfig};
use crate::testing::contract::{self, Subject};
use crate::testing::driver::{Bar, Piece, Ring};
use crate::testing::{Seeded, Surroundings};
use ftvm_schema::entry::DiskStatus;

/// Where rings lie; buffers are below.
const RINGS: u64 = 0x2_0000;
const RING: u64 = 0x3000;
const SIZE: u16 = 8;

/// Queues of each function, by slot: two cards, two disks, console, entropy source.
const QUEUES: [u64; 6] = [2, 2, 1, 1, 2, 1];

const PORTS: &[u16] = &[
    0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0xA0, 0xA1, 0xF4, 0x3F8, 0x3F9, 0x3FA, 0x3FB,
    0x3FC, 0x3FD, 0x3FE, 0x3FF, 0x4D0, 0x4D1, 0x604, 0x608, 0x60B, 0xCF8, 0xCF9, 0xCFB, 0xCFC, 0xCFE,
];

pub(super) fn config() -> PlatformConfig {
    let nic = |last| NicConfig {
        mac: [2, 0, 0, 0, 0, last],
    };
    let disk = |access| DiskConfig {
        sectors: 64,
        access,
        sharing: DiskSharing::Shared,
        serial: "contract".to_owned(),
    };
    PlatformConfig {
        nics: vec![nic(1), nic(2)],
        disks: vec![disk(DiskAccess::ReadWrite), disk(DiskAccess::ReadOnly)],
        virtio_console: true,
        rng: true,
        wall_clock_ns: 1_800_000_000_123_456_789,
    }
}

/// The guest's memory of what it has set up: rings by slot.
#[derive(Clone, Default)]
pub(super) struct GuestModel {
    rings: Vec<Vec<Ring>>,
}

/// One function's registers, through the chipset.
struct Reach<'a> {
    chipset: &'a mut Chipset,
    around: &'a mut Surroundings,
    slot: u64,
}

impl Bar for Reach<'_> {
    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        let addr = 0xE000_0000 + 0x4000 * self.slot + u64::from(offset);
        self.chipset.mmio_read(addr, data, &mut self.around.env());
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        let addr = 0xE000_0000 + 0x4000 * self.slot + u64::from(offset);
        self.chipset.mmio_write(addr, data, &mut self.around.env());
    }
}

fn start(chipset: &mut Chipset, guest: &mut GuestModel, around: &mut Surroundings) {
    for (command, data, icws) in [(0x20, 0x21, [0x20, 4, 1]), (0xA0, 0xA1, [0x28, 2, 1])] {
        chipset.port_write(command, &[0x11], &mut around.env());
        for icw in icws {
            chipset.port_write(data, &[icw], &mut around.env());
        }
    }
    let mut base = RINGS;
    guest.rings.clear();
    for (slot, queues) in (0..).zip(QUEUES) {
        let rings: Vec<Ring> = (0..queues).map(|queue| Ring::new(base + RING * queue, SIZE)).collect();
        base += RING * queues;
        for ring in &rings {
            around.write(ring.base, &[0; 0x3000]);
        }
        let mut reach = Reach { chipset, around, slot };
        reach.bring_up(&rings);
        guest.rings.push(rings);
    }
}

fn offer(chipset: &mut Chipset, guest: &mut GuestModel, around: &mut Surroundings, random: &mut Seeded) {
    let slot = random.below(6);
    let rings = &mut guest.rings[usize::try_from(slot).expect("small")];
    let queue = usize::try_from(random.below(rings.len() as u64)).expect("small");
    let at = random.below(RINGS - 0x1000);
    let len = 1 + u32::try_from(random.below(300)).expect("small");
    let chain = match (slot, queue) {
        (2 | 3, _) => {
            let kind: u32 = random.pick(&[0, 1, 4, 8]);
            around.write(at, &u64::from(kind).to_le_bytes());
            around.write(at + 8, &random.below(64).to_le_bytes());
            let data = if kind == 1 {
                Piece::Out(at + 512, 512)
            } else {
                Piece::In(at + 512, 512)
            };
            vec![Piece::Out(at, 16), data, Piece::In(at + 32, 1)]
        }
        (0 | 1 | 4, 1) => vec![Piece::Out(at, len)],
        _ => vec![Piece::In(at, len), Piece::In(at + 0x800, len)],
    };
    rings[queue].chain(around, &chain);
    let mut reach = Reach { chipset, around, slot };
    reach.notify(u16::try_from(queue).expect("small"));
}

fn input(chipset: &Chipset, random: &mut Seeded) -> Input {
    match random.below(4) {
        0 => Input::NetRx {
            nic: random.byte() % 2,
            frame: random.bytes(200),
        },
        1 => Input::ConsoleRx {
            port: random.pick(&[ConsolePort::Serial, ConsolePort::Virtio]),
            bytes: random.bytes(10),
        },
        2 => Input::Entropy {
            bytes: random.bytes(100),
        },
        _ => {
            let outstanding = chipset.outstanding_requests();
            let Some(request) = outstanding.get(usize::try_from(random.below(4)).expect("small")) else {
                return Input::Entropy { bytes: Vec::new() };
            };
            let data = match request.op {
                DiskOp::Read { len, .. } => vec![random.byte(); len as usize],
                _ => Vec::new(),
            };
            Input::DiskDone {
                disk: request.disk,
                id: request.id,
                status: DiskStatus::Ok,
                data,
            }
        }
    }
}

/// A port access as the machine performs it: a fresh clock first, if the access asks for one.
fn port_access(chipset: &mut Chipset, around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
    let port = random.pick(PORTS);
    let dir = random.pick(&[AccessDirection::Read, AccessDirection::Write]);
    if chipset.access_needs_clock(Access::Port { port, dir }) {
        around.now += random.below(100_000);
        chipset
            .apply(&Input::Clock(around.now), &mut around.env())
            .expect("time runs forward");
    }
    let mut data = vec![0; random.pick(&[1, 1, 1, 2, 4])];
    if dir == AccessDirection::Read {
        chipset.port_read(port, &mut data, &mut around.env());
    } else {
        data.fill_with(|| random.byte());
        if matches!(port, 0x20 | 0xA0) {
            data[0] = random.pick(&[0x20, 0x0A, 0x0B, 0x0C, 0x60]);
        }
        chipset.port_write(port, &data, &mut around.env());
    }
    data
}

fn assert_settled(chipset: &mut Chipset) {
    let left = chipset.save();
    chipset.settle();
    chipset.settle_pci();
    assert!(
        left == chipset.save(),
        "an interrupt line was not settled when the call returned"
    );
}

fn restored(state: &ChipsetState) -> Chipset {
    let mut chipset = Chipset::new(&config()).expect("a valid configuration");
    chipset.restore(state).expect("a state of this platform");
    chipset
}

pub(super) struct ChipsetSubject;

impl Subject for ChipsetSubject {
    type Device = Chipset;
    type Guest = GuestModel;

    fn build() -> Chipset {
        Chipset::new(&config()).expect("a valid configuration")
    }

    fn save(chipset: &Chipset) -> Vec<u8> {
        contract::encode(&chipset.save())
    }

    fn restore(state: &[u8]) -> Chipset {
        restored(&contract::decode(state))
    }

    fn step(chipset: &mut Chipset, guest: &mut GuestModel, around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
        let mut answer = Vec::new();
        if guest.rings.is_empty() || random.once_in(100) {
            start(chipset, guest, around);
        }
        match random.below(10) {
            0..=2 => offer(chipset, guest, around, random),
            3 | 4 => {
                let input = input(chipset, random);
                chipset.apply(&input, &mut around.env()).expect("an input that fits");
            }
            5 => {
                around.now += random.below(5_000_000);
                chipset
                    .apply(&Input::Clock(around.now), &mut around.env())
                    .expect("time runs forward");
            }
            6 if chipset.interrupt_pending() => answer.push(chipset.acknowledge_interrupt()),
            6 | 7 => {
                let slot = random.below(6);
                answer.push(Reach { chipset, around, slot }.isr());
            }
            _ => answer = port_access(chipset, around, random),
        }
        assert_settled(chipset);
        answer
    }

    fn observe(chipset: &Chipset) -> String {
        let clocked = PORTS.iter().flat_map(|&port| {
            [AccessDirection::Read, AccessDirection::Write]
                .map(|dir| chipset.access_needs_clock(Access::Port { port, dir }))
        });
        format!(
            "{} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            chipset.interrupt_pending(),
            chipset.next_deadline(),
            chipset.outstanding_requests(),
            chipset.entropy_wanted(),
            [0, 1, 2].map(|nic| chipset.net_rx_ready(nic)),
            [ConsolePort::Serial, ConsolePort::Virtio].map(|port| chipset.console_rx_room(port)),
            chipset.faults().collect::<Vec<_>>(),
            clocked.collect::<Vec<_>>(),
        )
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<ChipsetSubject>();
}

/// What a one-byte access at another time shows and leaves behind.
fn at_time(state: &ChipsetState, around: &Surroundings, now: u64, access: Access, value: u8) -> String {
    let mut chipset = restored(state);
    let mut around = around.copy();
    around.now = now;
    let mut data = [value];
    match access {
        Access::Port {
            port,
            dir: AccessDirection::Read,
        } => chipset.port_read(port, &mut data, &mut around.env()),
        Access::Port {
            port,
            dir: AccessDirection::Write,
        } => chipset.port_write(port, &data, &mut around.env()),
        Access::Mmio {
            addr,
            dir: AccessDirection::Read,
        } => chipset.mmio_read(addr, &mut data, &mut around.env()),
        Access::Mmio {
            addr,
            dir: AccessDirection::Write,
        } => chipset.mmio_write(addr, &data, &mut around.env()),
    }
    format!("{data:?} {:?} {:?}", around.effects, chipset.save())
}

#[test]
fn what_asks_for_no_clock_depends_on_none() {
    for seed in 0..12 {
        let mut random = Seeded::new(seed);
        let (mut chipset, mut guest) = (ChipsetSubject::build(), GuestModel::default());
        let mut around = Surroundings::new();
        for _ in 0..random.below(200) {
            ChipsetSubject::step(&mut chipset, &mut guest, &mut around, &mut random);
        }
        around.effects.clear();
        let state = chipset.save();
        let ports = PORTS
            .iter()
            .flat_map(|&port| [AccessDirection::Read, AccessDirection::Write].map(|dir| Access::Port { port, dir }));
        let mmio = [0x14, 0x1000, 0x2000, 0x3000].into_iter().flat_map(|offset| {
            [AccessDirection::Read, AccessDirection::Write].map(|dir| Access::Mmio {
                addr: 0xE000_0000 + 0x4000 * random.below(6) + offset,
                dir,
            })
        });
        for access in ports.chain(mmio.collect::<Vec<_>>()) {
            if chipset.access_needs_clock(access) {
                continue;
            }
            let value = random.byte();
            let now = at_time(&state, &around, around.now, access, value);
            let later = at_time(&state, &around, around.now + 1_234_567_890, access, value);
            assert!(now == later, "seed {seed}: {access:?} depends on time\n{now}\n{later}");
        }
    }
}
