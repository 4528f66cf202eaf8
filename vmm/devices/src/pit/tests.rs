use super::*;
use crate::testing::contract::{self, Subject, own_state};
use crate::testing::{Seeded, Surroundings, forgetting};

/// A virtual time at which `ticks` ticks have just passed.
fn at(ticks: u64) -> u64 {
    CLOCK.ns_at(ticks)
}

/// Control word and a two-byte count for a channel, at tick 1000.
fn programmed(channel: u8, mode: u8, count: u16) -> Pit {
    let mut pit = Pit::new();
    program(&mut pit, channel, mode << 1, count, 1000);
    pit
}

fn program(pit: &mut Pit, channel: u8, mode_and_radix: u8, count: u16, tick: u64) {
    pit.write(0x43, channel << 6 | 0x30 | mode_and_radix, at(tick));
    for byte in count.to_le_bytes() {
        pit.write(0x40 + u16::from(channel), byte, at(tick));
    }
}

fn latched(pit: &mut Pit, channel: u8, tick: u64) -> u16 {
    pit.write(0x43, channel << 6, at(tick));
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([pit.read(port, at(tick + 5)), pit.read(port, at(tick + 9))])
}

#[test]
fn counts_are_what_each_mode_counts() {
    for (mode, count, elapsed, expected) in [
        (0, 100, 0, 100),
        (0, 100, 100, 0),
        (0, 100, 101, 0xFFFF),
        (2, 100, 0, 100),
        (2, 100, 99, 1),
        (2, 100, 100, 100),
        (2, 0, 1, 0xFFFF),
        (3, 100, 0, 100),
        (3, 100, 49, 2),
        (3, 100, 50, 100),
        (3, 5, 2, 0),
        (3, 5, 3, 4),
        (4, 100, 99, 1),
        (4, 100, 102, 0xFFFE),
        (6, 100, 100, 100),
    ] {
        let mut pit = programmed(0, mode, count);
        assert_eq!(
            latched(&mut pit, 0, 1000 + elapsed),
            expected,
            "mode {mode}, {count}, after {elapsed}"
        );
    }
}

#[test]
fn decimal_counts_are_decimal() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2 << 1 | 1, 0x1000, 0);
    assert_eq!(latched(&mut pit, 0, 1), 0x0999);
    assert_eq!(pit.next_deadline(), Some(at(1000)));
    program(&mut pit, 0, 2 << 1 | 1, 0, 0);
    assert_eq!(latched(&mut pit, 0, 1), 0x9999);
}

#[test]
fn edges_come_when_the_modes_say() {
    for (mode, first, second) in [
        (0, Some(100), None),
        (2, Some(100), Some(200)),
        (3, Some(100), Some(200)),
        (4, Some(101), None),
    ] {
        let mut pit = programmed(0, mode, 100);
        let due = |ticks: Option<u64>| ticks.map(|ticks| at(1000 + ticks));
        assert_eq!(pit.next_deadline(), due(first), "mode {mode}");
        assert!(!pit.advance(due(first).expect("runs") - 1));
        assert!(pit.advance(due(first).expect("runs")), "mode {mode}");
        assert!(!pit.advance(due(first).expect("runs")), "one edge, one interrupt");
        assert_eq!(pit.next_deadline(), due(second), "mode {mode}");
    }
    for mode in [1, 5] {
        assert_eq!(
            programmed(0, mode, 100).next_deadline(),
            None,
            "channel 0 has no trigger"
        );
    }
}

#[test]
fn missed_edges_are_one_and_the_phase_is_kept() {
    let mut pit = programmed(0, 2, 100);
    assert!(pit.advance(at(1000 + 1234)));
    assert_eq!(pit.next_deadline(), Some(at(1000 + 1300)));
    assert!(!pit.advance(at(1000 + 1299)));
    assert!(pit.advance(at(1000 + 1300)));
}

#[test]
fn a_control_word_stops_and_half_a_count_in_mode_0_too() {
    let mut pit = programmed(0, 2, 100);
    pit.write(0x43, 0x30, at(1010));
    assert_eq!(pit.next_deadline(), None);
    pit.write(0x40, 10, at(1010));
    assert_eq!(pit.next_deadline(), None);
    pit.write(0x40, 0, at(1020));
    assert_eq!(pit.next_deadline(), Some(at(1030)));
    pit.write(0x40, 10, at(1025));
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn single_byte_access_moves_one_byte() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x14, 0);
    pit.write(0x40, 200, 0);
    assert_eq!(pit.next_deadline(), Some(at(200)));
    assert_eq!(pit.read(0x40, at(10)), 190);
    pit.write(0x43, 0x24, 0);
    pit.write(0x40, 2, 0);
    assert_eq!(pit.next_deadline(), Some(at(512)));
    assert_eq!(pit.read(0x40, at(1)), 1);
}

