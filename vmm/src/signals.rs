//! The signals with which a guest's life is ended cleanly.

use std::io;
use std::time::Duration;

use ftvm_host::queue::EventSender;
use ftvm_roles::host_event::{HostEvent, StopKind};

/// SIGINT, SIGTERM and a time limit become events: a clean end is never taken for a death (PROTOCOL 18).
///
/// # Errors
/// If the process can have no signal handlers or threads.
pub(crate) fn watch_signals(events: &EventSender, limit: Option<Duration>) -> io::Result<()> {
    let events = events.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let end = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = interrupt.recv() => StopKind::Interrupt,
            _ = terminate.recv() => StopKind::Terminate,
            () = end => StopKind::Limit,
        };
        // The guest may have ended meanwhile: nobody is there to be told.
        let _ = events.answer(HostEvent::Stop(kind));
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(watch))?;
    Ok(())
}
