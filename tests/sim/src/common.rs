//! What both roles of a process have: its link, its heartbeats, its claim.

use std::collections::VecDeque;

use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::link::world::{ConnectionId, LinkEvent};
use ftvm_roles::operation::Operation;
use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::codec::FrameEncoder;
use logging_channel::message::{Heartbeat, Message};

use super::checks::NO_FAILURE;
use super::env::{Env, MS, Point, US, What};
use super::network::{ConnId, ProcId};

/// How long the last messages may take to leave, as in `vmm::link::shell`.
const LAST_WORDS: u64 = 500 * MS;

/// The connection's number as links know it.
#[must_use]
pub fn connection_id(conn: ConnId) -> ConnectionId {
    ConnectionId(conn as u64)
}

/// And back.
#[must_use]
pub fn conn_of(connection: ConnectionId) -> ConnId {
    usize::try_from(connection.0).expect("made from a usize")
}

/// What both roles have.
#[derive(Debug)]
pub struct Common {
    pub id: ProcId,
    pub host: usize,
    pub me: Incarnation,
    pub paused: bool,
    pub link: VecDeque<LinkEvent>,
    /// How many of them the present turn may still take.
    pub burst: u64,
    /// What operators have asked for.
    pub orders: VecDeque<Operation>,
    pub heard: VecDeque<Heartbeat>,
    pub tick_due: bool,
    pub time_due: bool,
    pub(super) awake: bool,
    /// The connection and which end of it this is.
    pub conn: Option<(ConnId, usize)>,
    pub peer: Option<ProcId>,
    pub peer_host: usize,
    pub generation: Generation,
    pub(super) encoder: FrameEncoder,
    pub(super) number: u64,
    /// The claim that is asked for until there is an answer.
    pub(super) claiming: Option<(u64, u128)>,
    pub ending: Option<ExitCode>,
}

impl Common {
    /// Whether the connection is the present one.
    #[must_use]
    pub fn is_mine(&self, connection: ConnectionId) -> bool {
        self.conn.is_some_and(|(mine, _)| connection_id(mine) == connection)
    }

    /// The link's next event, if this turn takes another.
    pub fn next_event(&mut self) -> Option<LinkEvent> {
        self.burst = self.burst.checked_sub(1)?;
        self.link.pop_front()
    }

    /// The link task has something to do.
    pub fn wake(&mut self, env: &mut Env, delay: u64) {
        if !self.awake {
            self.awake = true;
            let delay = delay + env.rng.between(US, 20 * US);
            env.after(delay, self.id, What::Turn);
        }
    }

    /// Sends a message on the connection, if there is one.
    pub fn send(&mut self, env: &mut Env, generation: Generation, message: &Message) {
        let Some((conn, end)) = self.conn else { return };
        match self.encoder.message(generation, message) {
            Ok(bytes) => env.net.write(conn, end, bytes),
            Err(error) => env.checks.fail(env.now, NO_FAILURE, error.to_string()),
        }
        env.pump(conn, end);
    }

    /// Closes the connection after what was sent.
    pub fn close(&mut self, env: &mut Env) {
        if let Some((conn, end)) = self.conn.take() {
            env.net.finish(conn, end);
            env.pump(conn, end);
        }
    }

    /// Sends a heartbeat; its send time.
    pub fn heartbeat(&mut self, env: &mut Env, generation: Generation) -> Option<u64> {
        let peer = self.peer?;
        self.number += 1;
        let sent_ns = env.local(self.host);
        let heartbeat = Heartbeat {
            guest: env.terms.guest,
            generation,
            incarnation: self.me,
            number: self.number,
            sent_ns,
            echo_ns: 0,
        };
        let bytes = self.encoder.heartbeat(&heartbeat).ok()?.to_vec();
        for at in env.net.datagram(self.host, self.peer_host, env.now, &mut env.rng) {
            env.at(at, peer, What::Datagram(bytes.clone()));
        }
        Some(sent_ns)
    }

    /// Asks the storage until it answers.
    pub fn claim(&mut self, env: &mut Env, generation: Generation, owner: Incarnation) {
        env.reach(Point::Claim, self.id);
        self.claiming = Some((generation.0, owner.0));
        self.ask(env);
    }

    pub(super) fn ask(&mut self, env: &mut Env) {
        if let Some((generation, owner)) = self.claiming {
            let delay = env.rng.delay(env.terms.storage.0, env.terms.storage.1);
            env.after(delay, self.id, What::Claim { generation, owner });
        }
    }

    /// The process is about to end.
    pub fn end(&mut self, env: &mut Env, code: ExitCode, why: &str) {
        if self.ending.is_none() {
            env.note(self.id, || format!("ends with code {code}: {why}"));
            self.ending = Some(code);
            self.close(env);
            let delay = env.rng.delay(100 * US, LAST_WORDS);
            env.after(delay, self.id, What::Exit);
        }
    }
}
