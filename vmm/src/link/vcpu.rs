//! The vCPU thread of a pair, and the channel on which it tells the link what the guest does.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use ftvm_host::queue::{EventQueue, EventSender};
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::Machine;
use ftvm_roles::clock::LiveClock;
use ftvm_roles::link::guest::{FromGuest, PairSink, Reins, ToLink, take_together};
use ftvm_roles::live::{Live, LiveConfig, Marks};
use ftvm_roles::terms::Terms;

/// Batches that may wait for the link; a full queue stops the vCPU (PROTOCOL 9). A batch is one exit's worth, or a
/// checkpoint.
const BATCHES: usize = 256;

/// The vCPU thread's end.
#[derive(Clone, Debug)]
pub struct LinkSender(mpsc::Sender<FromGuest>);

impl ToLink for LinkSender {
    fn say(&self, message: FromGuest) -> bool {
        self.0.blocking_send(message).is_ok()
    }
}

/// The link's end.
#[derive(Debug)]
pub struct GuestStream {
    batches: mpsc::Receiver<FromGuest>,
    /// Taken out of the queue, and the next to be said.
    ahead: Option<FromGuest>,
}

impl GuestStream {
    /// What the vCPU thread says next, batches that wait together; nothing once it has ended. May be cancelled (in `select!`)
    /// without loss.
    pub async fn next(&mut self) -> Option<FromGuest> {
        let first = match self.ahead.take() {
            Some(first) => first,
            None => self.batches.recv().await?,
        };
        let (message, ahead) = take_together(first, || self.batches.try_recv().ok());
        self.ahead = ahead;
        Some(message)
    }
}

/// Everything a machine needs to live in a pair.
#[derive(Debug)]
pub struct Life {
    pub sink: PairSink<LinkSender>,
    pub queue: EventQueue,
    pub events: EventSender,
    pub clock: LiveClock,
    pub patience: Duration,
}

impl Life {
    /// A life in a pair with these terms, what the link reads of it, and the reins that both hold.
    #[must_use]
    pub fn new(terms: &Terms, queue: EventQueue, events: &EventSender, clock: LiveClock) -> (Self, GuestStream, Reins) {
        let (link, batches) = mpsc::channel(BATCHES);
        let reins = Reins::default();
        let life = Life {
            sink: PairSink::new(LinkSender(link), reins.clone(), terms.disk_reads),
            queue,
            events: events.clone(),
            clock,
            patience: terms.patience(),
        };
        (life, GuestStream { batches, ahead: None }, reins)
    }
}

/// Lives on this thread until the end, and says how it was.
pub fn live<C: Cpu>(machine: Machine<C>, life: Life) {
    let config = LiveConfig {
        patience: life.patience,
        marks: Marks::EveryFlush,
        checks: false,
        max_exits: None,
    };
    let link = life.sink.link().clone();
    let live = Live::new(machine, life.sink, life.queue, life.clock, config, Instant::now());
    let how = ftvm_host::vcpu::run(live, life.events).map(|(_, _, reason, _)| reason);
    // If the link is gone, so is the process.
    let _ = link.say(FromGuest::Ended(how));
}

/// The virtual clock of a new guest.
#[must_use]
pub fn new_clock() -> LiveClock {
    LiveClock::starting(0, Instant::now())
}
