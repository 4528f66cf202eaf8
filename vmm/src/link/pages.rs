//! Sends the guest's pages to a joining backup while the guest runs (`roles::clone` decides which).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::{MAX_PAGES, Message};
use tokio::sync::mpsc;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::link::connection::Outbox;
use ftvm_hypervisor::GuestMemory;
use ftvm_machine::machine::pages::{Zeros, copy_pages};
use ftvm_machine::machine::state::PAGE;
use ftvm_roles::clone::Selection;
use ftvm_roles::event::Event;
use ftvm_roles::link::world::LinkEvent;

/// Bytes that may wait to be written; pages copied too early are pages copied twice.
const WINDOW: usize = 4 << 20;

/// How often a full window is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// A round on its way.
#[derive(Debug)]
struct Round {
    number: u32,
    begun: Instant,
    of: u64,
    sent: AtomicU64,
}

/// Where the pages come from, and how far the present round is.
#[derive(Debug)]
pub struct PageSource {
    memory: GuestMemory,
    round: Option<Arc<Round>>,
}

impl PageSource {
    /// The RAM of the guest that runs here.
    #[must_use]
    pub fn new(memory: GuestMemory) -> Self {
        PageSource { memory, round: None }
    }

    /// Starts a thread that sends a selection and then says [`LinkEvent::PagesSent`]; it ends early where the connection
    /// does.
    pub fn send(
        &mut self,
        selection: Selection,
        to: Incarnation,
        generation: Generation,
        outbox: Outbox,
        events: mpsc::Sender<LinkEvent>,
    ) {
        let zeros = match &selection {
            Selection::All => Zeros::LeftOut,
            Selection::These(_) => Zeros::Taken,
        };
        let pages: Vec<u64> = match selection {
            Selection::All => (0..self.page_count()).collect(),
            Selection::These(pages) => pages,
        };
        let round = Arc::new(Round {
            number: match (&self.round, zeros) {
                (Some(before), Zeros::Taken) => before.number + 1,
                _ => 1,
            },
            begun: Instant::now(),
            of: pages.len() as u64,
            sent: AtomicU64::new(0),
        });
        self.round = Some(Arc::clone(&round));
        let memory = self.memory.clone();
        tokio::task::spawn_blocking(move || {
            let (mut sent, mut bytes) = (0, 0);
            for batch in pages.chunks(MAX_PAGES) {
                let (numbers, content) = match copy_pages(&memory, batch, zeros) {
                    Ok(copied) => copied,
                    Err(error) => return tracing::error!("the guest's pages cannot be read: {error}"),
                };
                round.sent.fetch_add(batch.len() as u64, Ordering::Relaxed);
                if numbers.is_empty() {
                    continue;
                }
                sent += numbers.len() as u64;
                bytes += content.len() as u64;
                while outbox.queued() > WINDOW && outbox.is_open() {
                    std::thread::sleep(LOOK);
                }
                if !outbox.send(generation, Message::Pages { numbers, content }) {
                    return; // whoever reads the connection says so
                }
            }
            let _ = events.blocking_send(LinkEvent::PagesSent { to, pages: sent, bytes });
        });
    }

    /// How far the present round is, and how long its rest takes at this speed.
    #[must_use]
    pub fn progress(&self) -> Option<Event> {
        let round = self.round.as_ref()?;
        let sent = round.sent.load(Ordering::Relaxed);
        let spent = round.begun.elapsed().as_millis();
        let left = spent * u128::from(round.of - sent) / u128::from(sent.max(1));
        Some(Event::Cloning {
            round: round.number,
            pages: sent,
            of: round.of,
            left_ms: u64::try_from(left).unwrap_or(u64::MAX),
        })
    }

    fn page_count(&self) -> u64 {
        self.memory.iter().map(|region| region.len()).sum::<u64>() / PAGE as u64
    }
}
