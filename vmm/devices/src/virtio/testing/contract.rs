//! The contract of [`testing::contract`](crate::testing::contract) for any virtio function: a random driver,
//! mostly well-behaved, sometimes not, that resets its device now and then.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RING, RINGS};
use crate::testing::contract::{Subject, own_state};
use crate::testing::driver::{Bar, CONFIG, ISR, Piece, Ring};
use crate::testing::{Seeded, Surroundings};
use crate::virtio::{Model, PciFunction, VirtioPci};

/// Entries of the rings: few, so that indices wrap.
const SIZE: u16 = 8;

/// Offsets and widths of what there is to read in the BAR.
const REGISTERS: &[(u32, usize)] = &[
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0C, 4),
    (0x12, 2),
    (0x14, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1C, 2),
    (0x1E, 2),
    (0x20, 8),
    (0x28, 4),
    (0x30, 8),
    (ISR, 1),
    (ISR, 1),
    (CONFIG, 8),
];

/// Registers of configuration space that can be written, and the status.
const CONFIGURATION: &[u8] = &[0x04, 0x10, 0x3C, 0x88, 0x8C, 0x90, 0x94];
/// What is written to them: commands, places, and what makes the window work.
const CONFIGURATION_VALUES: &[u32] = &[0, 1, 2, 4, 6, 0x406, 0x14, 0x1000, 0xD000_0000, 0xE000_0000];

/// A model under contract.
pub(in crate::virtio) trait Kind: Model + Serialize + DeserializeOwned + std::fmt::Debug {
    /// The model in its fresh state.
    fn fresh() -> Self;
    /// A chain that makes sense on queue `index`; what the device reads is written to memory here.
    fn chain(index: usize, around: &Surroundings, random: &mut Seeded) -> Vec<Piece>;
    /// Something arrives from outside.
    fn input(function: &mut VirtioPci<Self>, around: &mut Surroundings, random: &mut Seeded);
    /// What the model shows the shell.
    fn show(function: &VirtioPci<Self>) -> String;
}

/// Random pieces, one to three, somewhere in the memory below the rings.
pub(in crate::virtio) fn pieces(make: fn(u64, u32) -> Piece, max: u32, random: &mut Seeded) -> Vec<Piece> {
    (0..=random.below(3))
        .map(|_| {
            let len = 1 + u32::try_from(random.below(max.into())).expect("below a u32");
            make(random.below(RINGS - u64::from(len)), len)
        })
        .collect()
}

/// Any kind as a subject of the contract.
pub(in crate::virtio) struct VirtioSubject<K>(PhantomData<K>);

/// The device's access path and the guest's memory, for as long as a step takes.
struct Reach<'a, K> {
    function: &'a mut VirtioPci<K>,
    around: &'a mut Surroundings,
}

impl<K: Kind> Bar for Reach<'_, K> {
    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        self.function.read_bar(offset, data, &mut self.around.env());
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        self.function.write_bar(offset, data, &mut self.around.env());
    }
}

impl<K: Kind> Subject for VirtioSubject<K> {
    type Device = VirtioPci<K>;
    type Guest = Vec<Ring>;

    own_state!(VirtioPci::new(K::fresh(), 0xE000_0000, 5));

    fn step(
        function: &mut VirtioPci<K>,
        rings: &mut Vec<Ring>,
        around: &mut Surroundings,
        random: &mut Seeded,
    ) -> Vec<u8> {
        let mut reach = Reach { function, around };
        if rings.is_empty() || random.once_in(40) {
            let len = RING * K::QUEUE_SIZES.len() as u64;
            reach
                .around
                .write(RINGS, &vec![0; usize::try_from(len).expect("64-bit host")]);
            *rings = (0..)
                .zip(K::QUEUE_SIZES)
                .map(|(index, _)| Ring::new(RINGS + RING * index, SIZE))
                .collect();
            reach.bring_up(rings);
            return vec![reach.status()];
        }
        let index = usize::try_from(random.below(rings.len() as u64)).expect("an index");
        let mut answer = vec![0; 4];
        match random.below(12) {
            0..=3 => {
                let mut chain = K::chain(index, reach.around, random);
                if random.once_in(60) {
                    chain.push(random.pick(&[Piece::In(0, 0), Piece::Out(u64::MAX, 1), Piece::In(0, u32::MAX)]));
                }
                rings[index].chain(reach.around, &chain);
                if !random.once_in(3) {
                    reach.notify(u16::try_from(index).expect("few queues"));
                }
            }
            4..=6 => K::input(reach.function, reach.around, random),
            7 | 8 => {
                let (register, width) = random.pick(REGISTERS);
                answer.resize(width, 0);
                reach.read_bar(register, &mut answer);
            }
            9 => {
                let (register, width) = random.pick(REGISTERS);
                // Mostly selectors; rarely what would reset the device or break its queues.
                if random.once_in(10) || matches!(register, 0x00 | 0x08 | 0x16) {
                    answer = random.below(3).to_le_bytes()[..width].to_vec();
                    reach.write_bar(register, &answer);
                }
            }
            10 => {
                let register = random.pick(CONFIGURATION);
                answer = reach
                    .function
                    .read_register(register, &mut reach.around.env())
                    .to_le_bytes()
                    .to_vec();
            }
            _ => {
                let (register, value) = (random.pick(CONFIGURATION), random.pick(CONFIGURATION_VALUES));
                reach
                    .function
                    .write_register(register, 0, &value.to_le_bytes(), &mut reach.around.env());
            }
        }
        answer
    }

    fn observe(function: &VirtioPci<K>) -> String {
        let running = function.is_running();
        let lines = (function.interrupt(), function.fault(), function.decode(0xE000_0000, 4));
        format!("{running} {lines:?} {}", K::show(function))
    }
}
