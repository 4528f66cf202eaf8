use std::collections::BTreeMap;

use super::format::BadFrame;
use super::*;
use crate::engine::{Client, Engine, Settings};
use crate::resp::{Parsed, Parser};

const REGION: u64 = 16 << 10;
const SECTORS: u64 = 8 + 2 * REGION;

/// A disk whose writes are on their way until they are flushed.
#[derive(Clone)]
struct Disk {
    stable: Vec<u8>,
    unstable: Vec<(u64, [u8; SECTOR])>,
}

impl Disk {
    fn new() -> Self {
        Self {
            stable: vec![0; usize::try_from(SECTORS).unwrap() * SECTOR],
            unstable: Vec::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { sector, data } => {
                assert!(data.len().is_multiple_of(SECTOR) && sector + (data.len() / SECTOR) as u64 <= SECTORS);
                let sectors = data.chunks_exact(SECTOR).zip(*sector..);
                self.unstable
                    .extend(sectors.map(|(bytes, sector)| (sector, bytes.try_into().unwrap())));
            }
            Step::Flush => self.crash(&mut |_| true),
        }
    }

    /// Loses power: of the writes on their way, those survive that `survives` chooses.
    fn crash(&mut self, survives: &mut dyn FnMut(u64) -> bool) {
        for (sector, bytes) in std::mem::take(&mut self.unstable) {
            if survives(sector) {
                let at = usize::try_from(sector).unwrap() * SECTOR;
                self.stable[at..at + SECTOR].copy_from_slice(&bytes);
            }
        }
    }

    fn read(&self, sector: u64, bytes: &mut [u8]) -> Result<(), &'static str> {
        let at = usize::try_from(sector).unwrap() * SECTOR;
        bytes.copy_from_slice(self.stable.get(at..at + bytes.len()).ok_or("beyond the end")?);
        Ok(())
    }
}

fn engine() -> Engine {
    let settings = Settings {
        max_memory: Geometry::of(SECTORS).unwrap().max_store(),
        max_reply: 1 << 20,
        max_clients: 1,
        port: 1,
        append_fsync: Some(FlushPolicy::Always),
    };
    Engine::new(settings)
}

fn run(engine: &mut Engine, words: &[&[u8]]) -> Vec<u8> {
    let mut request = Vec::new();
    crate::journal::append(&mut request, words.iter().copied());
    let mut parser = Parser::default();
    assert_eq!(parser.parse(&mut request), Ok(Parsed::Request { len: request.len() }));
    let mut output = Vec::new();
    engine.execute(parser.arguments(&request), &mut Client::default(), &mut output);
    output
}

/// A machine: what is in memory, and its disk.
struct Machine {
    engine: Engine,
    log: Log,
    disk: Disk,
    /// The step that the disk is at; what it writes may be lost.
    under_way: bool,
}

impl Machine {
    fn start(mut disk: Disk, policy: FlushPolicy) -> (Self, Option<(u64, End)>) {
        let mut engine = engine();
        let (log, first, recovered) = match recover(
            SECTORS,
            policy,
            &mut |sector, bytes| disk.read(sector, bytes),
            &mut engine,
        )
        .unwrap()
        {
            None => {
                let (log, step) = format(SECTORS, policy, 77).unwrap();
                (log, step, None)
            }
            Some(Recovered {
                log,
                first_write,
                commands,
                end,
                ..
            }) => (log, first_write, Some((commands, end))),
        };
        disk.apply(&first);
        disk.apply(&Step::Flush);
        engine.start(1000);
        (
            Self {
                engine,
                log,
                disk,
                under_way: false,
            },
            recovered,
        )
    }

    /// Does one thing for the log; `false` if there is none.
    fn step(&mut self, now: u64) -> bool {
        let mut next = if self.under_way {
            self.log.done(self.engine.store())
        } else {
            None
        };
        if next.is_none() {
            let (store, journal) = self.engine.store_and_journal();
            next = self.log.next_step(store, journal, now);
        }
        self.under_way = next.is_some();
        if let Some(step) = &next {
            self.disk.apply(step);
        }
        next.is_some()
    }

