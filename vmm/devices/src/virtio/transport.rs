//! The transport's registers: common configuration, status, features, interrupts (virtio 1.2, 2.1, 2.2, 3.1, 4.1.4).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

use super::fault::QueueFault;
use super::model::{Model, Served};
use super::queue::QueueStage;
use super::queue::VirtQueue;
use crate::env::DeviceEnv;
use crate::error::BadState;

#[allow(clippy::cast_possible_truncation, reason = "the status register is a byte")]
mod status {
    pub(super) const DRIVER_OK: u8 = super::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub(super) const FEATURES_OK: u8 = super::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub(super) const NEEDS_RESET: u8 = super::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// ISR bits (virtio 1.2, 4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// "No vector": there is no MSI-X.
const NO_VECTOR: u64 = 0xFFFF;

/// Registers of the common configuration structure, by offset (virtio 1.2, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0C;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1A;
    pub(super) const QUEUE_ENABLE: u64 = 0x1C;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1E;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    /// After QUEUE_DEVICE, the third address.
    pub(super) const END: u64 = 0x38;
}

/// A device model with its queues and what the driver has negotiated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transport<M> {
    pub(super) model: M,
    queues: Vec<VirtQueue>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    isr: u8,
    queue_select: u16,
    fault: Option<QueueFault>,
}

