use super::*;
use crate::testing::contract::{self, Subject, own_state};
use crate::testing::{Seeded, Surroundings, forgetting};

/// 2027-01-15 08:00:00 UTC, a Friday, and half a second.
const WALL: u64 = 1_800_000_000_500_000_000;
const SECOND: u64 = NS_PER_S;

fn read(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    rtc.write(INDEX, index, now);
    rtc.read(DATA, now)
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
    rtc.write(INDEX, index, now);
    rtc.write(DATA, value, now);
}

fn shown(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, index, now))
}

#[test]
fn it_shows_the_wall_clock_and_the_virtual_clock_together() {
    let mut rtc = Rtc::new(WALL);
    assert_eq!(shown(&mut rtc, 0), [0x20, 0x27, 0x01, 0x15, 6, 0x08, 0x00, 0x00]);
    assert_eq!(shown(&mut rtc, SECOND / 2 - 1)[7], 0x00);
    assert_eq!(shown(&mut rtc, SECOND / 2)[7], 0x01);
    let day = 86_400 * SECOND;
    assert_eq!(shown(&mut rtc, day * 17), [0x20, 0x27, 0x02, 0x01, 2, 0x08, 0x00, 0x00]);
}

#[test]
fn modes_change_how_numbers_look() {
    let mut rtc = Rtc::new(WALL);
    let evening = 14 * 3600 * SECOND;
    assert_eq!(read(&mut rtc, 4, evening), 0x22);
    write(&mut rtc, 0x0B, B_BINARY | B_24_HOURS, 0);
    assert_eq!(read(&mut rtc, 4, evening), 22);
    write(&mut rtc, 0x0B, 0, 0);
    assert_eq!(read(&mut rtc, 4, evening), 0x90, "ten in the evening");
    assert_eq!(
        read(&mut rtc, 4, 4 * 3600 * SECOND),
        0x92,
        "noon is twelve in the afternoon"
    );
    assert_eq!(
        read(&mut rtc, 4, 16 * 3600 * SECOND),
        0x12,
        "midnight is twelve in the morning"
    );
}

#[test]
fn an_update_is_announced_244_us_before() {
    let mut rtc = Rtc::new(WALL);
    let change = SECOND / 2;
    for (now, in_progress) in [
        (0, 0),
        (change - UPDATE_NS - 1, 0),
        (change - UPDATE_NS, 0x80),
        (change - 1, 0x80),
        (change, 0),
    ] {
        assert_eq!(read(&mut rtc, 0x0A, now), A_DEFAULT | in_progress, "at {now}");
    }
}

#[test]
fn setting_holds_the_registers_and_goes_on_from_them() {
    let mut rtc = Rtc::new(WALL);
    write(&mut rtc, 0x0B, B_SET | B_24_HOURS, 0);
    assert_eq!(shown(&mut rtc, 10 * SECOND)[7], 0x00, "held");
    for (index, value) in [
        (0x32, 0x19),
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
        (0, 0x58),
    ] {
        write(&mut rtc, index, value, 10 * SECOND);
    }
    write(&mut rtc, 0x0B, B_24_HOURS, 10 * SECOND);
    assert_eq!(
        shown(&mut rtc, 10 * SECOND),
        [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]
    );
    assert_eq!(
        shown(&mut rtc, 12 * SECOND),
        [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]
    );
    write(&mut rtc, 2, 0x30, 12 * SECOND);
    assert_eq!(
        shown(&mut rtc, 13 * SECOND)[5..],
        [0x00, 0x30, 0x01],
        "without SET it takes effect at once"
    );
}

#[test]
fn the_update_interrupt_comes_each_second_until_acknowledged() {
    let mut rtc = Rtc::new(WALL);
    assert_eq!(rtc.next_deadline(), None);
    write(&mut rtc, 0x0B, B_UPDATE | B_24_HOURS, 0);
    assert_eq!(rtc.next_deadline(), Some(SECOND / 2));
    rtc.tick(SECOND / 2 - 1);
    assert!(!rtc.interrupt());
    rtc.tick(SECOND / 2);
    assert!(rtc.interrupt());
    assert_eq!(rtc.next_deadline(), None, "not before it is acknowledged");
    assert_eq!(read(&mut rtc, 0x0C, 4 * SECOND) & 0x90, 0x90);
    assert!(!rtc.interrupt());
    assert_eq!(read(&mut rtc, 0x0C, 4 * SECOND), 0, "reading cleared it");
    assert_eq!(rtc.next_deadline(), Some(4 * SECOND + SECOND / 2));
}

