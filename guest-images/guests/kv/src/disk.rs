//! The log on its disk.

use alloc::vec;

use guest_rt::abi::status;
use guest_rt::{power, println, user};
use guest_virtio::block::{Block, BlockError, SECTOR};
use kv_core::engine::Engine;
use kv_core::log::{self, FlushPolicy, Log, Recovered, Step};

use crate::config::Format;

/// The log and its disk.
pub struct Disk {
    block: Block,
    log: Log,
}

/// Ends the guest because of its disk: acknowledged writes that cannot be kept must not be followed by others.
fn fail(error: impl core::fmt::Display) -> ! {
    println!("kv: disk: {error}");
    power::exit(status::USAGE)
}

/// Waits for the disk's job.
fn wait(block: &mut Block) -> Result<vec::Vec<u8>, BlockError> {
    loop {
        match block.poll() {
            Some(result) => return result,
            None => user::idle(),
        }
    }
}

fn start(block: &mut Block, step: Step) {
    match step {
        Step::Write { sector, data } => block.start_write(sector, data),
        Step::Flush => block.start_flush(),
    }
}

impl Disk {
    /// Reads the log on the disk into the engine, or makes a new log.
    pub fn open(mut block: Block, policy: FlushPolicy, format: Format, disk_id: u64, engine: &mut Engine) -> Self {
        if block.is_read_only() {
            fail("it is read-only");
        }
        let sectors = block.sectors();
        let mut read = |sector, bytes: &mut [u8]| {
            block.start_read(sector, bytes.len());
            bytes.copy_from_slice(&wait(&mut block)?);
            Ok::<_, BlockError>(())
        };
        let recovered = match format {
            Format::Always => None,
            Format::IfBlank => log::recover(sectors, policy, &mut read, engine).unwrap_or_else(|error| fail(error)),
        };
        let (log, step) = match recovered {
            Some(Recovered {
                log,
                first_write,
                frames,
                commands,
                end_sector,
                end,
            }) => {
                let keys = engine.store().len();
                println!(
                    "kv: {keys} keys from {commands} commands in {frames} frames; log ends at sector {end_sector}: {end}"
                );
                (log, first_write)
            }
            None => {
                let (log, step) = log::format(sectors, policy, disk_id).unwrap_or_else(|error| fail(error));
                println!(
                    "kv: 0 keys, a new log on a disk of {} MiB",
                    (sectors * SECTOR as u64) >> 20
                );
                (log, step)
            }
        };
        for step in [step, Step::Flush] {
            start(&mut block, step);
            if let Err(error) = wait(&mut block) {
                fail(error);
            }
        }
        Self { block, log }
    }

    /// The log.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Keeps the disk busy with what the log wants, at `now` in milliseconds. Whether anything moved on.
    pub fn drive(&mut self, engine: &mut Engine, now: u64) -> bool {
        let (store, journal) = engine.store_and_journal();
        let mut next = None;
        let mut moved = false;
        if !self.block.is_idle() {
            match self.block.poll() {
                None => return false,
                Some(Err(error)) => fail(error),
                Some(Ok(_)) => next = self.log.done(store),
            }
            moved = true;
        }
        next = next.or_else(|| self.log.next_step(store, journal, now));
        if let Some(step) = next {
            start(&mut self.block, step);
            moved = true;
        }
        moved
    }
}
