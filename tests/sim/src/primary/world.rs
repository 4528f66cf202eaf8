//! The world of a simulated primary's link. Planted bugs are changes to what passes here, in either direction.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use ftvm_machine::output::{Emission, Output};
use ftvm_roles::clone::{Blocks, Selection};
use ftvm_roles::disks::{Disks, DisksError};
use ftvm_roles::event::Event;
use ftvm_roles::host_event::Control;
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::link::guest::FromGuest;
use ftvm_roles::link::world::{Call, ConnectionId, LinkEvent, PrimaryWorld, World};
use ftvm_roles::operation::Answer;
use ftvm_roles::primary::Primary;
use ftvm_schema::entry::{DiskStatus, ExitSeq, Generation, Incarnation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::Message;
use shared_disk::arbiter::ClaimOutcome;

use super::super::checks::MARKED;
use super::super::common::{Common, conn_of};
use super::super::env::{Blow, Env, Point, What};
use super::super::plants::Plant;
use super::disks::SimDisks;
use super::side::Side;

/// A primary's link may fail only of the guest's own doing.
#[derive(Debug, thiserror::Error)]
pub(super) enum SimError {
    #[error(transparent)]
    Disks(#[from] DisksError<Infallible>),
}

/// What a step of the link sees.
pub(super) struct SimWorld<'a> {
    pub env: &'a mut Env,
    pub common: &'a mut Common,
    pub side: &'a mut Side,
}

impl SimWorld<'_> {
    /// The next event of the link, as planted bugs have it.
    pub fn next_planted(&mut self) -> Option<LinkEvent> {
        let mut event = self.common.next_event()?;
        let (env, side) = (&mut *self.env, &mut *self.side);
        match &mut event {
            LinkEvent::Message {
                connection,
                message: Message::Ack(ack),
                ..
            } if self.common.is_mine(*connection) && ack.frame > 0 => {
                if side.granted {
                    side.acked = true;
                    side.echo = side.echo.max(Some(ack.echo_ns));
                }
                if env.plant == Some(Plant::LeaseFromReceipt) {
                    ack.echo_ns = side.newest_sent;
                }
            }
            LinkEvent::Claimed(ClaimOutcome::Won { generation }) if *generation > self.common.generation.0 => {
                side.granted = false;
                env.reach(Point::Won, self.common.id);
            }
            _ => {}
        }
        Some(event)
    }
}

impl World for SimWorld<'_> {
    fn now_ns(&self) -> u64 {
        self.env.local(self.common.host)
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        self.next_planted()
    }

    fn send(&mut self, connection: ConnectionId, generation: Generation, message: Message) {
        if self.common.is_mine(connection) {
            self.side.sends(self.env, self.common, &message);
            self.common.send(self.env, generation, &message);
            self.env.reach(Point::Send, self.common.id);
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if self.common.is_mine(connection) {
            self.common.close(self.env);
        }
    }

    fn heartbeat(&mut self, generation: Generation) -> Option<u64> {
        let sent = self.common.heartbeat(self.env, generation)?;
        self.side.newest_sent = self.side.newest_sent.max(sent);
        Some(sent)
    }

    fn claim(&mut self, of: Generation, owner: Incarnation) {
        let starting = self.side.granted && !self.side.acked;
        if self.env.plant == Some(Plant::LeavingWithoutClaim) && starting {
            let won = ClaimOutcome::Won { generation: of.0 };
            self.common.link.push_front(LinkEvent::Claimed(won));
            self.common.wake(self.env, 0);
        } else {
            self.common.claim(self.env, of, owner);
        }
    }

    fn report(&mut self, event: Event) {
        self.env.note(self.common.id, || format!("{event:?}"));
    }
}

