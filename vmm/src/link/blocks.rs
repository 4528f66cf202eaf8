//! Sends the blocks of this host's private disks to a joining backup while the guest runs (`roles::clone` decides which).
//!
//! The backup says what it has written, and no more than [`BLOCKS_UNDER_WAY`] messages go ahead of that: its disk may be
//! slower than the link, and what waits there would have to be written while the guest's outputs are held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::{BLOCKS_UNDER_WAY, MAX_BLOCKS, Message};
use parking_lot::Mutex;
use shared_disk::image::{DiskImage, ImageError};
use shared_disk::mirror::{EXTENT, Extents, Written, extent_len};
use tokio::sync::mpsc;

use crate::link::connection::Outbox;
use ftvm_roles::clone::Blocks;
use ftvm_roles::event::Event;
use ftvm_roles::link::world::LinkEvent;

/// How often a full window is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// What one backup has been sent since it joined, and has written.
#[derive(Debug)]
struct Join {
    backup: Incarnation,
    sent: AtomicU64,
    written: AtomicU64,
}

/// A round on its way.
#[derive(Debug)]
struct Round {
    begun: Instant,
    extents: Extents,
    of: u64,
    sent: AtomicU64,
}

/// The private disks, what is written to them, and how far the present round is.
#[derive(Debug)]
pub struct BlockSource {
    images: Arc<BTreeMap<u8, Arc<DiskImage>>>,
    written: Arc<Mutex<Written>>,
    join: Option<Arc<Join>>,
    round: Option<Arc<Round>>,
}

impl BlockSource {
    /// Of these images, by disk.
    #[must_use]
    pub fn new(images: BTreeMap<u8, Arc<DiskImage>>) -> Self {
        let sizes = images.iter().map(|(disk, image)| (*disk, image.size())).collect();
        BlockSource {
            images: Arc::new(images),
            written: Arc::new(Mutex::new(Written::new(sizes))),
            join: None,
            round: None,
        }
    }

    /// Where whoever writes to the disks has to say so.
    #[must_use]
    pub fn written(&self) -> Arc<Mutex<Written>> {
        Arc::clone(&self.written)
    }

    /// The image of a private disk.
    #[must_use]
    pub fn image(&self, disk: u8) -> Option<&DiskImage> {
        self.images.get(&disk).map(Arc::as_ref)
    }

    /// All of them.
    pub fn images(&self) -> impl Iterator<Item = &DiskImage> {
        self.images.values().map(Arc::as_ref)
    }

    /// Writes that have begun and have not landed.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.written.lock().under_way()
    }

    /// The backup says that it has carried out so many messages.
    pub fn confirmed(&self, incarnation: Incarnation, messages: u64) {
        if let Some(join) = self.join.as_ref().filter(|join| join.backup == incarnation) {
            join.written.fetch_max(messages, Ordering::AcqRel);
        }
    }

    /// Starts a thread that sends blocks, waits until the backup has written them, and then says [`LinkEvent::BlocksSent`];
    /// it ends early where the connection does.
    pub fn send(
        &mut self,
        blocks: Blocks,
        to: Incarnation,
        generation: Generation,
        outbox: Outbox,
        events: mpsc::Sender<LinkEvent>,
    ) {
        let extents = match blocks {
            Blocks::All => self.written.lock().first_look(),
            Blocks::Written => self.written.lock().look(),
        };
        let join = match &self.join {
            Some(join) if join.backup == to => Arc::clone(join),
            _ => Arc::new(Join {
                backup: to,
                sent: AtomicU64::new(0),
                written: AtomicU64::new(0),
            }),
        };
        let round = Arc::new(Round {
            begun: Instant::now(),
            of: extents.count() * EXTENT,
            extents,
            sent: AtomicU64::new(0),
        });
        self.join = Some(Arc::clone(&join));
        self.round = Some(Arc::clone(&round));
        let sending = Sending {
            images: Arc::clone(&self.images),
            join,
            round,
            generation,
            outbox,
        };
        tokio::task::spawn_blocking(move || match sending.run() {
            Ok(bytes) => drop(events.blocking_send(LinkEvent::BlocksSent { to, bytes })),
            Err(Stop::Closed) => {} // whoever reads the connection says so
            Err(Stop::Image(error)) => tracing::error!("a private disk cannot be copied to the backup: {error}"),
        });
    }

    /// How far the present round is, and how long its rest takes at this speed; `None` if none is under way.
    #[must_use]
    pub fn progress(&self) -> Option<Event> {
        let round = self.round.as_ref().filter(|round| Arc::strong_count(round) > 1)?;
        let sent = round.sent.load(Ordering::Relaxed);
        let left = round.begun.elapsed().as_millis() * u128::from(round.of - sent) / u128::from(sent.max(1));
        Some(Event::Mirroring {
            bytes: sent,
            of: round.of,
            left_ms: u64::try_from(left).unwrap_or(u64::MAX),
        })
    }
}

/// Why a round is given up.
#[derive(Debug)]
enum Stop {
    Closed,
    Image(ImageError),
}

struct Sending {
    images: Arc<BTreeMap<u8, Arc<DiskImage>>>,
    join: Arc<Join>,
    round: Arc<Round>,
    generation: Generation,
    outbox: Outbox,
}

impl Sending {
    /// Bytes of the disks that the backup has written.
    fn run(&self) -> Result<u64, Stop> {
        let mut bytes = 0;
        let mut batch: (u8, Vec<u64>) = (0, Vec::new());
        for (disk, number) in self.round.extents.iter() {
            if disk != batch.0 || batch.1.len() == MAX_BLOCKS {
                bytes += self.send_batch(batch.0, std::mem::take(&mut batch.1))?;
                batch.0 = disk;
            }
            batch.1.push(number);
        }
        bytes += self.send_batch(batch.0, batch.1)?;
        self.message(Message::FlushBlocks)?;
        self.wait_for_fewer(1)?;
        Ok(bytes)
    }

    fn send_batch(&self, disk: u8, numbers: Vec<u64>) -> Result<u64, Stop> {
        let Some(image) = self.images.get(&disk).filter(|_| !numbers.is_empty()) else {
            return Ok(0);
        };
        let mut content = Vec::new();
        for number in &numbers {
            let start = content.len();
            content.resize(start + extent_len(image.size(), *number), 0);
            image
                .read_at(number * EXTENT, &mut content[start..])
                .map_err(Stop::Image)?;
        }
        let bytes = content.len() as u64;
        self.round
            .sent
            .fetch_add(numbers.len() as u64 * EXTENT, Ordering::Relaxed);
        self.message(Message::Blocks {
            disk,
            numbers,
            content: lz4_flex::block::compress(&content),
        })?;
        Ok(bytes)
    }

    fn message(&self, message: Message) -> Result<(), Stop> {
        self.wait_for_fewer(BLOCKS_UNDER_WAY)?;
        self.join.sent.fetch_add(1, Ordering::AcqRel);
        if self.outbox.send(self.generation, message) {
            Ok(())
        } else {
            Err(Stop::Closed)
        }
    }

    /// Waits until fewer messages than `most` are not known to be carried out.
    fn wait_for_fewer(&self, most: u64) -> Result<(), Stop> {
        let Join { sent, written, .. } = &*self.join;
        while sent.load(Ordering::Acquire) - written.load(Ordering::Acquire).min(sent.load(Ordering::Acquire)) >= most {
            if !self.outbox.is_open() {
                return Err(Stop::Closed);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
