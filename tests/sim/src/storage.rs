//! The shared storage: the register of the test-and-set, and the disk.

use std::collections::{BTreeMap, BTreeSet};

use ftvm_roles::copies::DiskError;
use ftvm_roles::replay::DiskReader;
use ftvm_schema::entry::DiskStatus;
use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::arbiter::ClaimOutcome;

use super::guest::{SECTOR, SECTORS};
use super::plants::Plant;

/// The newest generation, its owner, and whether the guest has ended under it. The semantics are those of
/// `shared_disk::arbiter`.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    pub generation: u64,
    pub owner: u128,
    pub ended: bool,
}

impl Register {
    /// A guest that was just started.
    #[must_use]
    pub fn started(owner: u128) -> Self {
        Register {
            generation: 1,
            owner,
            ended: false,
        }
    }

    /// Compare and swap.
    pub fn claim(&mut self, generation: u64, owner: u128, me: u128, plant: Option<Plant>) -> ClaimOutcome {
        let again = (self.generation, self.owner, self.ended) == (generation + 1, me, false);
        let matches = (self.generation, self.owner, self.ended) == (generation, owner, false);
        if plant == Some(Plant::NextFreeNumber) && !again {
            *self = Register {
                generation: self.generation + 1,
                owner: me,
                ended: false,
            };
            return ClaimOutcome::Won {
                generation: self.generation,
            };
        }
        if matches {
            (self.generation, self.owner) = (generation + 1, me);
        }
        if matches || again {
            ClaimOutcome::Won {
                generation: generation + 1,
            }
        } else {
            ClaimOutcome::Lost {
                generation: self.generation,
                owner: self.owner,
            }
        }
    }

    /// A clean end is itself a swap.
    pub fn end(&mut self, me: u128) {
        if self.owner == me && !self.ended {
            self.generation += 1;
            self.ended = true;
        }
    }
}

/// The disk both hosts reach, and what ought to be on it.
#[derive(Debug)]
pub struct SharedImage {
    sectors: Vec<[u8; SECTOR]>,
    /// The last write that landed on each sector.
    writers: Vec<Option<u64>>,
    /// The guest's requests, as the whole run knows them.
    known: BTreeMap<u64, DiskRequest>,
    /// Writes that have taken effect.
    landed: BTreeSet<u64>,
}

/// Sizes of the simulated image are small.
fn count(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}

impl Default for SharedImage {
    fn default() -> Self {
        SharedImage {
            sectors: vec![[0; SECTOR]; count(SECTORS)],
            writers: vec![None; count(SECTORS)],
            known: BTreeMap::new(),
            landed: BTreeSet::new(),
        }
    }
}

impl SharedImage {
    /// A live side is about to start a request. Every copy of a write or flush must be the same. A read is no output: it
    /// starts before the backup knows of it, and another life may need that number for something else.
    ///
    /// # Errors
    /// What differs.
    pub fn started(&mut self, request: &DiskRequest) -> Result<(), String> {
        match self.known.get(&request.id) {
            Some(known) if known == request => Ok(()),
            Some(known) if !matches!(known.op, DiskOp::Read { .. }) => Err(format!(
                "disk request {} is issued again with other contents: {:?} after {:?}",
                request.id, request.op, known.op
            )),
            _ => {
                self.known.insert(request.id, request.clone());
                Ok(())
            }
        }
    }

    /// The guest has been told that a request failed: nothing is to be found of it, unless another host's copy of it had
    /// taken effect before.
    pub fn forget(&mut self, id: u64) {
        if !self.landed.contains(&id) {
            self.known.remove(&id);
        }
    }

    /// It takes effect.
    ///
    /// # Errors
    /// A newer write is overwritten, or a read finds what it must not.
    pub fn land(&mut self, request: &DiskRequest) -> Result<(DiskStatus, Vec<u8>), String> {
        let id = request.id;
        match &request.op {
            DiskOp::Flush => {}
            DiskOp::Write { offset, data } => {
                self.landed.insert(id);
                for (index, bytes) in (count(*offset) / SECTOR..).zip(data.chunks_exact(SECTOR)) {
                    if let Some(newer) = self.writers[index].filter(|writer| *writer > id) {
                        return Err(format!(
                            "write {id} lands on sector {index} after write {newer}, which overlaps it"
                        ));
                    }
                    self.writers[index] = Some(id);
                    self.sectors[index].copy_from_slice(bytes);
                }
            }
            DiskOp::Read { offset, len } => return Ok((DiskStatus::Ok, self.look(id, *offset, *len)?)),
        }
        Ok((DiskStatus::Ok, Vec::new()))
    }

    /// What read `id` finds.
    fn look(&self, id: u64, offset: u64, len: u32) -> Result<Vec<u8>, String> {
        let first = count(offset) / SECTOR;
        let sectors = first..first + count(u64::from(len)) / SECTOR;
        for index in sectors.clone() {
            let expected = self.last_write_before(id, index);
            if self.writers[index] != expected {
                return Err(format!(
                    "read {id} finds write {:?} on sector {index}, expected {expected:?}",
                    self.writers[index]
                ));
            }
        }
        Ok(self.sectors[sectors].concat())
    }

    fn last_write_before(&self, id: u64, sector: usize) -> Option<u64> {
        let covers = |request: &DiskRequest| match &request.op {
            DiskOp::Write { offset, data } => {
                let first = count(*offset) / SECTOR;
                (first..first + data.len() / SECTOR).contains(&sector)
            }
            _ => false,
        };
        let before = self.known.range(..id).rev();
        before.filter(|(_, known)| covers(known)).map(|(id, _)| *id).next()
    }
}

/// As a backup sees it that reads for itself.
impl DiskReader for &SharedImage {
    fn read(&mut self, request: &DiskRequest) -> Result<Vec<u8>, DiskError> {
        match request.op {
            DiskOp::Read { offset, len } => Ok(self.look(request.id, offset, len)?),
            _ => Err(format!("request {} is no read", request.id).into()),
        }
    }
}
