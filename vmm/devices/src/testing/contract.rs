//! The contract every device keeps, checked by random histories.
//!
//! (1) Saved at any point and restored into a fresh device, it behaves as if nothing had happened: same answers, same
//! effects, same interrupt line, same deadlines, same guest memory. (2) Equal states are equal bytes. (3) Two devices
//! with the same history are the same. The state goes through its serialised form each time, so a field that is left
//! out, or that is not part of the state, is found. A failing seed is named; it fails every time.

use std::fmt::Debug;

use ftvm_schema::record;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RAM, Seeded, Surroundings};

/// Histories tried per device.
pub(super) const SEEDS: u64 = 60;
/// Steps of a history: a save happens somewhere within.
pub(super) const STEPS: u64 = 240;

/// A device under contract, with the guest that uses it.
pub(crate) trait Subject {
    /// The device.
    type Device: Debug;
    /// What the guest side of the test remembers.
    type Guest: Clone + Default;

    /// A fresh device.
    fn build() -> Self::Device;

    /// The device's state, serialised.
    fn save(device: &Self::Device) -> Vec<u8>;

    /// A fresh device brought into a state.
    fn restore(state: &[u8]) -> Self::Device;

    /// One random access or input, and what it answered.
    fn step(
        device: &mut Self::Device,
        guest: &mut Self::Guest,
        around: &mut Surroundings,
        random: &mut Seeded,
    ) -> Vec<u8>;

    /// What the device shows without being accessed: lines, deadlines, outstanding requests.
    fn observe(device: &Self::Device) -> String;
}

/// One device with its guest and surroundings, somewhere in its history.
pub(super) struct ContractRun<S: Subject> {
    pub device: S::Device,
    guest: S::Guest,
    around: Surroundings,
    random: Seeded,
}

impl<S: Subject> ContractRun<S> {
    pub(super) fn new(seed: u64) -> Self {
        ContractRun {
            device: S::build(),
            guest: S::Guest::default(),
            around: Surroundings::new(),
            random: Seeded::new(seed),
        }
    }

    /// The same run with a device restored from the state of this one.
    fn revived(&self) -> Self {
        self.with(S::restore(&S::save(&self.device)))
    }

    /// The same run with another device.
    pub(super) fn with(&self, device: S::Device) -> Self {
        ContractRun {
            device,
            guest: self.guest.clone(),
            around: self.around.copy(),
            random: self.random.clone(),
        }
    }

    /// One step and everything it showed.
    pub(super) fn step(&mut self) -> String {
        let answer = S::step(&mut self.device, &mut self.guest, &mut self.around, &mut self.random);
        let effects = std::mem::take(&mut self.around.effects);
        format!("{answer:?} {effects:?} {}", S::observe(&self.device))
    }

    pub(super) fn memory(&self) -> Vec<u8> {
        self.around.read(0, RAM.try_into().expect("64-bit host"))
    }
}

/// Checks the contract over many histories.
pub(crate) fn check<S: Subject>() {
    for seed in 0..SEEDS {
        check_one::<S>(seed);
    }
}

/// The step before which the state of history `seed` is saved.
pub(super) fn saved_at(seed: u64) -> u64 {
    Seeded::new(!seed).below(STEPS)
}

fn check_one<S: Subject>(seed: u64) {
    let saved_at = saved_at(seed);
    let mut run = ContractRun::<S>::new(seed);
    let mut twin = ContractRun::<S>::new(seed);
    for step in 0..saved_at {
        assert_eq!(run.step(), twin.step(), "seed {seed}: twins part at step {step}");
    }
    let state = S::save(&run.device);
    assert!(
        state == S::save(&twin.device),
        "seed {seed}: equal histories, but different bytes at step {saved_at}"
    );
    let mut revived = run.revived();
    let restored = S::save(&revived.device);
    assert!(
        state == restored,
        "seed {seed}: restored at step {saved_at}, it saves another state"
    );
    let (before, after) = (S::observe(&run.device), S::observe(&revived.device));
    assert_eq!(
        before, after,
        "seed {seed}: restored at step {saved_at}, it shows something else"
    );
    for step in saved_at..STEPS {
        let (kept, restored) = (run.step(), revived.step());
        assert_eq!(
            kept, restored,
            "seed {seed}: restored at step {saved_at}, it parts at step {step}"
        );
    }
    assert!(
        run.memory() == revived.memory(),
        "seed {seed}: restored at step {saved_at}, guest memory differs"
    );
    let (kept, restored) = (S::save(&run.device), S::save(&revived.device));
    assert!(
        kept == restored,
        "seed {seed}: restored at step {saved_at}, the final states differ"
    );
}

/// A state as it travels.
pub(crate) fn encode<T: Serialize>(state: &T) -> Vec<u8> {
    record::to_bytes(state).expect("a state that serialises")
}

/// What arrives of it.
pub(crate) fn decode<T: DeserializeOwned>(state: &[u8]) -> T {
    record::from_bytes(state, 1 << 30).expect("a state that was serialised")
}

/// Implements saving and restoring for a device whose struct is its state.
macro_rules! own_state {
    ($build:expr) => {
        fn build() -> Self::Device {
            $build
        }

        fn save(device: &Self::Device) -> Vec<u8> {
            $crate::testing::contract::encode(device)
        }

        fn restore(state: &[u8]) -> Self::Device {
            $crate::testing::contract::decode(state)
        }
    };
}

pub(crate) use own_state;
