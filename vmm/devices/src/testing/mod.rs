//! What the devices' tests share: a seeded generator, guest memory, a driver's half of a virtqueue, and the contract
//! every device keeps ([`contract`]).

pub(super) mod contract;
pub(super) mod driver;
pub(super) mod forgetting;

use vm_memory::{Bytes, GuestAddress};

use super::env::{DeviceEnv, Effect};
use ftvm_hypervisor::GuestMemory;

/// Bytes of RAM in a test.
pub(super) const RAM: u64 = 0x4_0000;

/// A xorshift generator: the same sequence from the same seed, everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state it cannot leave, and near seeds must not begin alike.
        Seeded(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("an index")]
    }

    pub(crate) fn bytes(&mut self, max: u64) -> Vec<u8> {
        (0..self.below(max + 1)).map(|_| self.byte()).collect()
    }
}

/// Everything around a device in a test.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub memory: GuestMemory,
    pub now: u64,
    pub effects: Vec<Effect>,
}

impl Surroundings {
    pub(super) fn new() -> Self {
        Surroundings {
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), RAM.try_into().expect("64-bit host"))])
                .expect("RAM for a test"),
            now: 0,
            effects: Vec::new(),
        }
    }

    pub(super) fn env(&mut self) -> DeviceEnv<'_> {
        DeviceEnv {
            memory: &self.memory,
            now: self.now,
            effects: &mut self.effects,
        }
    }

    pub(super) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).expect("in RAM");
        bytes
    }

    pub(super) fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).expect("in RAM");
    }

    /// A second RAM with the same content, at the same time, with no effects yet.
    pub(super) fn copy(&self) -> Self {
        let copy = Surroundings::new();
        copy.write(0, &self.read(0, RAM.try_into().expect("64-bit host")));
        Surroundings { now: self.now, ..copy }
    }
}
