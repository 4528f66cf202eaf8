//! virtio-rng (virtio 1.2, 5.4): entropy from the host, as an input like any other.
//!
//! One request is outstanding at a time; the next is taken when the host has answered, so a driver that asks for a
//! lot is served at the pace of the log.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::chain::ChainBuffer;
use super::fault::QueueFault;
use super::model::{CONFIG_SIZE, Model, Served};
use super::queue::VirtQueue;
use crate::env::{DeviceEnv, Effect};
use crate::error::BadState;

const REQUESTS: usize = 0;

/// Bytes given per request at most: every byte is logged and sent. Drivers ask for 64 or less; a device may give less.
const MAX_ENTROPY: u32 = 1024;

/// What the driver waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    head: u16,
    buffer: ChainBuffer,
}

/// The entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioRng {
    request: Option<Request>,
}

impl VirtioRng {
    /// Bytes the outstanding request wants.
    pub(crate) fn wanted(&self) -> Option<u32> {
        self.request
            .as_ref()
            .map(|request| request.buffer.len().min(MAX_ENTROPY))
    }

    /// Entropy arrives for the outstanding request. Without one (the driver has reset the device) or without a byte,
    /// nothing happens; bytes beyond what was wanted are dropped.
    pub(crate) fn answer(&mut self, bytes: &[u8], queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        let Some(wanted) = self.wanted() else {
            return Ok(None);
        };
        let given = &bytes[..bytes.len().min(wanted as usize)];
        let Some(Request { head, buffer }) = self.request.take_if(|_| !given.is_empty()) else {
            return Ok(None);
        };
        let queue = &mut queues[REQUESTS];
        buffer.write(env.memory, 0, given)?;
        queue.push(env.memory, head, u32::try_from(given.len()).unwrap_or(MAX_ENTROPY))?;
        self.take_request(queue, env)?;
        Ok(Some(REQUESTS))
    }

    fn take_request(&mut self, queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Result<(), QueueFault> {
        if self.request.is_some() {
            return Ok(());
        }
        let Some(chain) = queue.pop(env.memory)? else {
            return Ok(());
        };
        if chain.writable.len() == 0 {
            return Err(QueueFault::TooShort {
                readable: chain.readable.len(),
                writable: 0,
            });
        }
        let len = chain.writable.len().min(MAX_ENTROPY);
        self.request = Some(Request {
            head: chain.head,
            buffer: chain.writable,
        });
        env.effects.push(Effect::WantEntropy { len });
        Ok(())
    }
}

impl Model for VirtioRng {
    const TYPE: u16 = 4;
    const CLASS: u32 = 0xFF_0000;
    const QUEUE_SIZES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        [0; CONFIG_SIZE]
    }

    fn notify(&mut self, _index: usize, queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        self.take_request(&mut queues[REQUESTS], env)?;
        Ok(None)
    }

    fn reset(&mut self) {
        self.request = None;
    }

    fn check(&self, _built: &Self) -> Result<(), BadState> {
        Ok(())
    }
}
