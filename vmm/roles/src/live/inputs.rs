//! What reaches a live machine at an exit: the clock, what the outside has sent, the link's orders.

use std::collections::VecDeque;
use std::time::Instant;

use ftvm_schema::entry::{ConsolePort, EndReason, Input, Intervention, LogEntry};

use super::super::patience::Waiting;
use super::{CONSOLE_BACKLOG, EVENTS_PER_EXIT, Events, Live, LiveError, Now, Sink, Standstill};
use crate::host_event::Control;
use crate::host_event::HostEvent;
use crate::host_event::MAX_EVENTS;
use crate::host_event::StopKind;
use ftvm_hypervisor::Cpu;

impl<C: Cpu, S: Sink, E: Events> Live<C, S, E> {
    pub(super) fn input_due(&self, now: Instant) -> bool {
        if self.first.is_some() || self.events.oldest_pending().is_some() {
            return true;
        }
        let chipset = self.machine.chipset();
        let typed = |port| !self.console[port as usize].is_empty() && chipset.console_rx_room(port) > 0;
        !self.is_standing()
            && (chipset.next_deadline().is_some_and(|at| self.clock.at(now) >= at)
                || typed(ConsolePort::Serial)
                || typed(ConsolePort::Virtio))
    }

    /// What has been waiting for an exit.
    pub(super) fn waiting(&self, now: Instant) -> Waiting {
        let deadline = self.machine.chipset().next_deadline();
        let deadline = deadline.map(|at| self.clock.host_time(at));
        Waiting {
            tick: deadline.filter(|at| *at <= now),
            event: self.events.oldest_pending(),
        }
    }

    pub(super) fn take_inputs(&mut self, time: Now<'_>) -> Result<(), LiveError> {
        let now = time();
        if let Some(deadline) = self.machine.chipset().next_deadline()
            && self.clock.at(now) >= deadline
            && !self.is_standing()
        {
            self.tick(now)?;
        }
        for _ in 0..EVENTS_PER_EXIT {
            let Some(event) = self.first.take().or_else(|| self.events.try_recv()) else {
                break;
            };
            self.take(event, time)?;
        }
        if self.is_standing() {
            return Ok(());
        }
        self.type_console(ConsolePort::Serial)?;
        self.type_console(ConsolePort::Virtio)
    }

    /// The clock, as it is at host time `now`.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), LiveError> {
        let deadline = self.machine.chipset().next_deadline();
        let time = self.clock.reading(now, self.machine.time_floor(), deadline);
        self.input(Input::Clock(time))?;
        if deadline.is_some_and(|deadline| time >= deadline) {
            self.clock.ticked(time);
        }
        Ok(())
    }

    pub(super) fn take(&mut self, event: HostEvent, time: Now<'_>) -> Result<(), LiveError> {
        match event {
            HostEvent::Stop(StopKind::Limit) => self.stopping = Some(EndReason::Limit),
            HostEvent::Stop(_) => self.stopping = Some(EndReason::Stopped),
            HostEvent::Control(order) => self.obey(order, time)?,
            event => match &mut self.standing {
                Standstill::No => self.take_input(event)?,
                // Frames and typed bytes beyond the bound are lost, as they are from a full queue.
                Standstill::Still(kept) => {
                    let may_be_lost = matches!(event, HostEvent::Frame { .. } | HostEvent::Console { .. });
                    if !may_be_lost || kept.len() < MAX_EVENTS {
                        kept.push_back(event);
                    }
                }
            },
        }
        Ok(())
    }

    pub(super) fn take_input(&mut self, event: HostEvent) -> Result<(), LiveError> {
        match event {
            HostEvent::Frame { nic, bytes } if self.machine.chipset().net_rx_ready(nic) => {
                self.input(Input::NetRx { nic, frame: bytes })?;
            }
            HostEvent::Frame { .. } => {}
            HostEvent::Console { port, bytes } => {
                let backlog = &mut self.console[port as usize];
                let room = CONSOLE_BACKLOG - backlog.len();
                backlog.extend(bytes.into_iter().take(room));
            }
            HostEvent::DiskDone { disk, id, status, data } => {
                self.input(Input::DiskDone { disk, id, status, data })?;
                self.sink.disk_finished(disk, id, self.machine.at());
                self.disk_finished = true;
            }
            HostEvent::Entropy(bytes) => self.input(Input::Entropy { bytes })?,
            HostEvent::Stop(_) | HostEvent::Control(_) => {} // no inputs
        }
        Ok(())
    }

    /// Does what the link asks.
    pub(super) fn obey(&mut self, order: Control, time: Now<'_>) -> Result<(), LiveError> {
        match order {
            Control::TakeDirty => {
                let pages = self.machine.take_dirty()?;
                return Ok(self.sink.dirty(pages)?);
            }
            Control::SaveState => return self.save_state(time),
            Control::Intervene(Intervention::Pause) => {
                // A reading first: a backup that goes live must know at which time the guest's clock stands still.
                self.tick(time())?;
                self.input(Input::Control(Intervention::Pause))?;
                self.clock.stop(self.machine.now());
            }
            Control::Intervene(Intervention::Resume) => {
                self.input(Input::Control(Intervention::Resume))?;
                self.clock.go_on(time());
            }
            Control::Intervene(Intervention::Reset) => self.input(Input::Control(Intervention::Reset))?,
            Control::StandStill => {
                self.flush()?;
                self.standing = Standstill::Still(VecDeque::new());
            }
            Control::GoOn => {
                if let Standstill::Still(kept) = std::mem::take(&mut self.standing) {
                    for event in kept {
                        self.take_input(event)?;
                    }
                }
            }
        }
        self.flush()?;
        Ok(self.sink.obeyed(order)?)
    }

    pub(super) fn type_console(&mut self, port: ConsolePort) -> Result<(), LiveError> {
        let room = self.machine.chipset().console_rx_room(port);
        let backlog = &mut self.console[port as usize];
        let bytes: Vec<u8> = backlog.drain(..room.min(backlog.len())).collect();
        if bytes.is_empty() {
            Ok(())
        } else {
            self.input(Input::ConsoleRx { port, bytes })
        }
    }

    pub(super) fn input(&mut self, input: Input) -> Result<(), LiveError> {
        self.totals.inputs += 1;
        self.machine.apply(&input)?;
        if self.sink.logging() {
            self.sink.log(LogEntry::Input {
                at: self.machine.at().exit,
                input,
            })?;
            self.unflushed += 1;
        }
        Ok(())
    }

    pub(super) fn save_state(&mut self, now: Now<'_>) -> Result<(), LiveError> {
        let begun = now();
        self.flush()?;
        let record = self.machine.save()?;
        let mark = self.mark();
        let saved = now();
        self.last_harvest = saved;
        Ok(self.sink.state(record, mark, saved.saturating_duration_since(begun))?)
    }
}
