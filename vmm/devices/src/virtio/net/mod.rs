//! virtio-net (virtio 1.2, 5.1): one receive and one transmit queue, a MAC address, no offloads.
//!
//! A frame the driver transmits becomes an effect, byte for byte. A frame that arrives goes into the oldest receive
//! buffer within the same input, or is dropped there; there is no backlog, so what was received is what is in guest
//! memory. [`VirtioNet::rx_ready`] tells the shell beforehand.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use super::fault::QueueFault;
use super::model::{CONFIG_SIZE, Model, Served};
use super::queue::VirtQueue;
use crate::env::{DeviceEnv, Effect};
use crate::error::BadState;

const RX: usize = 0;
const TX: usize = 1;

/// Bytes of `struct virtio_net_hdr_v1` before each frame (virtio 1.2, 5.1.6).
const HEADER: u32 = 12;
/// Offset of the header's `num_buffers`.
const NUM_BUFFERS: usize = 10;

/// Bytes of a frame at least: the Ethernet header.
const MIN_FRAME: u32 = 14;
/// Bytes of a frame that this device moves at most: 64 KiB of IP and the Ethernet header. Drivers without offloads stay
/// far below. What the host's network takes of that is the host's own, smaller bound.
const MAX_GUEST_FRAME: u32 = 65_550;

/// Which card an effect names, and what the driver can know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioNet {
    number: u8,
    mac: [u8; 6],
    /// Receive buffers seen available when the ring was last looked at.
    rx_buffers: u16,
}

impl VirtioNet {
    /// Card `number` with this address.
    pub(crate) fn new(number: u8, mac: [u8; 6]) -> Self {
        VirtioNet {
            number,
            mac,
            rx_buffers: 0,
        }
    }

    /// Whether a receive buffer is available, as far as the driver has told.
    pub(crate) fn rx_ready(&self) -> bool {
        self.rx_buffers > 0
    }

    /// A frame arrives. Dropped if there is no buffer, or if the next buffer is too small for it.
    pub(crate) fn receive(&mut self, frame: &[u8], queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        let queue = &mut queues[RX];
        let used = receive_into(frame, queue, env)?;
        self.rx_buffers = queue.available(env.memory)?;
        Ok(used)
    }

    fn transmit(&mut self, queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Served {
        let mut used = None;
        for _ in 0..queue.available(env.memory)? {
            let Some(chain) = queue.pop(env.memory)? else {
                break;
            };
            let Some(len) = chain.readable.len().checked_sub(HEADER) else {
                return Err(QueueFault::TooShort {
                    readable: chain.readable.len(),
                    writable: chain.writable.len(),
                });
            };
            if (MIN_FRAME..=MAX_GUEST_FRAME).contains(&len) {
                let mut bytes = vec![0; len as usize];
                chain.readable.read(env.memory, HEADER, &mut bytes)?;
                env.effects.push(Effect::Frame {
                    nic: self.number,
                    bytes,
                });
            }
            queue.push(env.memory, chain.head, 0)?;
            used = Some(TX);
        }
        Ok(used)
    }
}

fn receive_into(frame: &[u8], queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Served {
    let Some(len) = u32::try_from(frame.len()).ok().filter(|&len| len <= MAX_GUEST_FRAME) else {
        return Ok(None);
    };
    let Some(chain) = queue.pop(env.memory)? else {
        return Ok(None);
    };
    let whole = HEADER.saturating_add(len);
    if chain.writable.len() < whole {
        queue.unpop();
        return Ok(None);
    }
    let mut header = [0; HEADER as usize];
    header[NUM_BUFFERS] = 1;
    chain.writable.write(env.memory, 0, &header)?;
    chain.writable.write(env.memory, HEADER, frame)?;
    queue.push(env.memory, chain.head, whole)?;
    Ok(Some(RX))
}

impl Model for VirtioNet {
    const TYPE: u16 = 1;
    const CLASS: u32 = 0x02_0000;
    const QUEUE_SIZES: &'static [u16] = &[256, 256];

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        config[..6].copy_from_slice(&self.mac);
        config
    }

    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        if index == TX {
            return self.transmit(&mut queues[TX], env);
        }
        self.rx_buffers = queues[RX].available(env.memory)?;
        Ok(None)
    }

    fn reset(&mut self) {
        self.rx_buffers = 0;
    }

    fn check(&self, built: &Self) -> Result<(), BadState> {
        if (self.number, self.mac) == (built.number, built.mac) {
            Ok(())
        } else {
            Err(BadState::new(
                "a network card",
                "the one configured here",
                format!("{:?}", self.mac),
            ))
        }
    }
}
