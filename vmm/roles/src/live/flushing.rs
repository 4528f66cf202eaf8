//! When the log of a live machine travels: marks, the outputs they cover, check bytes, the end.

use std::time::Instant;

use ftvm_schema::entry::{EndReason, LogEntry, Mark};

use super::{BATCH, Events, FLUSH_AFTER, Live, LiveError, MarkPolicy, Sink};
use ftvm_hypervisor::Cpu;

impl<C: Cpu, S: Sink, E: Events> Live<C, S, E> {
    pub(super) fn mark(&self) -> Mark {
        let registers = match self.config.marks {
            MarkPolicy::EveryFlush => None,
            MarkPolicy::EveryExits(_) => Some(Box::new(self.machine.cpu().registers())),
        };
        Mark {
            at: self.machine.at(),
            digest: self.machine.digest(),
            outputs: self.machine.outputs(),
            sent_ns: 0,
            registers,
            memory_hash: None,
        }
    }

    /// [`Live::flush`] if somebody waits for it, or has waited long enough.
    pub(super) fn flush_if_due(&mut self, now: Instant) -> Result<(), LiveError> {
        if self.unflushed > 0 || self.machine.at().exit > self.last_mark {
            self.unflushed_since.get_or_insert(now);
        }
        let waited = |since| now.saturating_duration_since(since) >= FLUSH_AFTER;
        let waited = self.unflushed_since.is_some_and(waited);
        if waited || self.disk_finished || self.unflushed >= BATCH || self.machine.has_outputs() {
            self.flush()?;
        }
        Ok(())
    }

    /// A mark if one is due, then the outputs it covers.
    pub(super) fn flush(&mut self) -> Result<(), LiveError> {
        let at = self.machine.at().exit;
        let due = match self.config.marks {
            MarkPolicy::EveryFlush => self.unflushed > 0 || self.machine.has_outputs() || at > self.last_mark,
            // Between exits the registers, which these marks carry, belong to no position.
            MarkPolicy::EveryExits(exits) => at.0 - self.last_mark.0 >= exits && self.machine.at_exit(),
        };
        if due && self.sink.logging() {
            self.collect_checks(1)?;
            let mark = self.mark();
            self.sink.log(LogEntry::Mark(mark))?;
            self.last_mark = at;
        }
        for output in self.machine.drain_outputs() {
            self.sink.output(output)?;
        }
        (self.unflushed, self.unflushed_since, self.disk_finished) = (0, None, false);
        Ok(self.sink.flush()?)
    }

    /// Logs the check bytes of the exits so far if there are at least `least`.
    pub(super) fn collect_checks(&mut self, least: usize) -> Result<(), LiveError> {
        if let Some(trail) = self.machine.trail()
            && trail.len() >= least
            && let Some((from, bytes)) = trail.take()
        {
            self.sink.log(LogEntry::Checks { from, bytes })?;
        }
        Ok(())
    }

    /// Logs the end, and gives away what is left.
    ///
    /// # Errors
    /// If the sink fails.
    pub fn finish(&mut self, reason: &EndReason) -> Result<(), LiveError> {
        self.collect_checks(1)?;
        if self.sink.logging() {
            let mark = self.mark();
            self.sink.log(LogEntry::Mark(mark))?;
            self.sink.log(LogEntry::End {
                at: self.machine.at(),
                reason: reason.clone(),
            })?;
        }
        for output in self.machine.drain_outputs() {
            self.sink.output(output)?;
        }
        Ok(self.sink.flush()?)
    }
}
