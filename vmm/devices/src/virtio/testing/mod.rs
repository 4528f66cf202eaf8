//! One virtio function with RAM, for tests of device models through their registers.

pub(super) mod contract;

use super::{Model, PciFunction, QueueFault, VirtioPci};
use crate::Effect;
use crate::testing::Surroundings;
use crate::testing::driver::{Bar, DRIVER_OK, NEEDS_RESET, Ring};

/// Where rings lie; what is below is for buffers.
pub(super) const RINGS: u64 = 0x2_0000;
/// Pages of a ring.
pub(super) const RING: u64 = 0x3000;

/// A function and its driver.
pub(super) struct FunctionBench<M> {
    pub function: VirtioPci<M>,
    pub around: Surroundings,
    pub rings: Vec<Ring>,
}

impl<M: Model> FunctionBench<M> {
    /// A device whose driver has brought it up, with rings of `size` entries.
    pub(super) fn running(model: M, size: u16) -> Self {
        let rings = (0..)
            .zip(M::QUEUE_SIZES)
            .map(|(index, _)| Ring::new(RINGS + RING * index, size))
            .collect();
        let mut bench = FunctionBench {
            function: VirtioPci::new(model, 0xE000_0000, 5),
            around: Surroundings::new(),
            rings,
        };
        bench.bring_up_all();
        assert_eq!(
            bench.status() & (DRIVER_OK | NEEDS_RESET),
            DRIVER_OK,
            "the driver is up"
        );
        bench
    }

    /// A driver that begins anew, with empty rings.
    pub(super) fn restart(&mut self) {
        for ring in &mut self.rings {
            self.around.write(ring.base, &[0; 0x3000]);
            *ring = Ring::new(ring.base, ring.size);
        }
        self.bring_up_all();
    }

    fn bring_up_all(&mut self) {
        let rings = self.rings.clone();
        self.bring_up(&rings);
    }

    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.around.effects)
    }

    /// Notifies queue 0 and says what the device finds wrong.
    pub(super) fn fault_of(&mut self) -> Option<QueueFault> {
        self.notify(0);
        let fault = self.function.fault();
        assert_eq!(
            self.status() & NEEDS_RESET != 0,
            fault.is_some(),
            "a fault is shown, and nothing else is"
        );
        fault
    }
}

impl<M: Model> Bar for FunctionBench<M> {
    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        self.function.read_bar(offset, data, &mut self.around.env());
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        self.function.write_bar(offset, data, &mut self.around.env());
    }
}
