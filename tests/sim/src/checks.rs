//! The outside world, and what must be true of it at every moment (PROTOCOL, "What the simulator must be able to see").

use std::collections::{BTreeMap, BTreeSet};

use ftvm_machine::output::{Emission, Output};
use ftvm_roles::following::Takeover;
use ftvm_schema::entry::Position;

use super::network::ProcId;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Nanoseconds of simulated time.
    pub at: u64,
    /// Which invariant.
    pub rule: &'static str,
    pub what: String,
}

pub const SAME_BYTES: &str = "(i) every copy of an output is the same";
pub const IN_ORDER: &str = "(ii) outputs come in order, without a gap";
pub const MARKED: &str = "(rule 8) private disks are marked as the newest only by their generation's winner";
pub const TAKEN_IN: &str = "(rule 9) a backup takes nothing in while it has too much to execute";
pub const DISK: &str = "(iii) the disk holds the writes in sequence order";
pub const ONE_LIVES: &str = "(iv) one winner per generation, and no release without lease or generation";
pub const INPUTS: &str = "(v) inputs before a released output are in the survivor's history";
pub const FLOW: &str = "(vi) outputs flow while storage and one eligible side are up";
pub const FINAL: &str = "(rule 18) a clean end is final and says everything";
pub const LEASE_GUARD: &str = "(rule 14) the fence ends no process whose lease stands";
pub const NO_DIVERGENCE: &str = "(rule 16) a backup's replay is the recorded history";
pub const DISMISSED: &str = "(rule 27) a dismissed backup never goes live";
pub const WITHHELD: &str = "(rule 30) a failure that was withheld is tried again by the new host";
pub const NO_FAILURE: &str = "a process fails";

/// What has left, by output number.
#[derive(Debug)]
struct Left {
    at: Position,
    emission: Emission,
}

/// Who is live under which generation.
#[derive(Clone, Copy, Debug)]
struct Live {
    process: ProcId,
    generation: u64,
}

/// The outside.
#[derive(Debug, Default)]
pub struct Checks {
    left: BTreeMap<u64, Left>,
    /// Every output below has left.
    next: u64,
    live: Vec<Live>,
    winners: BTreeMap<u64, u128>,
    ended: Option<ProcId>,
    /// Backups that have said their last word after a dismissal.
    pub dismissed: BTreeSet<ProcId>,
    /// Disk requests that have failed in a process, and the guest has not been told.
    pub withheld: BTreeSet<(ProcId, u64)>,
    /// Those that the next host must try again, as the guest is handed over with them.
    pub to_be_tried: BTreeSet<u64>,
    pub violation: Option<Violation>,
    /// Console bytes that left for the first time, and again.
    pub fresh: u64,
    pub repeats: u64,
}

impl Checks {
    /// Something is wrong; the first such thing counts.
    pub fn fail(&mut self, at: u64, rule: &'static str, what: String) {
        self.violation.get_or_insert(Violation { at, rule, what });
    }

    /// An output reaches the outside (or, for a disk request, its plan).
    pub fn leaves(&mut self, now: u64, by: ProcId, output: &Output) {
        let seq = output.seq.0;
        if let Some(before) = self.left.get(&seq) {
            self.repeats += 1;
            if before.emission != output.emission {
                let what = format!(
                    "output {seq} of process {by} is {:?} at {:?}, it left before as {:?} at {:?}",
                    output.emission, output.at, before.emission, before.at
                );
                self.fail(now, SAME_BYTES, what);
            }
            return;
        }
        if seq != self.next {
            let what = format!(
                "process {by} emits output {seq} (exit {}.{}) before output {}",
                output.at.exit.0, output.at.k, self.next
            );
            self.fail(now, IN_ORDER, what);
        }
        self.fresh += 1;
        self.next = self.next.max(seq + 1);
        let left = Left {
            at: output.at,
            emission: output.emission.clone(),
        };
        self.left.insert(seq, left);
    }

