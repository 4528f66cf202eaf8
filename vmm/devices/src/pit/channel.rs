//! One channel of the 8254. Time is in ticks of its clock since virtual time 0.

use serde::{Deserialize, Serialize};

use crate::error::BadState;

/// The six modes (82C54 data sheet, "Mode Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    /// Modes 6 and 7 are 2 and 3: their top bit is "don't care".
    fn from_control(value: u8) -> Self {
        match (value >> 1) & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Mode::TerminalCount => 0,
            Mode::OneShot => 1 << 1,
            Mode::RateGenerator => 2 << 1,
            Mode::SquareWave => 3 << 1,
            Mode::SoftwareStrobe => 4 << 1,
            Mode::HardwareStrobe => 5 << 1,
        }
    }

    /// Modes that a rising gate starts, not the count itself.
    fn waits_for_trigger(self) -> bool {
        matches!(self, Mode::OneShot | Mode::HardwareStrobe)
    }

    fn is_periodic(self) -> bool {
        matches!(self, Mode::RateGenerator | Mode::SquareWave)
    }
}

/// Which bytes of the count a port access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Bytes {
    Low,
    High,
    LowThenHigh,
}

/// How counts are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Radix {
    Binary,
    Decimal,
}

impl Radix {
    /// Number of counts, and what a written 0 means.
    fn modulus(self) -> u32 {
        match self {
            Radix::Binary => 0x1_0000,
            Radix::Decimal => 10_000,
        }
    }

    fn decode(self, written: u16) -> u32 {
        let count = match self {
            Radix::Binary => u32::from(written),
            Radix::Decimal => (0..4)
                .rev()
                .fold(0, |count, digit| count * 10 + (u32::from(written) >> (4 * digit) & 0xF)),
        };
        if count == 0 { self.modulus() } else { count }
    }

    fn encode(self, count: u32) -> u16 {
        let count = count % self.modulus();
        let encoded = match self {
            Radix::Binary => count,
            Radix::Decimal => (count / 1000) << 12 | (count / 100 % 10) << 8 | (count / 10 % 10) << 4 | (count % 10),
        };
        let [low, high, ..] = encoded.to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// Where the counting element stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// No count yet since the control word, or the first of two bytes in mode 0, or no trigger yet.
    Stopped,
    /// Counting since this tick.
    Since(u64),
    /// Held by the gate after this many ticks.
    Held(u64),
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PitChannel {
    mode: Mode,
    bytes: Bytes,
    radix: Radix,
    /// The count as loaded, 1 to 65,536 (a decimal count may have digits above 9, but is below that).
    count: u32,
    counting: Counting,
    gate: bool,
    /// A control word came and no count since (status bit 6).
    null_count: bool,
    /// First byte of a two-byte count.
    written_low: Option<u8>,
    /// The next read of a two-byte count shows the high byte.
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl PitChannel {
    /// As firmware leaves it: a count was loaded once. Linux waits for that before it looks at a count for the first
    /// time.
    pub(super) fn new(gate: bool) -> Self {
        PitChannel {
            mode: Mode::TerminalCount,
            bytes: Bytes::LowThenHigh,
            radix: Radix::Binary,
            count: 0x1_0000,
            counting: Counting::Stopped,
            gate,
            null_count: false,
            written_low: None,
            read_high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    pub(super) fn has_latched(&self) -> bool {
        self.latched_status.is_some() || self.latched_count.is_some()
    }

    /// A control word for this channel: a new mode, or the counter latch command.
    pub(super) fn write_control(&mut self, value: u8, tick: u64) {
        self.bytes = match (value >> 4) & 3 {
            0 => return self.latch_count(tick),
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowThenHigh,
        };
        self.mode = Mode::from_control(value);
        self.radix = if value & 1 == 0 { Radix::Binary } else { Radix::Decimal };
        self.counting = Counting::Stopped;
        self.null_count = true;
        self.written_low = None;
        self.read_high_next = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
        }
    }

    pub(super) fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let bytes = match self.bytes {
            Bytes::Low => 0x10,
            Bytes::High => 0x20,
            Bytes::LowThenHigh => 0x30,
        };
        let radix = u8::from(self.radix == Radix::Decimal);
        let null_count = u8::from(self.null_count) << 6;
        let output = u8::from(self.output(tick)) << 7;
        self.latched_status = Some(output | null_count | bytes | self.mode.bits() | radix);
    }

    pub(super) fn write(&mut self, value: u8, tick: u64) {
        let written = match self.bytes {
            Bytes::Low => [value, 0],
            Bytes::High => [0, value],
            Bytes::LowThenHigh => match self.written_low.take() {
                Some(low) => [low, value],
                None => {
                    self.written_low = Some(value);
                    if self.mode == Mode::TerminalCount {
                        self.counting = Counting::Stopped;
                    }
                    return;
                }
            },
        };
        self.load(u16::from_le_bytes(written), tick);
    }

    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        let (value, finished) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::LowThenHigh if self.read_high_next => (high, true),
            Bytes::LowThenHigh => (low, false),
        };
        self.read_high_next = !finished;
        if finished {
            self.latched_count = None;
        }
        value
    }

    /// The gate input: holds modes 0 and 4, stops modes 2 and 3, and its rising edge starts or restarts 1, 2, 3 and 5.
    pub(super) fn set_gate(&mut self, gate: bool, tick: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        let loaded = !self.null_count;
        self.counting = match (self.mode, self.counting) {
            (Mode::TerminalCount | Mode::SoftwareStrobe, Counting::Since(start)) if falls => {
                Counting::Held(tick.saturating_sub(start))
            }
            (Mode::TerminalCount | Mode::SoftwareStrobe, Counting::Held(elapsed)) if rises => {
                Counting::Since(tick.saturating_sub(elapsed))
            }
            (Mode::RateGenerator | Mode::SquareWave, Counting::Since(_)) if falls => Counting::Held(0),
            (mode, _) if rises && loaded && (mode.is_periodic() || mode.waits_for_trigger()) => Counting::Since(tick),
            (_, counting) => counting,
        };
    }

    /// The OUT pin.
    pub(super) fn output(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else {
            return self.mode != Mode::TerminalCount;
        };
        let count = u64::from(self.count);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= count,
            Mode::RateGenerator => !self.gate || elapsed % count != count - 1,
            Mode::SquareWave => !self.gate || elapsed % count < count.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != count,
        }
    }

