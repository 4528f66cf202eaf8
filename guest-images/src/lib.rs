//! Bare-metal guests, built by this crate's build script and embedded as ELF images.
//!
//! They run on any KVM (software KVMs included) and need no files: the same binary that runs them carries them. What
//! they expect of the machine is in the crate `guest-abi`; what each does, and its options, in its own sources under
//! `guests/`. They serve as demonstration, as workloads, and as torture tests of record and replay.

#![forbid(unsafe_code)]

/// One guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What users call it.
    pub name: &'static str,
    /// One line about what it does and which options its command line takes.
    pub about: &'static str,
    /// The ELF64 executable, see `guest-abi` for how to load and start it.
    pub image: &'static [u8],
}

macro_rules! guests {
    ($($name:literal: $about:literal,)*) => {
        &[$(Guest { name: $name, about: $about, image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".elf")) }),*]
    };
}

static GUESTS: &[Guest] = guests! {
    "pulse": "a numbered line per 100 Hz timer tick; ticks=N (100; 0 = for ever)",
    "exits": "makes exits as fast as it can; count=N (100000; 0 = for ever) kind=write|clock",
    "mix": "checks its own work at CPL0 and CPL3 amid exits and interrupts; rounds=N (200) every=N (20) pages=N (1024) stretch=N (2000000)",
    "spin": "a loop at CPL3 that never exits, under a 100 Hz timer; pages=N per lap (16) ticks=N (100) every=N ticks a line (25)",
    "scribble": "breaks the rings of its virtio network cards and disks in every way, and resets them; rounds=N (3; 0 = for ever)",
    "dirty": "writes its memory at a given rate, for ever; rate=MIB per second (20) area=MIB that is written (a quarter of its memory)",
    "kv": "a key-value server speaking RESP2 over TCP, with an append-only file on its disk; ip=A.B.C.D/N gw=A.B.C.D port=N (6379) appendfsync=always|everysec|no",
};

/// All guests, in the order in which they should be listed.
#[must_use]
pub fn all() -> &'static [Guest] {
    GUESTS
}

/// The guest of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Guest> {
    GUESTS.iter().find(|guest| guest.name == name)
}

#[cfg(test)]
mod tests;
