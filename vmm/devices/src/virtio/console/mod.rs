//! virtio-console (virtio 1.2, 5.3): one port, no size, no control queues.
//!
//! What the driver writes is an effect. What arrives waits in a small backlog until the driver offers a buffer, so a
//! typist need not keep pace with the driver; [`VirtioConsole::room`] says how much fits.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use ftvm_schema::entry::ConsolePort;
use serde::{Deserialize, Serialize};

use super::fault::QueueFault;
use super::model::{CONFIG_SIZE, Model, Served};
use super::queue::VirtQueue;
use crate::env::{DeviceEnv, Effect};
use crate::error::BadState;

const RX: usize = 0;
const TX: usize = 1;

/// Bytes that may wait for a receive buffer: a page, as a terminal's line buffer.
const BACKLOG: usize = 4096;

/// Bytes of one transmitted buffer at most. Drivers send a page at a time; each buffer is held until it is released.
const MAX_OUTPUT: u32 = 1 << 20;

/// The console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioConsole {
    backlog: VecDeque<u8>,
}

impl VirtioConsole {
    /// Bytes that can be received now.
    pub(crate) fn room(&self) -> usize {
        BACKLOG.saturating_sub(self.backlog.len())
    }

    /// Bytes arrive; what does not fit the backlog is dropped.
    pub(crate) fn receive(&mut self, bytes: &[u8], queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        self.backlog.extend(&bytes[..bytes.len().min(self.room())]);
        self.deliver(&mut queues[RX], env)
    }

    fn deliver(&mut self, queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Served {
        let mut used = None;
        while !self.backlog.is_empty() {
            let Some(chain) = queue.pop(env.memory)? else {
                break;
            };
            let room = chain.writable.len() as usize;
            if room == 0 {
                return Err(QueueFault::TooShort {
                    readable: chain.readable.len(),
                    writable: 0,
                });
            }
            let bytes: Vec<u8> = self.backlog.drain(..room.min(self.backlog.len())).collect();
            chain.writable.write(env.memory, 0, &bytes)?;
            queue.push(env.memory, chain.head, u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
            used = Some(RX);
        }
        Ok(used)
    }
}

fn transmit(queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Served {
    let mut used = None;
    for _ in 0..queue.available(env.memory)? {
        let Some(chain) = queue.pop(env.memory)? else {
            break;
        };
        let len = chain.readable.len();
        if len > MAX_OUTPUT {
            return Err(QueueFault::TooLong { max: MAX_OUTPUT });
        }
        if len > 0 {
            let mut bytes = vec![0; len as usize];
            chain.readable.read(env.memory, 0, &mut bytes)?;
            env.effects.push(Effect::Console {
                port: ConsolePort::Virtio,
                bytes,
            });
        }
        queue.push(env.memory, chain.head, 0)?;
        used = Some(TX);
    }
    Ok(used)
}

impl Model for VirtioConsole {
    const TYPE: u16 = 3;
    const CLASS: u32 = 0x07_8000;
    const QUEUE_SIZES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        [0; CONFIG_SIZE]
    }

    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        if index == TX {
            transmit(&mut queues[TX], env)
        } else {
            self.deliver(&mut queues[RX], env)
        }
    }

    fn reset(&mut self) {
        self.backlog.clear();
    }

    fn check(&self, _built: &Self) -> Result<(), BadState> {
        if self.backlog.len() <= BACKLOG {
            Ok(())
        } else {
            Err(BadState::new(
                "the virtio console's backlog",
                "at most 4096 bytes",
                self.backlog.len(),
            ))
        }
    }
}
