//! Standing still: for the operator, and for a handover.

use std::sync::Arc;

use ftvm_schema::entry::{ConsolePort, Intervention, Mark};

use super::*;
use crate::clock::GRAIN;
use crate::host_event::Control;
use crate::replay::{Divergence, NoDisks, ReplayError, Replayer};
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::scripted::{Operand, Script, ScriptStep as Scripted, ScriptedCpu};
use ftvm_machine::config::{GuestKind, MIN_MEMORY};
use ftvm_machine::machine::allocate_memory;
use ftvm_machine::output::Output;
use ftvm_machine::testing::config;

#[derive(Debug, Default)]
struct Told {
    entries: Vec<LogEntry>,
    outputs: usize,
    obeyed: Vec<Control>,
}

impl Sink for Told {
    fn logging(&self) -> bool {
        true
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), SinkError> {
        self.entries.push(entry);
        Ok(())
    }

    fn output(&mut self, _: Output) -> Result<(), SinkError> {
        self.outputs += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn disk_finished(&mut self, _: u8, _: u64, _: Position) {}

    fn dirty(&mut self, _: Vec<u64>) -> Result<(), SinkError> {
        Ok(())
    }

    fn state(&mut self, _: Vec<u8>, _: Mark, _: Duration) -> Result<(), SinkError> {
        Ok(())
    }

    fn obeyed(&mut self, order: Control) -> Result<(), SinkError> {
        self.obeyed.push(order);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Queue(VecDeque<(Instant, HostEvent)>);

impl Events for Queue {
    fn try_recv(&mut self) -> Option<HostEvent> {
        self.0.pop_front().map(|(_, event)| event)
    }

    fn oldest_pending(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }
}

type Guest = Live<ScriptedCpu, Told, Queue>;

/// A machine whose guest says something at every exit, and reads the PM timer.
fn machine() -> Machine<ScriptedCpu> {
    let steps = vec![
        Scripted::PortWrite {
            port: 0x3f8,
            size: 1,
            value: Operand::Accumulator,
        },
        Scripted::PortRead { port: 0x608, size: 4 },
    ];
    let memory = allocate_memory(MIN_MEMORY).unwrap();
    let cpu = ScriptedCpu::new(&memory, Arc::new(Script::repeat(steps)), DeliveryMode::None);
    Machine::new(&config(GuestKind::BareMetal), memory, cpu).unwrap()
}

/// Its guest, begun at `start`.
fn guest(start: Instant) -> Guest {
    let settings = LiveConfig {
        patience: Duration::from_millis(30),
        marks: MarkPolicy::EveryFlush,
        checks: false,
        max_exits: None,
    };
    let clock = LiveClock::starting(0, start);
    let mut live = Live::new(machine(), Told::default(), Queue::default(), clock, settings, start);
    live.begin(&|| start).unwrap();
    live
}

fn tell(live: &mut Guest, now: Instant, event: HostEvent) {
    live.events().0.push_back((now, event));
}

fn steps(live: &mut Guest, now: Instant, count: usize) -> Next {
    let mut next = Next::Run;
    for _ in 0..count {
        next = match next {
            Next::Run => live.step(&|| now).unwrap(),
            Next::Wait(_) => live.woken(None, &|| now).unwrap(),
            ended @ Next::Ended(_) => ended,
        };
    }
    next
}

/// The clock readings in the log.
fn times(live: &Guest) -> Vec<u64> {
    let time = |entry: &LogEntry| match entry {
        LogEntry::Input {
            input: Input::Clock(time),
            ..
        } => Some(*time),
        _ => None,
    };
    live.sink().entries.iter().filter_map(time).collect()
}

fn pause(what: Intervention) -> HostEvent {
    HostEvent::Control(Control::Intervene(what))
}

fn typed() -> HostEvent {
    HostEvent::Console {
        port: ftvm_schema::entry::ConsolePort::Serial,
        bytes: vec![b'x'],
    }
}

fn typed_entries(live: &Guest) -> usize {
    let typed = |entry: &&LogEntry| {
        matches!(
            entry,
            LogEntry::Input {
                input: Input::ConsoleRx { .. },
                ..
            }
        )
    };
    live.sink().entries.iter().filter(typed).count()
}

#[test]
fn a_paused_guest_makes_no_exit_and_its_time_stands_still() {
    let start = Instant::now();
    let mut live = guest(start);
    steps(&mut live, start, 4);
    let paused = start + Duration::from_millis(100);
    tell(&mut live, paused, pause(Intervention::Pause));
    steps(&mut live, paused, 1);
    let exits = live.machine().at().exit;
    let next = steps(&mut live, paused + Duration::from_secs(30), 5);
    assert!(matches!(next, Next::Wait(_)));
    assert_eq!(live.machine().at().exit, exits);
    assert_eq!(live.sink().obeyed, [Control::Intervene(Intervention::Pause)]);
    // What comes from outside is an input as ever.
    let later = paused + Duration::from_secs(60);
    tell(&mut live, later, typed());
    steps(&mut live, later, 3);
    assert_eq!(typed_entries(&live), 1);
    assert_eq!(live.machine().at().exit, exits);
    let last = *times(&live).last().unwrap();
    assert_eq!(
        last,
        100_000_000_u64.next_multiple_of(GRAIN),
        "the backup knows the time at which it stands"
    );
    tell(&mut live, later, pause(Intervention::Resume));
    steps(&mut live, later, 6);
    assert!(live.machine().at().exit > exits);
    let after = *times(&live).last().unwrap();
    assert_eq!(after, last, "no time has gone by");
    steps(&mut live, later + Duration::from_millis(5), 4);
    assert_eq!(
        *times(&live).last().unwrap(),
        (last + 5_000_000).next_multiple_of(GRAIN)
    );
}

#[test]
fn a_guest_that_is_handed_over_takes_nothing_and_logs_nothing() {
    let start = Instant::now();
    let mut live = guest(start);
    steps(&mut live, start, 4);
    let now = start + Duration::from_millis(10);
    tell(&mut live, now, typed());
    tell(&mut live, now, HostEvent::Control(Control::StandStill));
    tell(&mut live, now, typed());
    steps(&mut live, now, 1);
    assert_eq!(live.sink().obeyed, [Control::StandStill]);
    let at = live.machine().at();
    assert!(
        matches!(live.sink().entries.last(), Some(LogEntry::Mark(mark)) if mark.at == at),
        "a mark covers all of it"
    );
    let (entries, outputs) = (live.sink().entries.len(), live.sink().outputs);
    tell(&mut live, now, typed());
    steps(&mut live, now + Duration::from_secs(1), 5);
    assert_eq!((live.sink().entries.len(), live.sink().outputs), (entries, outputs));
    assert_eq!(live.machine().at(), at);
    // It goes on, and has missed nothing.
    tell(&mut live, now, HostEvent::Control(Control::GoOn));
    steps(&mut live, now + Duration::from_secs(1), 12);
    assert!(live.machine().at().exit > at.exit);
    let bytes: usize = live
        .sink()
        .entries
        .iter()
        .map(|entry| match entry {
            LogEntry::Input {
                input: Input::ConsoleRx { bytes, .. },
                ..
            } => bytes.len(),
            _ => 0,
        })
        .sum();
    let backlog = live.console[ConsolePort::Serial as usize].len();
    assert_eq!(bytes + backlog, 3, "the UART has room for one");
}

#[test]
fn what_may_be_lost_is_kept_only_up_to_a_bound() {
    let start = Instant::now();
    let mut live = guest(start);
    tell(&mut live, start, HostEvent::Control(Control::StandStill));
    steps(&mut live, start, 1);
    for _ in 0..crate::host_event::MAX_EVENTS + 100 {
        tell(&mut live, start, typed());
    }
    steps(&mut live, start, 100);
    let Standstill::Still(kept) = &live.standing else {
        panic!("it stands")
    };
    assert_eq!(kept.len(), crate::host_event::MAX_EVENTS);
    // A request to end is obeyed even so.
    tell(&mut live, start, HostEvent::Stop(crate::host_event::StopKind::Operator));
    assert_eq!(steps(&mut live, start, 3), Next::Ended(EndReason::Stopped));
}

/// What a replay of `entries` comes to: equal, or where it is not the recorded history.
fn replayed(entries: Vec<LogEntry>) -> Result<(), Box<Divergence>> {
    let mut replayer = Replayer::new(machine(), Instant::now);
    entries.into_iter().for_each(|entry| replayer.feed(entry));
    match replayer.catch_up(&mut NoDisks) {
        Ok(()) => Ok(()),
        Err(ReplayError::Diverged(divergence)) => Err(divergence),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_mark_compares_place_digest_and_outputs() {
    let start = Instant::now();
    let mut live = guest(start);
    steps(&mut live, start + Duration::from_millis(70), 20);
    let entries = live.sink().entries.clone();
    replayed(entries.clone()).unwrap();
    let changed = |change: fn(&mut Mark)| {
        let mut entries = entries.clone();
        let last = entries.iter_mut().rev().find_map(|entry| match entry {
            LogEntry::Mark(mark) => Some(mark),
            _ => None,
        });
        change(last.expect("a log has marks"));
        replayed(entries)
    };
    assert!(changed(|mark| mark.digest.fold(1)).is_err(), "another digest");
    assert!(
        changed(|mark| mark.outputs.0 += 1).is_err(),
        "another number of outputs"
    );
    assert!(changed(|mark| mark.at.k += 1).is_err(), "another place");
}
