//! The network of a chaos run: hosts and clients on one wire, which keeps what the guest said, where and in which order.
//!
//! A frame for a client reaches that client only; every other one reaches everybody, so that each host's card hears all
//! that the guest could. That is less than the switch of `ftvm demo` does, and leaves no doubt about who heard what.
//! What has arrived when the wire is looked at counts as one moment: nobody can say in which order it was sent.

use parking_lot::Mutex;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ftvm_host::net::MAX_FRAME;
use logging_channel::clock::boottime_ns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often the thread looks whether it is to end.
const LOOK_MS: u16 = 50;
/// Frames of the guest kept until they are asked for: minutes of them.
const KEPT: usize = 1 << 20;

/// A frame that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// CLOCK_BOOTTIME.
    pub at_ns: u64,
    /// Frames of one moment have the same.
    pub moment: u64,
    /// The port at which it came in.
    pub port: usize,
    /// Of its bytes.
    pub hash: u64,
}

/// A place on the wire.
#[derive(Clone, Debug)]
pub struct Port {
    /// The wire's socket, which it makes.
    pub wire: PathBuf,
    /// The socket of whoever is there; may come and go.
    pub peer: PathBuf,
    /// A client's address.
    pub mac: Option<[u8; 6]>,
}

/// The wire. It ends when it is dropped.
#[derive(Debug)]
pub struct Ether {
    ending: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Frame>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ether {
    /// A wire with these ports; frames from `guest` are kept.
    ///
    /// # Errors
    /// A sentence, if a socket cannot be made.
    pub fn start(ports: Vec<Port>, guest: [u8; 6]) -> Result<Self, String> {
        let bound = |port: &Port| {
            let socket = UnixDatagram::bind(&port.wire)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets: io::Result<Vec<UnixDatagram>> = ports.iter().map(bound).collect();
        let sockets = sockets.map_err(|e| format!("the network's sockets: {e}"))?;
        let (ending, frames) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Frame>>>::default());
        let wire = Wire {
            ports,
            sockets,
            guest,
            frames: Arc::clone(&frames),
        };
        let until = Arc::clone(&ending);
        let thread = std::thread::Builder::new().name("ether".to_owned());
        let thread = thread.spawn(move || wire.run(&until)).map_err(|e| e.to_string())?;
        Ok(Ether {
            ending,
            frames,
            thread: Some(thread),
        })
    }

    /// The guest's frames since the last time, in order.
    #[must_use]
    pub fn take_frames(&self) -> Vec<Frame> {
        std::mem::take(&mut *self.frames.lock())
    }
}

impl Drop for Ether {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

struct Wire {
    ports: Vec<Port>,
    sockets: Vec<UnixDatagram>,
    guest: [u8; 6],
    frames: Arc<Mutex<Vec<Frame>>>,
}

impl Wire {
    fn run(self, ending: &AtomicBool) {
        let mut moment = 0;
        while !ending.load(Ordering::Acquire) {
            let mut waits: Vec<PollFd<'_>> = self
                .sockets
                .iter()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .collect();
            // Whatever poll says, the sockets are read without waiting.
            let _ = poll(&mut waits, PollTimeout::from(LOOK_MS));
            moment += 1;
            let arrived = self.arrived();
            // Not before they were sent: whoever spoke must have been allowed to at some moment since.
            let at_ns = boottime_ns();
            for (port, frame) in arrived {
                if frame.get(6..12) == Some(&self.guest) {
                    self.keep(Frame {
                        at_ns,
                        moment,
                        port,
                        hash: hash(&frame),
                    });
                }
                self.forward(port, &frame);
            }
        }
    }

    /// Everything that has arrived by now.
    fn arrived(&self) -> Vec<(usize, Vec<u8>)> {
        let mut arrived = Vec::new();
        let mut buffer = [0; MAX_FRAME + 1];
        for (port, socket) in self.sockets.iter().enumerate() {
            while let Ok(len @ ..=MAX_FRAME) = socket.recv(&mut buffer) {
                arrived.push((port, buffer[..len].to_vec()));
            }
        }
        arrived
    }

    fn keep(&self, frame: Frame) {
        let mut frames = self.frames.lock();
        if frames.len() < KEPT {
            frames.push(frame);
        }
    }

    fn forward(&self, from: usize, frame: &[u8]) {
        let to: Option<&[u8; 6]> = frame.first_chunk();
        let client = self
            .ports
            .iter()
            .position(|port| port.mac.is_some() && port.mac.as_ref() == to);
        for (number, port) in self.ports.iter().enumerate() {
            if number != from && client.is_none_or(|client| client == number) {
                self.send(number, &port.peer, frame);
            }
        }
    }

    /// Lost if nobody is there, or whoever is there does not listen.
    fn send(&self, number: usize, peer: &Path, frame: &[u8]) {
        let _ = self.sockets[number].send_to(frame, peer);
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to[..], &from, &[8, 0, 1, 2, 3]].concat()
    }

    #[test]
    fn hosts_hear_everything_and_what_the_guest_says_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let port = |name: &str, mac| Port {
            wire: folder.path().join(format!("wire-{name}")),
            peer: folder.path().join(name),
            mac,
        };
        let ports = vec![port("a", None), port("b", None), port("client", Some(CLIENT))];
        let ether = Ether::start(ports.clone(), GUEST).expect("a wire");
        let plugged = |port: &Port| {
            let socket = UnixDatagram::bind(&port.peer).expect("a socket");
            socket.connect(&port.wire).expect("the wire is there");
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(30)))
                .expect("set");
            socket
        };
        let [a, b, client] = [0, 1, 2].map(|number| plugged(&ports[number]));
        let mut buffer = [0; 64];
        client.send(&frame(GUEST, CLIENT)).expect("sends");
        for host in [&a, &b] {
            let len = host.recv(&mut buffer).expect("every host hears it");
            assert_eq!(buffer[..len], frame(GUEST, CLIENT));
        }
        a.send(&frame(CLIENT, GUEST)).expect("sends");
        b.send(&frame([0xff; 6], GUEST)).expect("sends");
        for _ in 0..2 {
            client.recv(&mut buffer).expect("the client hears both");
        }
        let len = a.recv(&mut buffer).expect("of the other host only the broadcast");
        assert_eq!(buffer[..len], frame([0xff; 6], GUEST));
        let frames = ether.take_frames();
        assert_eq!(frames.iter().map(|frame| frame.port).collect::<Vec<_>>(), [0, 1]);
        assert_ne!(frames[0].hash, frames[1].hash);
        assert!(ether.take_frames().is_empty());
    }
}
