//! Kicks that arrive at once, or after the CPU has computed for a while.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Kick;

/// No kick is on its way.
const NO_KICK: u64 = u64::MAX;

/// Kicks a scripted CPU, now or after it has computed for a while.
#[derive(Debug)]
pub struct ScriptedKick {
    /// Units until the kick arrives, or [`NO_KICK`].
    due: AtomicU64,
}

impl Default for ScriptedKick {
    fn default() -> Self {
        let due = AtomicU64::new(NO_KICK);
        ScriptedKick { due }
    }
}

impl ScriptedKick {
    /// Sends a kick that arrives when the CPU has computed `units` more; one that is still on its way is forgotten.
    pub fn kick_after(&self, units: u64) {
        self.due.store(units, Ordering::SeqCst);
    }

    /// Units until the kick arrives; `None` when none is on its way.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        let due = self.due.load(Ordering::SeqCst);
        (due != NO_KICK).then_some(due)
    }

    /// Lets `passed` units pass. Whether the kick has arrived; it is answered then, and not on its way any more.
    pub(super) fn arrives(&self, passed: u64) -> bool {
        let due = self.due.load(Ordering::SeqCst);
        let left = due.saturating_sub(passed);
        let next = if due == NO_KICK || left == 0 { NO_KICK } else { left };
        self.due.store(next, Ordering::SeqCst);
        due != NO_KICK && left == 0
    }
}

impl Kick for ScriptedKick {
    fn kick(&self) {
        self.kick_after(0);
    }
}