    fn settle(&mut self, now: u64) {
        while self.step(now) {}
    }

    fn crash_and_start(mut self, policy: FlushPolicy) -> (Self, (u64, End)) {
        self.disk.crash(&mut |_| false);
        let (machine, recovered) = Self::start(self.disk, policy);
        (machine, recovered.unwrap())
    }
}

/// What a store holds, in a form to compare: values and deadlines by key.
fn contents(engine: &Engine) -> BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)> {
    let all = engine.store().iter_after(None);
    all.map(|(key, entry)| (key.to_vec(), (entry.value().to_vec(), entry.deadline())))
        .collect()
}

#[test]
fn a_blank_disk_is_formatted_and_a_foreign_one_refused() {
    let (machine, recovered) = Machine::start(Disk::new(), FlushPolicy::Always);
    assert_eq!(recovered, None);
    let (_, recovered) = machine.crash_and_start(FlushPolicy::Always);
    assert_eq!(recovered, (0, End::Frame(BadFrame::Blank)));

    let mut foreign = Disk::new();
    foreign.stable[600] = 1;
    let refused = recover(
        SECTORS,
        FlushPolicy::No,
        &mut |sector, bytes| foreign.read(sector, bytes),
        &mut engine(),
    );
    assert!(matches!(refused, Err(RecoveryError::NotOurs)));
    let refused = recover(SECTORS, FlushPolicy::No, &mut |_, _| Err("broken"), &mut engine());
    assert!(matches!(
        refused,
        Err(RecoveryError::Read {
            sector: 0,
            error: "broken"
        })
    ));
    assert_eq!(Geometry::of(SECTORS - 1), Err(GeometryError { sectors: SECTORS - 1 }));
}

#[test]
fn always_is_durable_after_write_and_flush_only() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::Always);
    run(&mut machine.engine, &[b"SET", b"k", b"v"]);
    assert_eq!(machine.log.barrier(machine.engine.journalled()), Some(1));
    assert!(machine.step(0), "the write is under way");
    assert_eq!(machine.log.durable(), 0);
    assert!(machine.step(0), "the flush is under way");
    assert_eq!(machine.log.durable(), 0);
    assert!(!machine.step(0));
    assert_eq!(
        (machine.log.durable(), machine.log.barrier(machine.engine.journalled())),
        (1, None)
    );
    let (mut machine, recovered) = machine.crash_and_start(FlushPolicy::Always);
    assert_eq!(recovered, (1, End::Frame(BadFrame::Blank)));
    assert_eq!(run(&mut machine.engine, &[b"GET", b"k"]), b"$1\r\nv\r\n");
}

#[test]
fn everysec_flushes_once_a_second_and_no_only_on_request() {
    for (policy, flushed) in [(FlushPolicy::EverySecond, true), (FlushPolicy::No, false)] {
        let (mut machine, _) = Machine::start(Disk::new(), policy);
        run(&mut machine.engine, &[b"SET", b"k", b"v"]);
        assert_eq!(machine.log.barrier(machine.engine.journalled()), None);
        machine.settle(999);
        assert_eq!(machine.log.durable(), 0);
        machine.settle(1000);
        assert_eq!(machine.log.durable() == 1, flushed);
        run(&mut machine.engine, &[b"SET", b"k", b"w"]);
        machine.settle(1999);
        assert_eq!(machine.log.durable() == 1, flushed);
        machine.log.want_flush(machine.engine.journalled());
        machine.settle(1999);
        assert_eq!(machine.log.durable(), 2);
    }
}

#[test]
fn every_key_survives_a_rewrite() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::Always);
    let engine = &mut machine.engine;
    for index in 0..5000 {
        let key = format!("key {index} {}", "y".repeat(index % 40));
        run(engine, &[b"SET", key.as_bytes(), format!("{index}").as_bytes()]);
        if index < 100 {
            let seconds = format!("{}", index + 10);
            run(engine, &[b"EXPIRE", key.as_bytes(), seconds.as_bytes()]);
        }
    }
    run(engine, &[b"SET", b"long", &vec![b'v'; 400_000]]);
    run(engine, &[b"SET", b"", b""]);
    run(engine, &[b"SET", &vec![b'k'; crate::engine::MAX_KEY], b"a"]);
    let (before, used) = (contents(engine), engine.store().used());
    machine.log.want_rewrite();
    assert!(machine.step(0) && machine.log.needs_still_store());
    machine.settle(0);
    assert!(!machine.log.needs_still_store());
    assert_eq!(machine.log.durable(), machine.engine.journalled());
    let (machine, (commands, end)) = machine.crash_and_start(FlushPolicy::Always);
    assert_eq!((commands, end), (5003, End::Frame(BadFrame::Blank)));
    assert_eq!(contents(&machine.engine), before);
    assert_eq!(machine.engine.store().used(), used);
}

