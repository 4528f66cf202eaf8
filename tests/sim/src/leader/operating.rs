//! What operators ask of a primary, and disks that one host loses.

use ftvm_roles::host_event::HostEvent;
use ftvm_roles::operation::{Answer, Operation, Path};
use ftvm_roles::primary::{Action, Failure};
use ftvm_schema::entry::DiskStatus;
use ftvm_schema::request::{DiskOp, DiskRequest};

use super::super::common::Common;
use super::super::env::{Env, Point};
use super::super::plants::Plant;
use super::Leader;

impl Leader {
    /// An operator asks for something.
    pub fn operate(&mut self, env: &mut Env, common: &Common, operation: Operation, actions: &mut Vec<Action>) {
        env.note(common.id, || format!("is asked for {}", operation.name()));
        self.tickets += 1;
        self.core
            .operate(env.local(common.host), self.tickets, operation, actions);
        env.reach(Point::Operate, common.id);
    }

    /// He is answered.
    pub(super) fn answered(&mut self, env: &mut Env, common: &Common, answer: &Answer) {
        env.count(if answer.is_ok() {
            "operations"
        } else {
            "operations-refused"
        });
        env.note(common.id, || format!("answers {answer:?}"));
    }

    /// A request ends with an error, as this host does not reach the disk.
    pub fn disk_lost(&mut self, env: &mut Env, common: &mut Common, request: &DiskRequest) {
        if matches!(request.op, DiskOp::Write { .. }) {
            self.write_over(env, common);
        }
        let failure = HostEvent::DiskDone {
            disk: request.disk,
            id: request.id,
            status: DiskStatus::IoError,
            data: Vec::new(),
        };
        let mut actions = Vec::new();
        let now = env.local(common.host);
        match self.core.path_lost(now, Path::Disk(0), "lost", &mut actions) {
            Failure::Told => self.tell_failure(env, common, failure),
            Failure::Withheld => {
                env.count("withheld");
                env.checks.withheld.insert((common.id, request.id));
                if env.plant == Some(Plant::FailureTold) {
                    self.tell(env, common, failure);
                } else {
                    self.withheld.push(failure);
                }
            }
        }
        self.finish_turn(env, common, actions);
    }

    /// The guest hears that a request has failed: whether it is on the disk is open.
    pub(super) fn tell_failure(&mut self, env: &mut Env, common: &Common, failure: HostEvent) {
        if let HostEvent::DiskDone { id, .. } = &failure {
            env.checks.withheld.remove(&(common.id, *id));
            env.checks.to_be_tried.remove(id);
            env.image.forget(*id);
        }
        self.tell(env, common, failure);
    }
}
