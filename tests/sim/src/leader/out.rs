//! The way out: releases whose system calls take their time, disk requests, the fence.

use ftvm_machine::output::{Emission, Output};
use ftvm_roles::disks::DiskShell;
use ftvm_roles::event::{EXIT_HANDED_OVER, EXIT_LOST, Protection};
use ftvm_roles::host_event::HostEvent;
use ftvm_schema::request::{DiskOp, DiskRequest};

use super::super::checks::{FENCE, SAME_BYTES};
use super::super::common::Common;
use super::super::env::{Env, Point, US, What};
use super::super::plants::Plant;
use super::Leader;

impl Leader {
    pub(super) fn lease_stands(&self, env: &Env, common: &Common) -> bool {
        let now = env.local(common.host);
        !self.granted || self.echo.is_some_and(|echo| now < echo + env.terms.lease)
    }

    pub(super) fn next_release(&mut self, env: &mut Env, common: &Common) -> Option<Output> {
        let output = self.core.next_release(env.local(common.host))?;
        let lease = self.lease_stands(env, common);
        let generation = self.core.generation().0;
        env.checks.release_begins(env.now, common.id, generation, lease);
        env.reach(Point::Check, common.id);
        Some(output)
    }

    /// Releases what may leave until a system call takes its time; then what the end of a turn does besides.
    pub(super) fn go_on(&mut self, env: &mut Env, common: &mut Common) {
        if self.call.is_some() {
            return;
        }
        while let Some(output) = self.resume.pop_front() {
            if matches!(output.emission, Emission::Disk(_)) {
                env.checks.leaves(env.now, common.id, &output);
            } else {
                return self.call(env, common, output);
            }
        }
        let writes = self.core.may_write(env.local(common.host));
        let _ = self.disks.extend_fence(writes);
        self.start_disks(env, common);
        while self.over.is_none()
            && let Some(output) = self.next_release(env, common)
        {
            if env.plant == Some(Plant::ReleasedAtSubmission) {
                self.submit(env, common, output);
            } else if let Emission::Disk(_) = &output.emission {
                self.land(env, common, &output);
            } else {
                return self.call(env, common, output);
            }
        }
        self.end_of_turn(env, common);
    }

    /// Bug 8: the output is on its way, and the log may say that it has left.
    pub(super) fn submit(&mut self, env: &mut Env, common: &Common, output: Output) {
        self.core.released(output.seq);
        let time = env.rng.between(env.terms.call.0, env.terms.call.1);
        self.late_until = self.late_until.max(env.now + time);
        self.late.push_back(output);
        env.at(self.late_until, common.id, What::CallOver);
    }

    pub(super) fn call(&mut self, env: &mut Env, common: &Common, output: Output) {
        self.call = Some(output);
        let time = env.rng.delay(env.terms.call.0, env.terms.call.1);
        env.after(time, common.id, What::CallOver);
    }

    /// The system call returns.
    pub fn call_over(&mut self, env: &mut Env, common: &mut Common) {
        if let Some(output) = self.late.pop_front() {
            self.land(env, common, &output);
        } else if let Some(output) = self.call.take() {
            self.land(env, common, &output);
            self.go_on(env, common);
        }
    }

    pub(super) fn land(&mut self, env: &mut Env, common: &Common, output: &Output) {
        if let Emission::Disk(request) = &output.emission {
            let released = self.disks.release(request);
            self.expect(env, common, released.map_err(|e| e.to_string()));
        }
        env.checks.leaves(env.now, common.id, output);
        self.core.released(output.seq);
        env.reach(Point::Landed, common.id);
    }

    pub(super) fn end_of_turn(&mut self, env: &mut Env, common: &mut Common) {
        while let Some(end) = self.done.front().copied()
            && (self.core.knows(&end) || env.plant == Some(Plant::WriteBeforeRead) && self.core.covered(end.at))
        {
            self.done.pop_front();
            let acked = self.disks.acked(end.disk, end.id);
            self.expect(env, common, acked.map_err(|e| e.to_string()));
        }
        if self.disks.has_ready() {
            let local = env.local(common.host);
            let core = &self.core;
            let _ = self.disks.start_ready(|| core.may_write(local));
            self.start_disks(env, common);
        }
        if self.over.is_none() {
            let mut actions = Vec::new();
            let writes = self.disks.writes();
            self.core.settled(env.local(common.host), writes, &mut actions);
            self.act(env, common, actions);
        }
        if let Some((code, why)) = &self.over {
            common.end(env, *code, why);
            if !matches!(*code, EXIT_LOST | EXIT_HANDED_OVER) {
                env.checks.ends(env.now, common.id, self.outputs_made);
            }
        }
        common.wake(env, 0);
    }

    /// What the disk shell has been told becomes events.
    pub(super) fn start_disks(&mut self, env: &mut Env, common: &Common) {
        let shell = self.disks.shell();
        for request in std::mem::take(&mut shell.started) {
            let started = env.image.started(&request);
            if let Err(what) = started {
                env.checks.fail(env.now, SAME_BYTES, what);
            }
            if matches!(request.op, DiskOp::Write { .. }) {
                let lease = self.lease_stands(env, common);
                let generation = self.core.generation().0;
                env.checks.release_begins(env.now, common.id, generation, lease);
            }
            env.reach(Point::DiskStart, common.id);
            let delay = env.rng.delay(US, env.terms.disk.0);
            env.after(delay, common.id, What::Submit(request));
        }
        let armed = self.disks.shell().armed;
        if armed != self.fence_set {
            self.fence_set = armed;
            if let Some(deadline) = armed {
                let at = env.true_time(common.host, deadline);
                env.at(at, common.id, What::Fence(deadline));
            }
            let until = armed.map(|deadline| env.true_time(common.host, deadline));
            for ((process, _), write) in &mut env.kernel {
                if *process == common.id {
                    write.until = until;
                }
            }
        }
    }

    /// When a write that a kernel takes now is fenced.
    #[must_use]
    pub fn fenced_at(&mut self, env: &Env, common: &Common) -> Option<u64> {
        let armed = self.disks.shell().armed?;
        Some(env.true_time(common.host, armed))
    }

    /// A disk thread has finished a request.
    pub fn disk_done(&mut self, env: &mut Env, common: &Common, request: &DiskRequest, data: Vec<u8>) {
        if matches!(request.op, DiskOp::Write { .. }) {
            self.write_over(env, common);
        }
        let event = HostEvent::DiskDone {
            disk: request.disk,
            id: request.id,
            status: ftvm_schema::entry::DiskStatus::Ok,
            data,
        };
        self.tell(env, common, event);
    }

    pub(super) fn write_over(&mut self, env: &mut Env, common: &Common) {
        let _ = self.disks.shell().write_given_up();
        self.start_disks(env, common);
    }

    /// The lease's end has come with a write in flight.
    pub fn fence_strikes(&mut self, env: &mut Env, common: &Common, deadline: u64) -> bool {
        let strikes = self.disks.shell().armed == Some(deadline) && env.local(common.host) >= deadline;
        let deciding = self.core.protection() == Protection::Deciding;
        if strikes && !common.paused && !deciding && self.lease_stands(env, common) && self.granted {
            let what = format!(
                "process {} is ended by its fence although its lease was renewed",
                common.id
            );
            env.checks.fail(env.now, FENCE, what);
        }
        strikes
    }
}
