//! The disk threads of a simulated primary, and the timer that ends it with its lease.

use std::convert::Infallible;

use ftvm_roles::disks::DiskShell;
use ftvm_roles::disks::{LateEffect, UnderWay};
use ftvm_schema::request::{DiskOp, DiskRequest};

use super::super::checks::SAME_BYTES;
use super::super::common::Common;
use super::super::env::{Env, Point, US, What};
use super::side::Side;

/// Their hands: what they are told becomes events once the link's step is over ([`Side::begin_io`]).
#[derive(Debug, Default)]
pub struct SimDisks {
    writes: usize,
    pub(super) armed: Option<u64>,
    started: Vec<DiskRequest>,
    under_way: Vec<(u64, UnderWay)>,
}

impl SimDisks {
    /// A request's I/O is over.
    pub(super) fn over(&mut self, request: &DiskRequest) {
        self.under_way.retain(|(id, _)| *id != request.id);
        if matches!(request.op, DiskOp::Write { .. }) {
            self.write_is_over();
        }
    }

    fn write_is_over(&mut self) {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 {
            self.armed = None;
        }
    }

    /// A planted bug starts a request that has not had its turn.
    pub(super) fn start_unordered(&mut self, request: DiskRequest) {
        self.writes += 1;
        self.started.push(request);
    }
}

impl DiskShell for SimDisks {
    type Error = Infallible;

    fn write_begins(&mut self) {
        self.writes += 1;
    }

    fn writes(&self) -> usize {
        self.writes
    }

    fn write_given_up(&mut self) -> Result<(), Infallible> {
        self.write_is_over();
        Ok(())
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), Infallible> {
        if self.writes > 0 {
            self.armed = Some(deadline_ns);
        }
        Ok(())
    }

    fn disarm(&mut self) -> Result<(), Infallible> {
        self.armed = None;
        Ok(())
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), Infallible> {
        self.started.push(request);
        Ok(())
    }

    fn under_way(&self) -> Vec<UnderWay> {
        self.under_way.iter().map(|(_, under_way)| *under_way).collect()
    }
}

impl Side {
    /// What the hands have been told becomes events.
    pub(super) fn begin_io(&mut self, env: &mut Env, common: &Common, hands: &mut SimDisks) {
        for request in std::mem::take(&mut hands.started) {
            if let Err(what) = env.image.started(&request) {
                env.checks.fail(env.now, SAME_BYTES, what);
            }
            let is_write = matches!(request.op, DiskOp::Write { .. });
            if is_write {
                let lease = self.lease_stands(env, common);
                env.checks
                    .release_begins(env.now, common.id, common.generation.0, lease);
            }
            env.reach(Point::DiskStart, common.id);
            let under_way = UnderWay {
                disk: request.disk,
                effect: if is_write {
                    LateEffect::Lands
                } else {
                    LateEffect::Nothing
                },
                since_ns: env.local(common.host),
            };
            hands.under_way.push((request.id, under_way));
            let delay = env.rng.delay(US, env.terms.disk.0);
            env.after(delay, common.id, What::Submit(request));
        }
        if hands.armed != self.guard_set {
            self.guard_set = hands.armed;
            let until = hands.armed.map(|deadline| env.true_time(common.host, deadline));
            if let (Some(deadline), Some(at)) = (hands.armed, until) {
                env.at(at, common.id, What::LeaseGuard(deadline));
            }
            for ((process, _), write) in &mut env.kernel {
                if *process == common.id {
                    write.until = until;
                }
            }
        }
    }
}