    /// A side begins to release something under `generation`; `lease` says whether it may by the true lease.
    pub fn release_begins(&mut self, now: u64, by: ProcId, generation: u64, lease: bool) {
        if !lease {
            let what = format!("process {by} releases under generation {generation} after its lease has ended");
            self.fail(now, ONE_LIVES, what);
        }
        if let Some(newer) = self
            .live
            .iter()
            .find(|live| live.process != by && live.generation > generation)
        {
            let what = format!(
                "process {by} releases under generation {generation}, process {} is live under {}",
                newer.process, newer.generation
            );
            self.fail(now, ONE_LIVES, what);
        }
        if let Some(ended) = self.ended
            && ended != by
        {
            let what = format!("process {by} releases after the guest's clean end in process {ended}");
            self.fail(now, FINAL, what);
        }
    }

    /// The storage has said that a side won.
    pub fn won(&mut self, now: u64, generation: u64, owner: u128) {
        let winner = *self.winners.entry(generation).or_insert(owner);
        if winner != owner {
            let what = format!("generation {generation} has two winners, {winner:x} and {owner:x}");
            self.fail(now, ONE_LIVES, what);
        }
    }

    /// Whether `owner` has won that generation.
    #[must_use]
    pub fn has_won(&self, generation: u64, owner: u128) -> bool {
        self.winners.get(&generation) == Some(&owner)
    }

    /// A side becomes live at `horizon` with `made` outputs so far, and what `new` says is to be done first.
    pub fn goes_live(&mut self, now: u64, by: ProcId, generation: u64, horizon: Position, made: u64, new: &Takeover) {
        if self.dismissed.contains(&by) {
            let what = format!("process {by} goes live under generation {generation} after its dismissal");
            self.fail(now, DISMISSED, what);
        }
        for id in std::mem::take(&mut self.to_be_tried) {
            if !new.requests.iter().any(|request| request.id == id) {
                let what =
                    format!("process {by} goes live and does not try request {id} again, which failed on its old host");
                self.fail(now, WITHHELD, what);
            }
        }
        let outputs = &new.outputs;
        if self.next > made {
            let what = format!(
                "process {by} goes live at exit {}.{} with {made} outputs, but {} have left",
                horizon.exit.0, horizon.k, self.next
            );
            self.fail(now, INPUTS, what);
        }
        for output in outputs {
            if let Some(before) = self.left.get(&output.seq.0)
                && before.emission != output.emission
            {
                let what = format!(
                    "process {by} goes live with output {} as {:?} at {:?}, it left as {:?} at {:?}",
                    output.seq.0, output.emission, output.at, before.emission, before.at
                );
                self.fail(now, INPUTS, what);
            }
        }
        if let Some(ended) = self.ended {
            let what = format!("process {by} goes live after the guest's clean end in process {ended}");
            self.fail(now, FINAL, what);
        }
        self.live.push(Live {
            process: by,
            generation,
        });
    }

    /// A live side has won a further generation.
    pub fn moves_on(&mut self, by: ProcId, generation: u64) {
        for live in self.live.iter_mut().filter(|live| live.process == by) {
            live.generation = generation;
        }
    }

    /// Whether somebody else is live under a higher generation.
    #[must_use]
    pub fn superseded(&self, by: ProcId, generation: u64) -> bool {
        self.live
            .iter()
            .any(|live| live.process != by && live.generation > generation)
    }

    /// The guest has ended cleanly in a live process, having made so many outputs.
    pub fn ends(&mut self, now: u64, by: ProcId, made: u64) {
        if self.next < made {
            let what = format!(
                "process {by} ends cleanly after {made} outputs, of which only {} have left",
                self.next
            );
            self.fail(now, FINAL, what);
        }
        self.ended.get_or_insert(by);
    }

    /// Whether the guest has ended cleanly.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}
