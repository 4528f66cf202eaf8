//! The backup's shell: tokio and the vCPU thread behind the world of a backup's link (`roles::link::backup`), which decides
//! everything, until it goes live or ends.

use std::time::{Duration, Instant};

use logging_channel::clock::boottime_ns;
use logging_channel::message::{Health, Heartbeat};
use tokio::sync::mpsc;

use crate::control::{Desk, Role};
use crate::failure::Failure;
use crate::link::pages::PageSource;
use crate::link::shell::Shell;
use crate::link::vcpu::{Life, live};
use crate::outside::probe::Probe;
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::backup::Backup;
use ftvm_roles::copies::DiskCopies;
use ftvm_roles::event::Protection;
use ftvm_roles::following::{FollowOrder, FollowReport, Following, Takeover};
use ftvm_roles::link::backup::{BackupEvent, BackupLink, Followed};
use ftvm_roles::link::world::BackupWorld;
use ftvm_roles::operation::Unprotected;
use ftvm_roles::replay::DiskReader;

/// To the vCPU thread of a backup, in order.
#[derive(Debug)]
pub(crate) enum ToBackupThread {
    /// An order, and when what it is about arrived.
    Follow(FollowOrder, Instant),
    /// Live, with this to live on.
    GoLive(Box<Life>),
}

/// From the vCPU thread of a backup.
#[derive(Debug)]
pub(crate) enum FromBackupThread {
    Report(FollowReport),
    /// At the horizon: what the new life must do first.
    AtHorizon(Box<Takeover>),
}

/// The vCPU thread of a backup, and the way to it.
#[derive(Debug)]
pub(crate) struct BackupThread {
    pub orders: crossbeam_channel::Sender<ToBackupThread>,
    pub reports: mpsc::UnboundedReceiver<FromBackupThread>,
    /// For the backup after this one.
    pub pages: PageSource,
}

/// What a backup has on this host.
#[derive(Debug)]
pub(crate) struct BackupSide {
    pub backup_thread: BackupThread,
    pub heard: mpsc::Receiver<Heartbeat>,
    pub desk: Desk,
    pub boot: BootCell,
    pub probe: Probe,
}

/// The backup's shell.
pub(crate) type BackupShell = Shell<BackupSide>;

/// Starts the vCPU thread of a backup.
///
/// # Errors
/// If the host has no thread to give.
pub(crate) fn start_backup_thread<C: Cpu + 'static>(
    machine: Machine<C>,
    copies: Box<dyn DiskCopies + Send>,
    disks: impl DiskReader + Send + 'static,
) -> Result<BackupThread, Failure> {
    // Unbounded here, bounded by what the link takes in before it is executed (roles::link::backup).
    let (orders, received) = crossbeam_channel::unbounded();
    let pages = PageSource::new(machine.memory().clone());
    let (told, reports) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new().name("vcpu".to_owned());
    thread.spawn(move || follow(machine, copies, disks, &received, &told))?;
    Ok(BackupThread { orders, reports, pages })
}

fn follow<C: Cpu>(
    machine: Machine<C>,
    copies: Box<dyn DiskCopies + Send>,
    mut disks: impl DiskReader,
    orders: &crossbeam_channel::Receiver<ToBackupThread>,
    reports: &mpsc::UnboundedSender<FromBackupThread>,
) {
    let mut following = Following::new(machine, Instant::now(), Instant::now).with_copies(copies);
    for order in orders {
        match order {
            ToBackupThread::Follow(order, arrived) => {
                let report = following.obey(order, arrived, &mut disks);
                // If the link is gone, so is the process.
                if reports.send(FromBackupThread::Report(report)).is_err() {
                    return;
                }
            }
            ToBackupThread::GoLive(mut life) => {
                let (machine, horizon, clock) = following.into_live();
                drop(disks);
                life.clock = clock;
                let _ = reports.send(FromBackupThread::AtHorizon(Box::new(horizon)));
                return live(machine, *life);
            }
        }
    }
}

/// Follows until this side goes live or ends.
pub(crate) async fn follow_until_over(shell: &mut BackupShell, mut link: BackupLink, detection: Duration) -> Followed {
    let mut tick = tokio::time::interval(detection / 8);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let wakes_at = link.wakes_at();
        let due = async {
            match wakes_at {
                Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(boottime_ns()))).await,
                None => std::future::pending().await,
            }
        };
        let takes_more = link.takes_more();
        let event = tokio::select! {
            Some(event) = shell.events.recv(), if takes_more => BackupEvent::Link(event),
            report = shell.side.backup_thread.reports.recv() => match report {
                Some(FromBackupThread::Report(report)) => BackupEvent::Followed(report),
                Some(FromBackupThread::AtHorizon(_)) => continue, // only after the order to go live, and read elsewhere
                None => BackupEvent::ThreadGone,
            },
            Some(health) = shell.side.probe.next() => BackupEvent::Health(health),
            Some(heartbeat) = shell.side.heard.recv() => BackupEvent::Heartbeat(heartbeat),
            () = due => BackupEvent::Due,
            _ = tick.tick() => BackupEvent::Tick,
        };
        link.step(event, shell);
        if let Some(followed) = link.over() {
            return followed.clone();
        }
    }
}

impl BackupWorld for BackupShell {
    fn order(&mut self, order: FollowOrder) {
        // If the thread is gone, its report channel says so.
        let _ = self
            .side
            .backup_thread
            .orders
            .send(ToBackupThread::Follow(order, Instant::now()));
    }

    fn keep_boot(&mut self, record: Vec<u8>) {
        tracing::debug!("holds the state that a reset starts from");
        // A second one would be the same.
        let _ = self.side.boot.set(record);
    }

    fn silent_health(&mut self) -> Option<Health> {
        self.side.probe.silent()
    }

    fn show(&mut self, core: &Backup) {
        self.side.desk.update(|status| {
            status.role = Role::Backup;
            status.generation = core.generation().0;
            status.why = match core.protection() {
                Protection::Protected => None,
                Protection::Starting => Some(Unprotected::Starting),
                Protection::Deciding => Some(Unprotected::Deciding),
                Protection::NotProtected => Some(Unprotected::NotRunning),
            };
            status.protected = status.why.is_none();
        });
    }
}
