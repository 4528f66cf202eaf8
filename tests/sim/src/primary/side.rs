//! What a simulated primary has beside its link, and what the checks know of it: the truth about its lease, above all.

use std::collections::{BTreeSet, VecDeque};

use ftvm_machine::output::Output;
use ftvm_roles::disks::Known;
use ftvm_roles::event::Protection;
use ftvm_roles::link::guest::FromGuest;
use ftvm_roles::primary::Primary;
use ftvm_schema::entry::{LogEntry, Position};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::Message;

use super::super::checks::NO_FAILURE;
use super::super::common::Common;
use super::super::env::{Env, Point};
use super::super::plants::Plant;
use super::pages::Sending;
use super::vcpu::Vcpu;
use super::world::SimError;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Side {
    pub vcpu: Vcpu,
    pub sending: Option<Sending>,
    /// The output whose system call is under way.
    pub call: Option<Output>,
    /// Outputs that a planted bug has counted as released and that are still on their way.
    pub late: VecDeque<Output>,
    pub late_until: u64,
    /// Requests that a planted bug starts out of turn.
    pub unordered: Vec<DiskRequest>,
    pub disks_reserved: bool,
    pub may_join: bool,
    /// Up to where the true lease reaches, whether there is one to keep, and whether its backup has acked anything.
    pub echo: Option<u64>,
    pub granted: bool,
    pub acked: bool,
    pub newest_sent: u64,
    pub outputs_made: u64,
    pub guard_set: Option<u64>,
    pub tickets: u64,
    /// A request that has failed and that the guest has not been told of yet; those that a planted bug has told of.
    pub failing: Option<u64>,
    pub told_early: BTreeSet<u64>,
    pub handed_over: bool,
}

impl Side {
    pub fn new(vcpu: Vcpu, outputs_made: u64) -> Self {
        Side {
            vcpu,
            sending: None,
            call: None,
            late: VecDeque::new(),
            late_until: 0,
            unordered: Vec::new(),
            disks_reserved: false,
            may_join: false,
            echo: None,
            granted: false,
            acked: false,
            newest_sent: 0,
            outputs_made,
            guard_set: None,
            tickets: 0,
            failing: None,
            told_early: BTreeSet::new(),
            handed_over: false,
        }
    }

    pub fn expect(&mut self, env: &mut Env, common: &Common, result: Result<(), SimError>) {
        if let Err(error) = result {
            let what = format!("process {}: {error}", common.id);
            env.checks.fail(env.now, NO_FAILURE, what);
        }
    }

    pub fn lease_stands(&self, env: &Env, common: &Common) -> bool {
        let now = env.local(common.host);
        !self.granted || self.echo.is_some_and(|echo| now < echo + env.terms.lease)
    }

    /// A backup that holds the guest's end never goes live: there is no lease to keep any more.
    pub fn see_end(&mut self, core: &Primary) {
        if core.guest_end().is_some() && core.protection() == Protection::NotProtected {
            self.granted = false;
        }
    }

    /// An output reaches the outside.
    pub fn lands(&mut self, env: &mut Env, common: &Common, output: &Output) {
        env.checks.leaves(env.now, common.id, output);
        env.reach(Point::Landed, common.id);
    }

    /// What the checks learn from a message that is sent.
    pub fn sends(&mut self, env: &mut Env, common: &Common, message: &Message) {
        match message {
            Message::Handover => {
                self.handed_over = true;
                let own = env.checks.withheld.iter().filter(|(process, _)| *process == common.id);
                env.checks.to_be_tried = own.map(|(_, id)| *id).collect();
                env.count("handovers");
                env.reach(Point::Handover, common.id);
            }
            Message::Dismiss => env.reach(Point::Handover, common.id),
            Message::Grant(_) => {
                (self.granted, self.acked, self.echo) = (true, false, None);
                env.reach(Point::Grant, common.id);
            }
            Message::Log { entries, .. } => {
                for entry in entries {
                    match entry {
                        LogEntry::Mark(mark) => self.newest_sent = self.newest_sent.max(mark.sent_ns),
                        LogEntry::End { .. } => env.reach(Point::End, common.id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// What the vCPU thread says next, as planted bugs have it.
    pub fn next_said(&mut self, env: &mut Env, common: &Common, core: &Primary) -> Option<FromGuest> {
        let mut message = self.vcpu.said.next()?;
        match &mut message {
            FromGuest::Batch { outputs, finished, .. } => {
                if let Some(last) = outputs.iter().rfind(|output| output.emission.is_output()) {
                    self.outputs_made = last.seq.0 + 1;
                }
                match env.plant {
                    Some(Plant::ReleaseAfterHandover) if self.handed_over => {
                        for output in outputs.extract_if(.., |output| output.emission.is_output()) {
                            env.checks.release_begins(env.now, common.id, core.generation().0, true);
                            env.checks.leaves(env.now, common.id, &output);
                        }
                    }
                    Some(Plant::ReleaseWithoutMark) => {
                        for output in outputs {
                            output.at = Position::default();
                        }
                    }
                    Some(Plant::WriteBeforeRead) => {
                        for end in finished {
                            end.known = Known::Received;
                        }
                    }
                    _ => {}
                }
            }
            FromGuest::Ended(how) => env.note(common.id, || format!("the guest has ended: {how:?}")),
            _ => {}
        }
        Some(message)
    }
}