impl PrimaryWorld for SimWorld<'_> {
    type Hands = SimDisks;
    type Error = SimError;

    fn open_disks(&mut self) -> Result<Disks<SimDisks>, SimError> {
        Ok(Disks::new(SimDisks::default(), 1))
    }

    fn reserve_disks(&mut self) {
        let delay = self.env.rng.delay(1, self.env.terms.storage.0);
        self.env.after(delay, self.common.id, What::DisksReserved);
    }

    fn mark_current(&mut self, generation: Generation) -> Result<(), SimError> {
        let (env, common) = (&mut *self.env, &mut *self.common);
        if !self.side.disks_reserved || !env.checks.has_won(generation.0, common.me.0) {
            let what = format!(
                "process {} marks its private disks as the newest under generation {} before it has won that, or before it \
                 is the only one to write",
                common.id, generation.0
            );
            env.checks.fail(env.now, MARKED, what);
        }
        common.generation = generation;
        env.checks.moves_on(common.id, generation.0);
        Ok(())
    }

    fn take_operations(&mut self, _core: &Primary) {}

    fn take_inputs(&mut self) -> Result<(), SimError> {
        Ok(())
    }

    fn listen_for_backups(&mut self) -> Result<(), SimError> {
        Ok(())
    }

    fn accept(&mut self, connection: ConnectionId) {
        let conn = conn_of(connection);
        let peer = self.env.net.conns[conn].ends[0];
        self.env.note(self.common.id, || format!("process {peer} joins"));
        self.common.conn = Some((conn, 1));
        self.common.peer = Some(peer);
        self.common.peer_host = self.env.net.conns[conn].hosts[0];
        self.env.reach(Point::Joined, self.common.id);
    }

    fn refuse(&mut self, connection: ConnectionId) {
        let conn = conn_of(connection);
        self.env.net.finish(conn, 1);
        self.env.pump(conn, 1);
    }

    fn offer(&mut self, generation: Generation, may_join: bool) {
        self.common.generation = generation;
        self.side.may_join = may_join;
    }

    fn queued(&self, connection: ConnectionId) -> usize {
        self.env.net.conns[conn_of(connection)].ways[1].queued()
    }

    fn logged(&self, _connection: ConnectionId) -> u64 {
        0
    }

    fn send_pages(&mut self, _connection: ConnectionId, generation: Generation, to: Incarnation, pages: Selection) {
        self.side.send_pages(self.env, self.common, (generation, to), pages);
    }

    fn send_blocks(&mut self, _: ConnectionId, _: Generation, _: Incarnation, _: Blocks) {
        unreachable!("the simulated guest's disk is shared");
    }

    fn blocks_written(&mut self, _by: Incarnation, _messages: u64) {}

    fn copying(&mut self) -> Option<Event> {
        None
    }

    fn tell(&mut self, event: HostEvent) -> Result<(), SimError> {
        let (env, common, side) = (&mut *self.env, &mut *self.common, &mut *self.side);
        match &event {
            HostEvent::Control(Control::StandStill) if env.plant == Some(Plant::ReleaseAfterHandover) => {
                side.vcpu.said.ahead(FromGuest::Obeyed(Control::StandStill));
                return Ok(());
            }
            HostEvent::DiskDone {
                id,
                status: DiskStatus::IoError,
                ..
            } => {
                side.failing = side.failing.filter(|failing| failing != id);
                if side.told_early.remove(id) {
                    return Ok(());
                }
                // Whether it is on the disk is open.
                env.checks.withheld.remove(&(common.id, *id));
                env.checks.to_be_tried.remove(id);
                // What a host that has been superseded hears says nothing about the write that the new one lands.
                if !env.checks.superseded(common.id, common.generation.0) {
                    env.image.forget(*id);
                }
            }
            _ => {}
        }
        side.vcpu.tell(env, common, event);
        Ok(())
    }

    fn pace(&mut self, idle_permille: u32) {
        self.side.vcpu.reins.idle.store(idle_permille, Ordering::Relaxed);
    }

    fn stop_logging(&mut self) {
        self.side.vcpu.reins.logging.store(false, Ordering::Release);
    }

    fn want_entropy(&mut self, _len: u32) -> Result<(), SimError> {
        unreachable!("the simulated guest asks for none");
    }

    fn release(&mut self, output: &Output) -> Result<Call, SimError> {
        let (env, common, side) = (&mut *self.env, &mut *self.common, &mut *self.side);
        let lease = side.lease_stands(env, common);
        env.checks
            .release_begins(env.now, common.id, common.generation.0, lease);
        env.reach(Point::Check, common.id);
        if env.plant == Some(Plant::ReleasedAtSubmission) {
            let time = env.rng.between(env.terms.call.0, env.terms.call.1);
            side.late_until = side.late_until.max(env.now + time);
            side.late.push_back(output.clone());
            env.at(side.late_until, common.id, What::CallOver);
            return Ok(Call::Over);
        }
        if let Emission::Disk(_) = &output.emission {
            side.lands(env, common, output);
            return Ok(Call::Over);
        }
        side.call = Some(output.clone());
        let time = env.rng.delay(env.terms.call.0, env.terms.call.1);
        env.after(time, common.id, What::CallOver);
        Ok(Call::UnderWay)
    }

    fn announce(&mut self) {}

    fn answer(&mut self, _ticket: u64, answer: Answer) {
        self.env.count(if matches!(answer, Answer::Done(_)) {
            "operations"
        } else {
            "operations-refused"
        });
        self.env.note(self.common.id, || format!("answers {answer:?}"));
    }

    fn show(&mut self, core: &Primary, _: ExitSeq, _: Option<u64>) {
        self.side.see_end(core);
    }

    fn die(&mut self) {
        self.env.after(0, self.common.id, What::Strike(Blow::Kill));
    }

    fn finish_private(&mut self, _: Vec<DiskRequest>, _: SimDisks) -> Result<(), SimError> {
        unreachable!("the simulated guest's disk is shared");
    }

    fn give_disks_back(&mut self) {}

    fn note_end(&mut self) {
        let delay = self.env.rng.delay(self.env.terms.storage.0, self.env.terms.storage.1);
        self.env.after(delay, self.common.id, What::EndGuest);
    }
}
