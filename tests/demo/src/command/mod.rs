//! `ftvm demo`: a guest survives the death of its host, on one machine, without root.
//!
//! Primary and backup are two processes of this very binary; their network is a hub in this process, and the client's
//! TCP connection runs through it. Each kill is a fresh pair in a fresh directory ([`act`], [`cast`]); what happened is read from
//! the pair's own `--events` and from the hub's clock ([`figures`], pure) and drawn ([`picture`], pure). Nothing here
//! decides anything about the failover: it only watches.

mod act;
mod args;
mod cast;
mod children;
mod error;
mod eventfile;
mod figures;
mod folder;
mod nested;
mod picture;
mod screen;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use act::ActError;
pub use args::DemoArgs;
pub use error::{DemoError, RunError};
use figures::{RunFigures, Summary, Tried};
use folder::Folder;
use screen::Screen;

/// Pairs tried for one kill: on a busy machine a side may be taken for dead before it is.
const ATTEMPTS: u32 = 3;

/// The kill comes within this many milliseconds after everything is in its steady state.
const KILL_WITHIN_MS: u64 = 1500;

/// `ftvm demo`
///
/// # Errors
/// [`DemoError`], also if the connection did not survive or an acknowledged write is lost.
pub fn run(args: &DemoArgs) -> Result<(), DemoError> {
    if args.lease > args.detection {
        return Err(DemoError::LeaseOverDetection {
            lease: args.lease,
            detection: args.detection,
        });
    }
    nested::check_kvm(args)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => ftvm_host::entropy::random_u64()? >> 16,
    };
    let interrupted = watch_interrupt()?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut screen = Screen::new(args.json);
    let mut tried = Tried {
        seed,
        runs: Vec::new(),
        parted: 0,
        error: None,
    };
    let mut broken = None;
    for number in 1..=args.kills {
        let wait_ms = random.random_range(0..KILL_WITHIN_MS);
        match perform(args, number, wait_ms, &mut tried.parted, &mut screen, &interrupted)? {
            Ok(figures) => tried.runs.push(figures),
            Err(Broken { figures, error }) => {
                tried.runs.extend(figures);
                tried.error = Some(error.to_string());
                broken = Some(error);
                break;
            }
        }
    }
    let summary = Summary::of(&tried, args.detection, args.lease);
    screen.summary(&summary)?;
    match broken {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// A run that went wrong.
#[derive(Debug)]
struct Broken {
    /// If it came to figures, these.
    figures: Option<RunFigures>,
    error: RunError,
}

/// One kill; a pair that comes apart before it is replaced and counted in `parted`. The outer error is for what is no
/// run at all: Ctrl-C, no folder.
fn perform(
    args: &DemoArgs,
    number: u32,
    wait_ms: u64,
    parted: &mut u32,
    screen: &mut Screen,
    interrupted: &AtomicBool,
) -> Result<Result<RunFigures, Broken>, DemoError> {
    let mut attempt = 1;
    loop {
        let folder = Folder::create(args.keep.as_deref(), number, attempt)?;
        let kept = folder.path().to_owned();
        match act::perform(&folder, args, number, wait_ms, screen, interrupted) {
            Ok(figures) if figures.is_good() => {
                folder.remove_unless(false);
                return Ok(Ok(figures));
            }
            Ok(figures) => {
                folder.remove_unless(true);
                return Ok(Err(Broken {
                    figures: Some(figures),
                    error: RunError::BrokenPromise { number, kept },
                }));
            }
            Err(ActError::Interrupted) => {
                folder.remove_unless(false);
                return Err(DemoError::Interrupted);
            }
            Err(ActError::Parted { what, .. }) if attempt < ATTEMPTS => {
                folder.remove_unless(false);
                screen.stage(&format!(
                    "the pair came apart before the kill ({what}); again with a fresh one"
                ));
                *parted += 1;
                attempt += 1;
            }
            Err(source) => {
                folder.remove_unless(true);
                return Ok(Err(Broken {
                    figures: None,
                    error: RunError::NotPerformed { number, kept, source },
                }));
            }
        }
    }
}

/// Set by Ctrl-C and the like; whoever waits looks at it, so that the guards of the processes and folders are dropped.
fn watch_interrupt() -> Result<Arc<AtomicBool>, DemoError> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupted = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DemoError::Signals)?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        let open = |kind| signal(kind).map_err(DemoError::Signals);
        (
            open(SignalKind::interrupt())?,
            open(SignalKind::terminate())?,
            open(SignalKind::hangup())?,
        )
    };
    let watch = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        set.store(true, Ordering::Release);
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(DemoError::Signals)?;
    Ok(interrupted)
}