    /// The first tick after `after` at which OUT rises, if it will without further accesses.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        let Counting::Since(start) = self.counting else {
            return None;
        };
        let count = u64::from(self.count);
        let rise = match self.mode {
            Mode::TerminalCount | Mode::OneShot => start.saturating_add(count),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => start.saturating_add(count + 1),
            Mode::RateGenerator | Mode::SquareWave => {
                let periods = after.saturating_sub(start) / count + 1;
                start.saturating_add(periods.saturating_mul(count))
            }
        };
        (rise > after).then_some(rise)
    }

    pub(super) fn check(&self) -> Result<(), BadState> {
        if (1..=0x1_0000).contains(&self.count) {
            Ok(())
        } else {
            Err(BadState::new("PIT count", "1 to 65536", self.count))
        }
    }

    fn load(&mut self, written: u16, tick: u64) {
        self.count = self.radix.decode(written);
        self.null_count = false;
        self.counting = match self.mode {
            // Running or not, the new count waits for the next trigger; a running shot is cut short here.
            Mode::OneShot | Mode::HardwareStrobe => Counting::Stopped,
            _ if self.gate => Counting::Since(tick),
            _ => Counting::Held(0),
        };
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        match self.counting {
            Counting::Stopped => None,
            Counting::Since(start) => Some(tick.saturating_sub(start)),
            Counting::Held(elapsed) => Some(elapsed),
        }
    }

    /// The counting element as software reads it.
    fn value(&self, tick: u64) -> u16 {
        let count = u64::from(self.count);
        let elapsed = self.elapsed(tick).unwrap_or(0);
        let modulus = u64::from(self.radix.modulus());
        let left = match self.mode {
            Mode::RateGenerator => count - elapsed % count,
            Mode::SquareWave => {
                // Counts down by two, twice a period; an odd count loses its one, and its high half is a tick longer.
                let high = count.div_ceil(2);
                let phase = elapsed % count;
                (count & !1) - 2 * if phase < high { phase } else { phase - high }
            }
            _ => count + modulus - elapsed % modulus,
        };
        let [b0, b1, b2, b3, ..] = left.to_le_bytes();
        self.radix.encode(u32::from_le_bytes([b0, b1, b2, b3]))
    }
}
