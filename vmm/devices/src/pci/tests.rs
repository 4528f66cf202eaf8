use super::*;
use crate::config::{DiskAccess, DiskConfig, DiskSharing, NicConfig};
use crate::testing::Surroundings;

fn config() -> PlatformConfig {
    PlatformConfig {
        nics: vec![NicConfig {
            mac: [2, 0, 0, 0, 0, 1],
        }],
        disks: vec![DiskConfig {
            sectors: 8,
            access: DiskAccess::ReadWrite,
            sharing: DiskSharing::Shared,
            serial: String::new(),
        }],
        virtio_console: true,
        rng: true,
        wall_clock_ns: 0,
    }
}

/// The bus, and a CPU that drives configuration mechanism 1.
struct Bench {
    pci: Pci,
    around: Surroundings,
}

impl Bench {
    fn new() -> Self {
        Bench {
            pci: Pci::new(&config()),
            around: Surroundings::new(),
        }
    }

    fn outl(&mut self, port: u16, value: u32) {
        self.pci.port_write(port, &value.to_le_bytes(), &mut self.around.env());
    }

    fn inl(&mut self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.pci.port_read(port, &mut data, &mut self.around.env());
        u32::from_le_bytes(data)
    }

    fn select(&mut self, slot: u32, register: u32) {
        self.outl(ADDRESS, ENABLE | slot << 11 | register);
    }

    fn config(&mut self, slot: u32, register: u32) -> u32 {
        self.select(slot, register);
        self.inl(DATA)
    }

    fn set_config(&mut self, slot: u32, register: u32, value: u32) {
        self.select(slot, register);
        self.outl(DATA, value);
    }

    fn mmio(&mut self, addr: u64) -> Option<[u8; 4]> {
        let mut data = [0; 4];
        self.pci
            .mmio_read(addr, &mut data, &mut self.around.env())
            .then_some(data)
    }
}

#[test]
fn a_conf1_probe_finds_a_host_bridge() {
    let mut bench = Bench::new();
    bench.pci.port_write(0xCFB, &[1], &mut bench.around.env());
    let saved = bench.inl(ADDRESS);
    assert_eq!(saved, 0, "the byte write changed nothing");
    bench.outl(ADDRESS, 0x8000_0000);
    assert_eq!(bench.inl(ADDRESS), 0x8000_0000);
    assert_eq!(bench.config(0, 0x00), 0x0008_1B36);
    assert_eq!(bench.config(0, 0x08) >> 16, 0x0600);
}

#[test]
fn functions_sit_in_order_and_nothing_else_is_there() {
    let mut bench = Bench::new();
    let ids: Vec<u32> = (0..32).map(|slot| bench.config(slot, 0)).collect();
    assert_eq!(ids[1..5], [0x1041_1AF4, 0x1042_1AF4, 0x1043_1AF4, 0x1044_1AF4]);
    assert!(ids[5..].iter().all(|&id| id == u32::MAX));
    bench.outl(ADDRESS, ENABLE | 1 << 11 | 1 << 8);
    assert_eq!(bench.inl(DATA), u32::MAX, "function 1");
    bench.outl(ADDRESS, ENABLE | 1 << 16 | 1 << 11);
    assert_eq!(bench.inl(DATA), u32::MAX, "bus 1");
    bench.outl(ADDRESS, 1 << 11);
    assert_eq!(bench.inl(DATA), u32::MAX, "not enabled");
}

#[test]
fn firmware_s_work_is_done() {
    let mut bench = Bench::new();
    for (slot, irq) in [(1, 5), (2, 9), (3, 10), (4, 11)] {
        assert_eq!(bench.config(slot, 0x3C), 0x0100 | irq, "slot {slot}");
        assert_eq!(bench.config(slot, 0x10), 0xE000_0000 + 0x4000 * (slot - 1));
        assert_eq!(bench.config(slot, 0x04) & 0xFFFF, 6, "memory and bus master");
        bench.set_config(slot, 0x3C, 7);
        assert_eq!(
            bench.config(slot, 0x3C),
            0x0107,
            "the line is for the guest to note, the pin is not"
        );
    }
}

#[test]
fn bytes_and_words_are_lanes_of_the_dword() {
    let mut bench = Bench::new();
    bench.select(1, 0);
    let mut word = [0; 2];
    bench.pci.port_read(DATA + 2, &mut word, &mut bench.around.env());
    assert_eq!(u16::from_le_bytes(word), 0x1041);
    bench.select(1, 0x3C);
    bench.pci.port_write(DATA, &[0x0B], &mut bench.around.env());
    assert_eq!(bench.inl(DATA), 0x010B);
    let mut beyond = [0; 2];
    bench.pci.port_read(DATA + 3, &mut beyond, &mut bench.around.env());
    assert_eq!(beyond, [0xFF; 2], "across the dword");
}

