//! The replayed machine beside the log: marks, check bytes, the end, and what a difference is reported as.

use ftvm_schema::entry::{EndReason, ExitSeq, Mark, Position};

use super::difference::{Difference, MarkDifference};
use super::divergence::Divergence;
use super::words::describe_end;
use super::{FromLog, ReplayError, Replayer, Stop};
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::{MachineError, Step};

impl<C: Cpu> Replayer<C> {
    /// Names the first differing exit, if `checks` (read ahead of the noticed divergence) show it earlier.
    pub fn refine(&mut self, from: ExitSeq, checks: &[u8], divergence: &mut Divergence) {
        if let Some(trail) = self.machine.trail()
            && let Err(found) = trail.compare(from, checks)
        {
            let (exit, registers) = *found;
            divergence.at_exit = exit.0;
            divergence.exact = true;
            divergence.registers = registers;
            divergence.recorded = None;
        }
    }

    pub(super) fn compare_mark(&mut self, mark: &Mark) -> Result<(), Stop> {
        self.run_to(mark.at.exit)?;
        let found = (self.machine.at(), self.machine.digest(), self.machine.outputs());
        if found != (mark.at, mark.digest, mark.outputs) {
            let recorded = mark.registers.as_deref().copied();
            return Err(Difference::Mark(Box::new(MarkDifference {
                expected: (mark.at, mark.digest, mark.outputs),
                found,
                recorded,
            }))
            .into());
        }
        self.last_good = mark.at.exit;
        Ok(())
    }

    pub(super) fn compare_checks(&mut self, from: ExitSeq, checks: &[u8]) -> Result<(), Stop> {
        let Some(trail) = self.machine.trail() else {
            return Ok(());
        };
        trail.compare(from, checks).map_err(|found| {
            let (exit, registers) = *found;
            let registers = Box::new(registers);
            Difference::Check { exit, registers }.into()
        })
    }

    pub(super) fn compare_end(&mut self, at: Position, reason: &EndReason) -> Result<(), Stop> {
        if matches!(reason, EndReason::Stopped | EndReason::Limit) {
            return Ok(());
        }
        let mut time = FromLog {
            pending: &mut self.pending,
            inputs: &mut self.inputs,
        };
        let step = self.machine.run_to_exit(&mut time)?;
        self.collect()?;
        match step {
            Step::Ended(found) if found == *reason => Ok(()),
            other => Err(Difference::EndsLater {
                exit: at.exit,
                reason: describe_end(reason),
                found: format!("{other:?}"),
            }
            .into()),
        }
    }

    pub(super) fn diagnose(&mut self, stop: Stop) -> ReplayError {
        let at = self.machine.at();
        let mut divergence = Divergence {
            at_exit: at.exit.0,
            inputs: at.k,
            exact: false,
            last_good_exit: self.last_good.0,
            what: stop.to_string(),
            registers: self.machine.cpu().registers(),
            recorded: None,
        };
        match stop {
            Stop::Differs(Difference::Mark(difference)) => divergence.recorded = difference.recorded,
            Stop::Differs(Difference::Check { exit, registers }) => {
                divergence.at_exit = exit.0;
                divergence.exact = true;
                divergence.registers = *registers;
            }
            Stop::Differs(_) | Stop::Machine(MachineError::History(_) | MachineError::Apply { .. }) => {}
            Stop::Machine(error) => return ReplayError::Machine(error),
            Stop::Disk(error) => return ReplayError::Disk(error),
            Stop::Checkpoint(error) => return ReplayError::Checkpoint(error),
        }
        ReplayError::Diverged(Box::new(divergence))
    }
}
