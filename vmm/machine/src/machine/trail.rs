//! What the machine remembers of its latest exits, so that a divergence can be named to the exit.

use std::collections::VecDeque;

use ftvm_schema::entry::{ExitSeq, RegisterFile};

/// Most exits remembered: one `Checks` entry's worth. At 153 bytes each well under 1 MiB.
pub const TRAIL_EXITS: usize = 4096;

/// One exit as `record --verify=exit` keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailStep {
    /// Low byte of the running digest after the exit was handled.
    pub check: u8,
    pub registers: RegisterFile,
}

/// The latest exits, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    first: u64,
    steps: VecDeque<TrailStep>,
}

impl Trail {
    /// Adds exit `at`; the oldest one falls out when [`TRAIL_EXITS`] are kept.
    pub fn push(&mut self, at: ExitSeq, step: TrailStep) {
        if self.steps.is_empty() {
            self.first = at.0;
        }
        if self.steps.len() == TRAIL_EXITS {
            self.steps.pop_front();
            self.first += 1;
        }
        self.steps.push_back(step);
    }

    /// The exits kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes all check bytes out, with the number of the first.
    pub fn take(&mut self) -> Option<(ExitSeq, Vec<u8>)> {
        if self.steps.is_empty() {
            return None;
        }
        let bytes = self.steps.drain(..).map(|step| step.check).collect();
        Some((ExitSeq(self.first), bytes))
    }

    /// Compares recorded check bytes with what is kept and forgets what was equal.
    ///
    /// # Errors
    /// The first exit that differs, with its registers here.
    pub fn compare(&mut self, from: ExitSeq, checks: &[u8]) -> Result<(), Box<(ExitSeq, RegisterFile)>> {
        for (number, check) in (from.0..).zip(checks) {
            while !self.steps.is_empty() && self.first < number {
                self.steps.pop_front();
                self.first += 1;
            }
            if self.first != number || self.steps.is_empty() {
                continue;
            }
            let step = self.steps.pop_front().expect("not empty");
            self.first += 1;
            if step.check != *check {
                return Err(Box::new((ExitSeq(number), step.registers)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(check: u8) -> TrailStep {
        TrailStep {
            check,
            registers: [u64::from(check); 18],
        }
    }

    #[test]
    fn names_the_first_difference() {
        let mut trail = Trail::default();
        for n in 1..=10u8 {
            trail.push(ExitSeq(u64::from(n)), step(n));
        }
        assert_eq!(trail.compare(ExitSeq(1), &[1, 2, 3]), Ok(()));
        assert_eq!(trail.len(), 7);
        assert_eq!(
            trail.compare(ExitSeq(4), &[4, 9, 9]),
            Err(Box::new((ExitSeq(5), [5; 18])))
        );
    }

    #[test]
    fn is_bounded() {
        let mut trail = Trail::default();
        for n in 1..=(TRAIL_EXITS as u64 + 5) {
            trail.push(ExitSeq(n), step(0));
        }
        assert_eq!(trail.len(), TRAIL_EXITS);
        assert_eq!(
            trail.take().map(|(from, bytes)| (from, bytes.len())),
            Some((ExitSeq(6), TRAIL_EXITS))
        );
        assert!(trail.is_empty());
    }
}