#[test]
fn sizing_and_moving_a_bar() {
    let mut bench = Bench::new();
    assert!(bench.mmio(0xE000_0000).is_some());
    bench.set_config(1, 0x04, 0);
    assert!(bench.mmio(0xE000_0000).is_none(), "decoding is off");
    bench.set_config(1, 0x10, u32::MAX);
    assert_eq!(bench.config(1, 0x10), 0xFFFF_C000, "16 KiB");
    bench.set_config(1, 0x10, 0xD000_0000);
    bench.set_config(1, 0x04, 2);
    assert!(bench.mmio(0xE000_0000).is_none());
    assert!(bench.mmio(0xD000_0000).is_some());
    assert!(bench.mmio(0xD000_3FFC).is_some());
    assert!(bench.mmio(0xD000_3FFD).is_none(), "not beyond the end");
    for register in [0x14, 0x18, 0x1C, 0x20, 0x24, 0x30] {
        bench.set_config(1, register, u32::MAX);
        assert_eq!(bench.config(1, register), 0, "register {register:#x}");
    }
}

/// Walks the capability list as a driver does: type to (offset, length).
fn capabilities(bench: &mut Bench, slot: u32) -> Vec<(u32, u32, u32)> {
    assert_eq!(bench.config(slot, 0x04) >> 16 & 0x10, 0x10, "there is a list");
    let mut at = bench.config(slot, 0x34);
    let mut found = Vec::new();
    while at != 0 {
        let header = bench.config(slot, at);
        assert_eq!(header & 0xFF, 9, "vendor specific");
        assert_eq!(bench.config(slot, at + 4) & 0xFF, 0, "BAR 0");
        found.push((header >> 24, bench.config(slot, at + 8), bench.config(slot, at + 12)));
        if header >> 24 == 2 {
            assert_eq!(bench.config(slot, at + 16), 4, "notify_off_multiplier");
        }
        at = header >> 8 & 0xFF;
    }
    found
}

#[test]
fn the_capabilities_lead_to_every_structure() {
    let mut bench = Bench::new();
    let found = capabilities(&mut bench, 1);
    let kinds: Vec<u32> = found.iter().map(|&(kind, ..)| kind).collect();
    assert_eq!(kinds, [1, 3, 4, 2, 5]);
    for (kind, offset, length) in found {
        assert!(offset + length <= BAR_SIZE, "structure {kind}");
    }
}

#[test]
fn the_window_reaches_the_bar_through_configuration_space() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(1, 0x94), 0, "it describes no access yet");
    bench.set_config(1, 0x88, 0);
    bench.set_config(1, 0x8C, 0x12);
    bench.set_config(1, 0x90, 2);
    assert_eq!(bench.config(1, 0x94), 2, "the network card's queues");
    bench.set_config(1, 0x8C, 0x14);
    bench.set_config(1, 0x90, 1);
    bench.set_config(1, 0x94, 3);
    assert_eq!(
        bench.mmio(0xE000_0014),
        Some([0; 4]),
        "a dword is not the status register's width"
    );
    assert_eq!(bench.config(1, 0x94), 3);
    for (bar, offset, length) in [
        (1, 0x14, 1),
        (0, 0x15, 2),
        (0, 0x14, 3),
        (0, 0x4000, 4),
        (0, u32::MAX - 3, 4),
    ] {
        bench.set_config(1, 0x88, bar);
        bench.set_config(1, 0x8C, offset);
        bench.set_config(1, 0x90, length);
        assert_eq!(bench.config(1, 0x94), 0, "{bar} {offset:#x} {length}");
        bench.set_config(1, 0x94, 0);
        bench.set_config(1, 0x88, 0);
        bench.set_config(1, 0x8C, 0x14);
        bench.set_config(1, 0x90, 1);
        assert_eq!(bench.config(1, 0x94), 3, "nothing was written");
    }
}

#[test]
fn shared_lines_are_ored() {
    let mac = |last| NicConfig {
        mac: [2, 0, 0, 0, 0, last],
    };
    let config = PlatformConfig {
        nics: (1..5).map(mac).collect(),
        ..config()
    };
    let mut pci = Pci::new(&config);
    let mut around = Surroundings::new();
    assert_eq!(pci.interrupts(), 0);
    // Slots 1 and 5 share input 5: the first card and the disk. A misplaced queue on a running device interrupts.
    for slot in [1u64, 5] {
        let bar = 0xE000_0000 + 0x4000 * (slot - 1);
        let mut write = |offset: u64, data: &[u8]| pci.mmio_write(bar + offset, data, &mut around.env());
        assert!(write(0x08, &1u32.to_le_bytes()));
        write(0x0C, &1u32.to_le_bytes());
        write(0x14, &[8 | 4]);
        write(0x20, &1u64.to_le_bytes());
        write(0x1C, &[1, 0]);
        assert_eq!(pci.interrupts(), 1 << 5, "slot {slot}");
    }
    assert_eq!(pci.faults().map(|(slot, _)| slot).collect::<Vec<_>>(), [1, 5]);
    let mut isr = [0];
    pci.mmio_read(0xE000_1000, &mut isr, &mut around.env());
    assert_eq!((isr, pci.interrupts()), ([2], 1 << 5), "the other still drives it");
    pci.mmio_read(0xE001_1000, &mut isr, &mut around.env());
    assert_eq!((isr, pci.interrupts()), ([2], 0));
}