#[test]
fn a_store_at_its_limit_fits_into_a_region_whatever_is_in_it() {
    type Kind<'a> = &'a dyn Fn(&[u8]) -> Vec<Vec<u8>>;
    let kinds: [(&str, Kind<'_>); 3] = [
        ("short values that end", &|number| {
            vec![
                b"SET".to_vec(),
                number.to_vec(),
                b"".to_vec(),
                b"PX".to_vec(),
                b"10000".to_vec(),
            ]
        }),
        ("long keys", &|number| {
            let key = [&vec![b'k'; crate::engine::MAX_KEY - number.len()], number].concat();
            vec![b"SET".to_vec(), key, b"".to_vec()]
        }),
        ("long values", &|number| {
            vec![b"SET".to_vec(), number.to_vec(), vec![b'v'; 5000]]
        }),
    ];
    for (kind, command) in kinds {
        let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::No);
        for number in 0_u32.. {
            let words = command(format!("{number:08}").as_bytes());
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            if run(&mut machine.engine, &words).starts_with(b"-OOM") {
                break;
            }
            machine.settle(0);
        }
        machine.log.want_rewrite();
        let journalled = machine.engine.journalled();
        machine.settle(0);
        assert_eq!(machine.log.durable(), journalled, "{kind}");
        let region = machine.log.geometry.region_start(machine.log.superblock.region);
        let used = machine.log.next_sector - region;
        assert!(used <= REGION * 13 / 16, "{kind}: {used} sectors");
        let keys = machine.engine.store().len();
        let (machine, _) = machine.crash_and_start(FlushPolicy::No);
        assert_eq!(machine.engine.store().len(), keys, "{kind}");
    }
}

#[test]
fn the_log_ends_at_the_first_frame_that_is_not_whole() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::Always);
    for value in [b"1", b"2", b"3"] {
        run(&mut machine.engine, &[b"SET", b"k", value]);
        machine.settle(0);
    }
    let second = (8 + 1) * SECTOR;
    let mut damages: Vec<(usize, BadFrame)> = Vec::new();
    damages.extend((0..4).map(|byte| (byte, BadFrame::Foreign)));
    damages.extend((4..6).map(|byte| (byte, BadFrame::Torn)));
    damages.extend((6..8).map(|byte| (byte, BadFrame::Length)));
    damages.extend((8..16).map(|byte| (byte, BadFrame::Foreign)));
    damages.extend((16..24).map(|byte| (byte, BadFrame::Stale)));
    damages.extend((32..60).map(|byte| (byte, BadFrame::Torn)));
    for (byte, reason) in damages {
        let mut disk = machine.disk.clone();
        disk.stable[second + byte] ^= 0x80;
        let (mut damaged, recovered) = Machine::start(disk, FlushPolicy::Always);
        assert_eq!(recovered, Some((1, End::Frame(reason))), "byte {byte}");
        assert_eq!(run(&mut damaged.engine, &[b"GET", b"k"]), b"$1\r\n1\r\n");
    }
}

#[test]
fn frames_beyond_an_earlier_end_never_come_back() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::No);
    for value in [b"1", b"2", b"3"] {
        run(&mut machine.engine, &[b"SET", b"k", value]);
        machine.settle(0);
    }
    // The frame with 2 is lost, that with 3 is not.
    machine.disk.crash(&mut |sector| sector != 9);
    let (mut machine, recovered) = Machine::start(machine.disk, FlushPolicy::Always);
    assert_eq!(recovered, Some((1, End::Frame(BadFrame::Blank))));
    run(&mut machine.engine, &[b"SET", b"k", b"2"]);
    machine.settle(0);
    let (mut machine, recovered) = machine.crash_and_start(FlushPolicy::Always);
    assert_eq!(recovered, (2, End::Frame(BadFrame::Stale)));
    assert_eq!(run(&mut machine.engine, &[b"GET", b"k"]), b"$1\r\n2\r\n");
}

