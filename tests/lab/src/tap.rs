//! A cable between a backup and its primary that keeps what it has carried, for strangers to repeat.

use parking_lot::{Mutex, MutexGuard};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Bytes kept of what the backup says; later ones are carried only.
const KEPT: usize = 64 << 10;

/// How often a thread without traffic looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Kept {
    /// What the backup said on its first connection.
    stream: Vec<u8>,
    /// The latest heartbeat of the backup, and of the primary.
    heartbeats: [Option<Vec<u8>>; 2],
    /// Where the backup's heartbeats come from.
    backup: Option<SocketAddr>,
}

/// The cable: TCP and UDP of one port. Its threads end when it is dropped and the connection is over.
#[derive(Debug)]
pub struct WireTap {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

fn kept(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock()
}

impl WireTap {
    /// A cable to `target`, for one backup.
    ///
    /// # Panics
    /// If this host has no port for it.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        let (listener, front) = (0..100)
            .find_map(|_| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
                let front = UdpSocket::bind(listener.local_addr().ok()?).ok()?;
                Some((listener, front))
            })
            .expect("a port for TCP and UDP");
        let address = listener.local_addr().expect("an address");
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let shared = Arc::<Mutex<Kept>>::default();
        let (to_primary, to_backup) = (Arc::clone(&shared), Arc::clone(&shared));
        let sockets = [&front, &back].map(|socket| {
            socket.set_read_timeout(Some(LOOK)).expect("a timeout");
            socket.try_clone().expect("a descriptor")
        });
        let [from_front, from_back] = sockets;
        thread::spawn(move || {
            carry_heartbeats(&to_primary, &from_front, |kept, heartbeat, from| {
                kept.heartbeats[0] = Some(heartbeat.to_vec());
                kept.backup = Some(from);
                let _ = back.send_to(heartbeat, target);
            });
        });
        thread::spawn(move || {
            carry_heartbeats(&to_backup, &from_back, |kept, heartbeat, _| {
                kept.heartbeats[1] = Some(heartbeat.to_vec());
                if let Some(backup) = kept.backup {
                    let _ = front.send_to(heartbeat, backup);
                }
            });
        });
        let stream = Arc::downgrade(&shared);
        thread::spawn(move || {
            let Ok((backup, _)) = listener.accept() else { return };
            let Ok(primary) = TcpStream::connect(target) else {
                return;
            };
            for stream in [&primary, &backup] {
                // Or an ack waits for the ones before it to arrive.
                let _ = stream.set_nodelay(true);
            }
            let (Ok(from_primary), Ok(into_backup)) = (primary.try_clone(), backup.try_clone()) else {
                return;
            };
            thread::spawn(move || carry(from_primary, into_backup, |_| ()));
            carry(backup, primary, |bytes| {
                if let Some(shared) = stream.upgrade() {
                    let stream = &mut kept(&shared).stream;
                    let room = KEPT - stream.len();
                    stream.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
            });
        });
        WireTap { address, kept: shared }
    }

    /// Where the backup is to join.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the backup has said so far.
    #[must_use]
    pub fn stream(&self) -> Vec<u8> {
        kept(&self.kept).stream.clone()
    }

    /// A heartbeat of the backup and one of the primary, once there are both.
    #[must_use]
    pub fn heartbeats(&self) -> Option<[Vec<u8>; 2]> {
        let kept = kept(&self.kept);
        let [backup, primary] = &kept.heartbeats;
        Some([backup.clone()?, primary.clone()?])
    }

    /// Where the backup hears heartbeats.
    ///
    /// # Panics
    /// If it has sent none.
    #[must_use]
    pub fn backup(&self) -> SocketAddr {
        kept(&self.kept).backup.expect("heartbeats have come")
    }
}

/// Carries datagrams until the cable is dropped: then only the two threads hold what was kept.
fn carry_heartbeats(shared: &Arc<Mutex<Kept>>, from: &UdpSocket, forward: impl Fn(&mut Kept, &[u8], SocketAddr)) {
    let mut buffer = [0; 2048];
    while Arc::strong_count(shared) > 2 {
        if let Ok((len, source)) = from.recv_from(&mut buffer) {
            forward(&mut kept(shared), &buffer[..len], source);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
