//! What this host notices when another has taken the reservation of a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Set for good once a device has refused a write of this host.
#[derive(Clone, Debug, Default)]
pub struct Superseded(Arc<(AtomicBool, Notify)>);

impl Superseded {
    /// From any thread.
    pub fn notice(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_one();
    }

    /// Whether it has been noticed.
    #[must_use]
    pub fn is_noticed(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits for it; for one task.
    pub async fn noticed(&self) {
        while !self.is_noticed() {
            self.0.1.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_notice_is_never_missed() {
        let superseded = Superseded::default();
        let waiting = tokio::time::timeout(Duration::from_millis(20), superseded.noticed()).await;
        assert!(waiting.is_err() && !superseded.is_noticed());
        let elsewhere = superseded.clone();
        std::thread::spawn(move || elsewhere.notice()).join().unwrap();
        superseded.noticed().await;
        superseded.noticed().await;
    }
}