#[test]
fn a_frame_of_another_version_ends_the_log_with_a_reason() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::Always);
    let frame = machine.log.frame(0).encode(b"*1\r\n$4\r\nNONE\r\n");
    machine.disk.apply(&Step::Write { sector: 8, data: frame });
    machine.disk.apply(&Step::Flush);
    let (_, (commands, end)) = machine.crash_and_start(FlushPolicy::Always);
    assert!(commands == 0 && matches!(end, End::Command(_)), "{end}");
    assert!(end.to_string().contains("unknown command"));
}

#[test]
fn formatting_over_an_old_log_forgets_it() {
    let (mut machine, _) = Machine::start(Disk::new(), FlushPolicy::Always);
    run(&mut machine.engine, &[b"SET", b"k", b"v"]);
    machine.settle(0);
    let (machine, _) = machine.crash_and_start(FlushPolicy::Always);
    let (_, step) = format(SECTORS, FlushPolicy::Always, 78).unwrap();
    let mut disk = machine.disk;
    disk.apply(&step);
    disk.apply(&Step::Flush);
    let (machine, recovered) = Machine::start(disk, FlushPolicy::Always);
    assert_eq!(recovered, Some((0, End::Frame(BadFrame::Foreign))));
    assert!(machine.engine.store().is_empty());
}

/// Writes at random, loses power at random, and checks after each start that the store is what it was after one of the
/// commands, not before the last durable one.
#[test]
fn any_crash_leaves_a_prefix_that_holds_all_durable_commands() {
    for seed in 1..=40_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) % below
        };
        let policy =
            [FlushPolicy::Always, FlushPolicy::EverySecond, FlushPolicy::No][usize::try_from(next(3)).unwrap()];
        let (mut machine, _) = Machine::start(Disk::new(), policy);
        // Command i sets n = i and k(i % 10) = i, so n names the prefix.
        let (mut executed, mut base, mut now) = (0_u64, 0_u64, 0);
        for _ in 0..12 {
            for _ in 0..next(120) {
                now += next(300);
                if next(25) == 0 {
                    machine.log.want_rewrite();
                }
                if next(3) > 0 && !machine.log.needs_still_store() {
                    for _ in 0..next(4) {
                        executed += 1;
                        let (key, value) = (format!("k{}", executed % 10), format!("{executed}"));
                        let padding = vec![b'p'; usize::try_from(next(20_000)).unwrap()];
                        let words: [&[u8]; 7] = [
                            b"MSET",
                            b"n",
                            value.as_bytes(),
                            key.as_bytes(),
                            value.as_bytes(),
                            b"pad",
                            &padding,
                        ];
                        run(&mut machine.engine, &words);
                    }
                }
                machine.step(now);
            }
            let durable = base + machine.log.durable();
            machine.disk.crash(&mut |_| next(2) == 0);
            let (restarted, _) = Machine::start(machine.disk, policy);
            machine = restarted;
            let text = |key: &str| match machine.engine.store().get(key.as_bytes()) {
                Some(value) => std::str::from_utf8(value).unwrap().parse::<u64>().unwrap(),
                None => 0,
            };
            let prefix = text("n");
            assert!(
                (durable..=executed).contains(&prefix),
                "seed {seed}: {durable} <= {prefix} <= {executed}"
            );
            for key in 0..10 {
                let expected = prefix.saturating_sub((prefix + 10 - key) % 10);
                let expected = if expected == 0 || expected % 10 != key {
                    0
                } else {
                    expected
                };
                assert_eq!(
                    text(&format!("k{key}")),
                    expected,
                    "seed {seed}, prefix {prefix}, k{key}"
                );
            }
            (executed, base) = (prefix, prefix);
        }
    }
}
