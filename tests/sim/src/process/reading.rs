//! What arrives at a process's sockets, and the reader task that takes it out.

use ftvm_roles::link::world::LinkEvent;

use super::super::checks::NO_FAILURE;
use super::super::common::connection_id;
use super::super::env::{Env, What};
use super::super::network::{Arrival, ConnId, take};
use super::super::plants::Plant;
use super::{Process, Role};

/// Messages read and not yet looked at, above which a socket is not read: fewer than in `vmm::link::connection`, so that it is felt.
const INBOUND: usize = 8;

impl Process {
    pub(super) fn arrives(&mut self, env: &mut Env, arrival: Arrival) {
        match arrival {
            Arrival::Bytes { conn, way, at, bytes } => {
                env.net.arrive(conn, way, at, bytes);
                if !self.common.paused {
                    self.read(env, conn, way);
                }
            }
            Arrival::Fin { conn, way } => {
                env.net.conns[conn].ways[way].ended = true;
                if !self.common.paused {
                    self.read(env, conn, way);
                }
            }
        }
    }

    /// The reader task takes what is in the socket's buffer, unless what it has read before still waits.
    pub(super) fn read(&mut self, env: &mut Env, conn: ConnId, way: usize) {
        if matches!(self.role, Role::Joining) || self.common.link.len() >= INBOUND {
            return;
        }
        let connection = &mut env.net.conns[conn];
        let direction = &mut connection.ways[way];
        let unread = direction.unread.len();
        let bytes = take(&mut direction.unread, unread);
        let decoder = &mut connection.decoders[way];
        let mut broken = decoder.push(&bytes).err();
        let mut frames = 0;
        while broken.is_none() {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    frames += 1;
                    self.common.link.push_back(LinkEvent::Message {
                        connection: connection_id(conn),
                        generation: frame.generation,
                        message: frame.message,
                    });
                }
                Ok(None) => break,
                Err(error) => broken = Some(error),
            }
        }
        let partial = decoder.finish().is_err();
        let ended = std::mem::take(&mut direction.ended);
        if let Some(error) = broken {
            env.checks
                .fail(env.now, NO_FAILURE, format!("a stream does not decode: {error}"));
        }
        if ended {
            self.common.link.push_back(LinkEvent::Closed {
                connection: connection_id(conn),
                why: "end of stream".to_owned(),
            });
        }
        self.common.wake(env, 0);
        env.pump(conn, way);
        if partial
            && frames == 0
            && self.common.link.is_empty()
            && env.plant == Some(Plant::AckBeforeDecode)
            && let Role::Following(backup) = &mut self.role
        {
            backup.frame_begins(env, &mut self.common);
        }
    }

    /// The reader task goes on where it had to wait.
    pub(super) fn read_on(&mut self, env: &mut Env) {
        for index in 0..self.conns.len() {
            let (conn, end) = self.conns[index];
            if env.net.conns[conn].ways[1 - end].is_readable() {
                self.read(env, conn, 1 - end);
            }
        }
    }

    /// The kernel answers for a dead process, if the host is up.
    pub(super) fn reset(&self, env: &mut Env, conn: ConnId, way: usize) {
        let (sender, host) = (env.net.conns[conn].ends[way], env.net.conns[conn].hosts[way]);
        if env.hosts[self.common.host].up && env.net.blocked(self.common.host, host, env.now).is_none() {
            let delay = env.rng.delay(env.net.delay.0, env.net.delay.1);
            let why = "connection reset";
            env.after(delay, sender, What::Closed { conn, why });
        }
    }
}