#[test]
fn the_periodic_interrupt_keeps_its_grid() {
    let mut rtc = Rtc::new(WALL);
    write(&mut rtc, 0x0B, B_PERIODIC | B_24_HOURS, 0);
    let period = SECOND / 1024;
    assert_eq!(rtc.next_deadline(), Some(period + 1), "976,562.5 ns");
    rtc.tick(10 * period);
    assert_eq!(read(&mut rtc, 0x0C, 10 * period) & 0xC0, 0xC0);
    assert_eq!(rtc.next_deadline(), Some(CRYSTAL.ns_at(32 * 10)));
    write(&mut rtc, 0x0A, 0x20, 10 * period);
    assert_eq!(rtc.next_deadline(), None, "rate 0 is off");
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (15, 2)] {
        write(&mut rtc, 0x0A, 0x20 | rate, 0);
        let due = rtc.next_deadline().expect("runs");
        assert!(due - 10 * period <= SECOND / hertz, "rate {rate}");
        assert_eq!(CRYSTAL.ticks(due) % (32_768 / hertz), 0, "rate {rate}");
    }
}

#[test]
fn alarms_match_and_wildcards_match_everything() {
    for (alarm, seconds) in [
        ([0x30, 0x00, 0x08], 30),
        ([0x00, 0x00, 0x08], 86_400),
        ([0x00, 0xC0, 0xFF], 60),
        ([0xFF, 0xFF, 0xFF], 1),
        ([0x59, 0x59, 0x07], 86_399),
        ([0x01, 0x00, 0x00], 16 * 3600 + 1),
    ] {
        let mut rtc = Rtc::new(WALL);
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            write(&mut rtc, index, value, 0);
        }
        write(&mut rtc, 0x0B, B_ALARM | B_24_HOURS, 0);
        assert_eq!(rtc.next_deadline(), Some(seconds * SECOND - SECOND / 2), "{alarm:x?}");
        rtc.tick(seconds * SECOND);
        assert_eq!(read(&mut rtc, 0x0C, seconds * SECOND) & 0xA0, 0xA0, "{alarm:x?}");
    }
    let mut rtc = Rtc::new(WALL);
    write(&mut rtc, 3, 0x75, 0);
    write(&mut rtc, 0x0B, B_ALARM | B_24_HOURS, 0);
    assert_eq!(rtc.next_deadline(), None, "minute 75 never comes");
}

#[test]
fn nvram_keeps_what_it_is_given_and_needs_no_clock() {
    let mut rtc = Rtc::new(WALL);
    write(&mut rtc, 0x0E, 0xA5, 0);
    write(&mut rtc, 0x7F, 0x5A, 0);
    assert_eq!(
        (read(&mut rtc, 0x0E, 9), read(&mut rtc, 0xFF, 9)),
        (0xA5, 0x5A),
        "bit 7 of the index is the NMI mask"
    );
    assert!(!rtc.read_needs_clock(DATA) && !rtc.write_needs_clock(DATA));
    assert_eq!(read(&mut rtc, 0x0D, 0), 0x80);
    for index in [0, 4, 9, 0x0A, 0x0C, 0x32] {
        rtc.write(INDEX, index, 0);
        assert!(rtc.read_needs_clock(DATA), "register {index:#x}");
    }
}

struct RtcSubject;

impl Subject for RtcSubject {
    type Device = Rtc;
    type Guest = ();

    own_state!(Rtc::new(WALL));

    fn step(rtc: &mut Rtc, (): &mut (), around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
        around.now += random.below(NS_PER_S / 3);
        let index = random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 12, 13, 14, 0x32, 0x40]);
        match random.below(6) {
            0 => rtc.tick(around.now),
            1 => rtc.write(INDEX, index, around.now),
            2 => return vec![rtc.read(DATA, around.now), rtc.read(INDEX, around.now)],
            3 => return vec![read(rtc, index, around.now)],
            4 => write(
                rtc,
                0x0B,
                random.byte() & if random.once_in(4) { 0xFF } else { 0x7F },
                around.now,
            ),
            _ => write(rtc, index, random.byte(), around.now),
        }
        Vec::new()
    }

    fn observe(rtc: &Rtc) -> String {
        format!(
            "{} {:?} {}",
            rtc.interrupt(),
            rtc.next_deadline(),
            rtc.read_needs_clock(DATA)
        )
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<RtcSubject>();
}

#[test]
fn every_field_matters() {
    forgetting::check::<RtcSubject>(&["/wall_clock_ns"]);
}
