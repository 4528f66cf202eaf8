//! Devices that have stopped because the guest broke their rings: told of, and bounded.

use super::{Events, Live, Sink};
use ftvm_hypervisor::Cpu;

/// Stopped devices that are told of in one life: a guest may stop and reset them as often as it likes.
const FAULTS_TOLD: u64 = 32;

impl<C: Cpu, S: Sink, E: Events> Live<C, S, E> {
    /// Tells of devices that have stopped. Called after every exit, as the next one may reset them.
    pub(super) fn notice_faults(&mut self) {
        if self.machine.chipset().faults().eq(self.faults.iter().copied()) {
            return;
        }
        let found: Vec<_> = self.machine.chipset().faults().collect();
        for (slot, fault) in found.iter().filter(|fault| !self.faults.contains(fault)) {
            self.totals.device_faults += 1;
            match self.totals.device_faults {
                ..=FAULTS_TOLD => tracing::warn!(
                    "the guest's driver broke the rings of the virtio device at PCI slot {slot}: {fault}; the device \
                     stands still until the guest resets it"
                ),
                told if told == FAULTS_TOLD + 1 => {
                    tracing::warn!("devices stopped {FAULTS_TOLD} times; further stops are not told");
                }
                _ => {}
            }
        }
        self.faults = found;
    }
}
