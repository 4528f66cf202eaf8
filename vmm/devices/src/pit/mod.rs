//! The 8254 interval timer of a PC and system control port 0x61 (Intel 82C54 data sheet; PC/AT for port 0x61).
//!
//! Nothing ticks: a counter is the distance between the tick at which its count was loaded and now, and channel 0's
//! rising edges are deadlines computed from the same numbers. Edges that were missed are delivered as one, and the next
//! one keeps its place on the grid, so a guest that was stopped sees a late tick but no drift. Simplified where
//! software cannot tell: a count takes effect at the tick it is written, and a count written in modes 2 and 3 restarts
//! them.

mod channel;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::error::BadState;
use super::timebase::Oscillator;
use channel::PitChannel;

/// Frequency of all three channels: 105/88 MHz.
const CLOCK: Oscillator = Oscillator::new(1_193_182);

/// DRAM refresh toggles bit 4 of port 0x61 every 18 ticks (15.085 us).
const REFRESH_TICKS: u64 = 18;

const CONTROL: u16 = 0x43;
const SYSTEM_CONTROL: u16 = 0x61;

/// Port 0x61: gate of channel 2, speaker, and the two NMI masks; the upper half is status.
const SYSTEM_CONTROL_WRITABLE: u8 = 0x0F;
const GATE_2: u8 = 1 << 0;
const REFRESH_TOGGLE: u8 = 1 << 4;
const OUT_2: u8 = 1 << 5;

/// The three channels and port 0x61.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pit {
    channels: [PitChannel; 3],
    system_control: u8,
    /// Channel 0's edges up to this tick have been delivered.
    delivered: u64,
}

impl Pit {
    pub(super) fn new() -> Self {
        Pit {
            channels: [PitChannel::new(true), PitChannel::new(true), PitChannel::new(false)],
            system_control: 0,
            delivered: 0,
        }
    }

    /// Whether the timer answers at this port: 0x40 to 0x43, 0x61.
    pub(super) fn claims(port: u16) -> bool {
        matches!(port, 0x40..=CONTROL | SYSTEM_CONTROL)
    }

    /// Whether a read shows time as it passes. Latched bytes were taken earlier.
    pub(super) fn read_needs_clock(&self, port: u16) -> bool {
        match port {
            0x40..CONTROL => !self.channels[usize::from(port - 0x40)].has_latched(),
            _ => port == SYSTEM_CONTROL,
        }
    }

    /// Whether a write starts, stops or latches a counter: all of them may.
    pub(super) fn write_needs_clock(port: u16) -> bool {
        Self::claims(port)
    }

    /// Reads one byte at virtual time `now` (nanoseconds); the control word cannot be read.
    pub(super) fn read(&mut self, port: u16, now: u64) -> u8 {
        let tick = CLOCK.ticks(now);
        match port {
            0x40..CONTROL => self.channels[usize::from(port - 0x40)].read(tick),
            SYSTEM_CONTROL => self.read_system_control(tick),
            _ => 0xFF,
        }
    }

    /// Writes one byte at virtual time `now` (nanoseconds).
    pub(super) fn write(&mut self, port: u16, value: u8, now: u64) {
        let tick = CLOCK.ticks(now);
        match port {
            0x40..CONTROL => self.channels[usize::from(port - 0x40)].write(value, tick),
            CONTROL => self.write_control(value, tick),
            SYSTEM_CONTROL => {
                self.system_control = value & SYSTEM_CONTROL_WRITABLE;
                self.channels[2].set_gate(value & GATE_2 != 0, tick);
            }
            _ => {}
        }
    }

    /// When channel 0's next rising edge is due, in virtual nanoseconds.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.channels[0].next_rise(self.delivered).map(|tick| CLOCK.ns_at(tick))
    }

    /// Whether channel 0 rose since the last call, up to `now` (nanoseconds); however often, that is one interrupt.
    #[must_use]
    pub(super) fn advance(&mut self, now: u64) -> bool {
        let tick = CLOCK.ticks(now);
        let rose = self.channels[0]
            .next_rise(self.delivered)
            .is_some_and(|due| due <= tick);
        if rose {
            self.delivered = tick;
        }
        rose
    }

    /// Refuses a state that no sequence of accesses leads to and that arithmetic relies on.
    pub(super) fn check(&self) -> Result<(), BadState> {
        self.channels.iter().try_for_each(PitChannel::check)
    }

    fn read_system_control(&self, tick: u64) -> u8 {
        let mut value = self.system_control;
        if (tick / REFRESH_TICKS) % 2 == 1 {
            value |= REFRESH_TOGGLE;
        }
        if self.channels[2].output(tick) {
            value |= OUT_2;
        }
        value
    }

    fn write_control(&mut self, value: u8, tick: u64) {
        if let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) {
            channel.write_control(value, tick);
            return;
        }
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if value & (2 << number) == 0 {
                continue;
            }
            // The two latch bits of the read-back command are active low.
            if value & 0x20 == 0 {
                channel.latch_count(tick);
            }
            if value & 0x10 == 0 {
                channel.latch_status(tick);
            }
        }
    }
}