impl<M: Model> Transport<M> {
    pub(super) fn new(model: M) -> Self {
        Transport {
            model,
            queues: M::QUEUE_SIZES.iter().map(|&size| VirtQueue::new(size)).collect(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            isr: 0,
            queue_select: 0,
            fault: None,
        }
    }

    /// Whether an interrupt waits to be read from ISR.
    pub(super) fn interrupt(&self) -> bool {
        self.isr != 0
    }

    /// Reading ISR clears it (and so lowers the line).
    pub(super) fn read_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    /// Why the device waits for a reset, if it does.
    pub(super) fn fault(&self) -> Option<QueueFault> {
        self.fault
    }

    /// Whether the driver is up and the device has not stopped.
    pub(super) fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Lets the model work on its queues, if the device is running, and settles interrupt and fault afterwards.
    pub(super) fn serve(
        &mut self,
        env: &mut DeviceEnv<'_>,
        work: impl FnOnce(&mut M, &mut [VirtQueue], &mut DeviceEnv<'_>) -> Served,
    ) {
        if !self.is_running() {
            return;
        }
        let outcome = work(&mut self.model, &mut self.queues, env).and_then(|used| match used {
            Some(index) => self.queues[index].wants_interrupt(env.memory),
            None => Ok(false),
        });
        match outcome {
            Ok(true) => self.isr |= ISR_QUEUE,
            Ok(false) => {}
            Err(fault) => self.stop(fault),
        }
    }

    /// The driver notifies queue `index`.
    pub(super) fn notify(&mut self, index: usize, env: &mut DeviceEnv<'_>) {
        if self.queues.get(index).is_some_and(VirtQueue::is_enabled) {
            self.serve(env, |model, queues, env| model.notify(index, queues, env));
        }
    }

    /// Reads a register of the common configuration; `len` must be its width (or half of a 64-bit one). 0 elsewhere.
    pub(super) fn read_common(&self, offset: u64, len: usize) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |field: fn(&VirtQueue) -> u64| queue.map_or(0, field);
        match (offset, len) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select.into(),
            (common::DEVICE_FEATURE, 4) => half(self.offered_features(), self.device_feature_select),
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select.into(),
            (common::DRIVER_FEATURE, 4) => half(self.driver_features, self.driver_feature_select),
            (common::CONFIG_MSIX_VECTOR | common::QUEUE_MSIX_VECTOR, 2) => NO_VECTOR,
            (common::NUM_QUEUES, 2) => self.queues.len() as u64,
            (common::DEVICE_STATUS, 1) => self.status.into(),
            (common::QUEUE_SELECT, 2) => self.queue_select.into(),
            (common::QUEUE_SIZE, 2) => of_queue(|queue| queue.size.into()),
            (common::QUEUE_ENABLE, 2) => of_queue(|queue| u64::from(queue.is_enabled())),
            (common::QUEUE_NOTIFY_OFF, 2) => queue.map_or(0, |_| u64::from(self.queue_select)),
            (common::QUEUE_DESC..common::END, 4 | 8) => {
                let address = of_queue(match offset & !7 {
                    common::QUEUE_DESC => |queue| queue.desc,
                    common::QUEUE_DRIVER => |queue| queue.avail,
                    _ => |queue| queue.used,
                });
                match (offset & 7, len) {
                    (0, 8) => address,
                    (0, _) => half(address, 0),
                    (4, 4) => half(address, 1),
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes a register of the common configuration; other widths than its own are ignored.
    pub(super) fn write_common(&mut self, offset: u64, len: usize, value: u64, env: &mut DeviceEnv<'_>) {
        let [low_byte, high_byte, ..] = value.to_le_bytes();
        let word = u16::from_le_bytes([low_byte, high_byte]);
        let dword = low_half(value);
        match (offset, len) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = dword,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = dword,
            (common::DRIVER_FEATURE, 4) => self.accept_features(dword),
            (common::DEVICE_STATUS, 1) => self.write_status(low_byte, env),
            (common::QUEUE_SELECT, 2) => self.queue_select = word,
            (common::QUEUE_ENABLE, 2) if word == 1 => self.enable_queue(env),
            (common::QUEUE_SIZE, 2) => self.set_up_queue(|queue| queue.size = word),
            (common::QUEUE_DESC..common::END, 4 | 8) => self.set_up_queue(|queue| {
                let address = match offset & !7 {
                    common::QUEUE_DESC => &mut queue.desc,
                    common::QUEUE_DRIVER => &mut queue.avail,
                    _ => &mut queue.used,
                };
                match (offset & 7, len) {
                    (0, 8) => *address = value,
                    (0, _) => *address = *address & !0xFFFF_FFFF | u64::from(dword),
                    (4, 4) => *address = *address & 0xFFFF_FFFF | u64::from(dword) << 32,
                    _ => {}
                }
            }),
            _ => {}
        }
    }

    /// Refuses a state that does not fit the model.
    pub(super) fn check(&self, built: &Self) -> Result<(), BadState> {
        if self.queues.len() != M::QUEUE_SIZES.len() {
            let expected = "one per queue of the device";
            return Err(BadState::new("the number of virtqueues", expected, self.queues.len()));
        }
        for (queue, &size) in self.queues.iter().zip(M::QUEUE_SIZES) {
            queue.check(size)?;
        }
        self.model.check(&built.model)
    }

    fn offered_features(&self) -> u64 {
        self.model.features() | VERSION_1
    }

    fn accept_features(&mut self, dword: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(dword),
            1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(dword) << 32,
            _ => {}
        }
    }

    /// Writing 0 resets; otherwise bits are only ever added, and only those whose condition holds (virtio 1.2, 3.1.1).
    fn write_status(&mut self, value: u8, env: &mut DeviceEnv<'_>) {
        if value == 0 {
            return self.reset();
        }
        let was_running = self.is_running();
        let mut added = value & !status::NEEDS_RESET & !self.status;
        let acceptable = self.driver_features & !self.offered_features() == 0 && self.driver_features & VERSION_1 != 0;
        if !acceptable {
            added &= !status::FEATURES_OK;
        }
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if self.is_running() && !was_running {
            // Buffers that were made available before count as notified.
            for index in 0..self.queues.len() {
                self.notify(index, env);
            }
        }
    }

    fn reset(&mut self) {
        self.model.reset();
        self.queues.iter_mut().for_each(VirtQueue::reset);
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.status = 0;
        self.isr = 0;
        self.queue_select = 0;
        self.fault = None;
    }

    fn set_up_queue(&mut self, change: impl FnOnce(&mut VirtQueue)) {
        let selected = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(queue) = selected.filter(|queue| queue.phase == QueueStage::Setup) {
            change(queue);
        }
    }

    fn enable_queue(&mut self, env: &DeviceEnv<'_>) {
        let selected = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(queue) = selected.filter(|queue| queue.phase == QueueStage::Setup)
            && let Err(fault) = queue.enable(env.memory)
        {
            self.stop(fault);
        }
    }

    /// The driver broke its side: the device stops until it is reset, and says so (virtio 1.2, 2.1.2).
    fn stop(&mut self, fault: QueueFault) {
        self.status |= status::NEEDS_RESET;
        if self.status & status::DRIVER_OK != 0 {
            self.isr |= ISR_CONFIG;
        }
        self.fault.get_or_insert(fault);
    }
}

/// 32 bits of a 64-bit register: 0 the lower, 1 the upper, anything else zero.
fn half(value: u64, which: u32) -> u64 {
    match which {
        0 => value & 0xFFFF_FFFF,
        1 => value >> 32,
        _ => 0,
    }
}

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