#[test]
fn a_latch_holds_until_it_is_read_and_the_first_one_counts() {
    let mut pit = programmed(0, 2, 1000);
    pit.write(0x43, 0x00, at(1100));
    pit.write(0x43, 0x00, at(1200));
    assert!(!pit.read_needs_clock(0x40));
    let count = u16::from_le_bytes([pit.read(0x40, at(1300)), pit.read(0x40, at(1300))]);
    assert_eq!(count, 900);
    assert!(pit.read_needs_clock(0x40));
    assert_eq!(
        u16::from_le_bytes([pit.read(0x40, at(1400)), pit.read(0x40, at(1400))]),
        600
    );
}

#[test]
fn read_back_latches_status_then_count() {
    let mut pit = programmed(0, 2, 1000);
    pit.write(0x43, 0xC2, at(1100));
    assert_eq!(pit.read(0x40, at(1500)), 0xB4, "OUT high, both bytes, mode 2, binary");
    assert_eq!(
        u16::from_le_bytes([pit.read(0x40, at(1500)), pit.read(0x40, at(1500))]),
        900
    );
    pit.write(0x43, 0x30, at(1500));
    pit.write(0x43, 0xE2, at(1500));
    assert_eq!(pit.read(0x40, at(1500)), 0x70, "OUT low, null count, mode 0");
}

#[test]
fn port_61_gates_channel_2_and_shows_its_output() {
    let mut pit = Pit::new();
    program(&mut pit, 2, 0, 100, 1000);
    assert_eq!(pit.read(0x61, at(2000)) & 0x2F, 0, "held by the gate");
    pit.write(0x61, 1, at(2000));
    assert_eq!(pit.read(0x61, at(2099)) & 0x2F, 1);
    assert_eq!(pit.read(0x61, at(2100)) & 0x2F, 0x21);
    program(&mut pit, 2, 0, 100, 3000);
    pit.write(0x61, 0, at(3040));
    pit.write(0x61, 1, at(5000));
    assert_eq!(pit.read(0x61, at(5059)) & 0x20, 0, "60 ticks were left");
    assert_eq!(pit.read(0x61, at(5060)) & 0x20, 0x20);
}

#[test]
fn a_rising_gate_triggers_a_one_shot() {
    let mut pit = Pit::new();
    program(&mut pit, 2, 1 << 1, 100, 1000);
    assert_eq!(pit.read(0x61, at(1000)) & 0x20, 0x20, "idle is high");
    pit.write(0x61, 1, at(2000));
    assert_eq!(pit.read(0x61, at(2099)) & 0x20, 0);
    pit.write(0x61, 0, at(2050));
    pit.write(0x61, 1, at(2050));
    assert_eq!(pit.read(0x61, at(2149)) & 0x20, 0, "triggered again");
    assert_eq!(pit.read(0x61, at(2150)) & 0x20, 0x20);
}

#[test]
fn refresh_toggles_with_time() {
    let mut pit = Pit::new();
    assert_eq!(pit.read(0x61, at(17)) & 0x10, 0);
    assert_eq!(pit.read(0x61, at(18)) & 0x10, 0x10);
    assert_eq!(pit.read(0x61, at(36)) & 0x10, 0);
}

#[test]
fn a_count_of_zero_in_a_state_is_refused() {
    let pit = programmed(0, 2, 100);
    assert_eq!(pit.check(), Ok(()));
    let damaged = serde_json::to_string(&pit)
        .expect("serialises")
        .replace("\"count\":100", "\"count\":0");
    let damaged: Pit = serde_json::from_str(&damaged).expect("still a state");
    assert_eq!(
        damaged.check().unwrap_err().to_string(),
        "PIT count must be 1 to 65536, found 0"
    );
}

struct PitSubject;

impl Subject for PitSubject {
    type Device = Pit;
    type Guest = ();

    own_state!(Pit::new());

    fn step(pit: &mut Pit, (): &mut (), around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
        around.now += random.below(200_000);
        match random.below(6) {
            0 => return vec![u8::from(pit.advance(around.now))],
            1 | 2 => return vec![pit.read(random.pick(&[0x40, 0x41, 0x42, 0x43, 0x61]), around.now)],
            3 => pit.write(0x61, random.byte() & 0xF, around.now),
            4 => pit.write(
                random.pick(&[0x40, 0x41, 0x42]),
                random.pick(&[0, 1, 2, 5, 0x80, 0xFF]),
                around.now,
            ),
            _ => pit.write(0x43, random.byte(), around.now),
        }
        Vec::new()
    }

    fn observe(pit: &Pit) -> String {
        let clocked: Vec<bool> = (0x40..0x43).map(|port| pit.read_needs_clock(port)).collect();
        format!("{:?} {clocked:?}", pit.next_deadline())
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<PitSubject>();
}

#[test]
fn every_field_matters() {
    // Only channel 2's gate is wired to a port.
    forgetting::check::<PitSubject>(&["/channels/0/gate", "/channels/1/gate"]);
}
