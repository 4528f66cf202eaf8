//! Cables for logging channels and heartbeats, in user space: TCP and UDP from a port of 127.0.0.1 to another one.
//!
//! Each way of a cable can be cut or made slow by itself, which `ftvm_demo::relay` cannot, and all connections over it
//! can be hung up. Behind a cut nobody is told of anything: connections stay open, their bytes wait, and go on when the
//! cable is mended, as TCP does; datagrams are lost.

use parking_lot::Mutex;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Pieces of a stream under way at one time, and their size: more would be a buffer that no cable has.
const PIECES: usize = 64;
const PIECE: usize = 64 << 10;
/// Tries to find a port free for TCP and UDP.
const TRIES: usize = 32;
/// Longest datagram carried; a heartbeat has about 100 bytes.
const DATAGRAM: usize = 2048;

/// What one way of a cable does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Pass,
    /// Nothing passes, and nobody is told.
    Cut,
    /// Everything passes this much later.
    Delay(Duration),
}

/// What a cable does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// To the target, and from it.
    ways: [Way; 2],
    /// Connections end when this grows.
    hung_up: u64,
}

/// Which of [`Ways::ways`].
#[derive(Clone, Copy, Debug)]
enum To {
    Target = 0,
    Client = 1,
}

/// Where all cables are worked.
#[derive(Debug)]
pub struct Cabinet(Runtime);

/// One cable. Its connections end with the cabinet.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    ways: watch::Sender<Ways>,
}

impl Cabinet {
    /// # Errors
    /// If there is no thread for it.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Cabinet(runtime))
    }

    /// A cable to `target`.
    ///
    /// # Errors
    /// If there is no port for it.
    pub fn cable(&self, target: SocketAddr) -> io::Result<Cable> {
        let _inside = self.0.enter();
        let (listener, front) = bind_both()?;
        let back = Self::udp(std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (listener, front) = (TcpListener::from_std(listener)?, Self::udp(front)?);
        let (ways, seen) = watch::channel(Ways::default());
        self.0.spawn(accept(listener, target, seen.clone()));
        let client = Arc::<Mutex<Option<SocketAddr>>>::default();
        let (front, back) = (Arc::new(front), Arc::new(back));
        let forth = Datagrams {
            from: Arc::clone(&front),
            to: Arc::clone(&back),
            client: Arc::clone(&client),
            ways: seen.clone(),
        };
        self.0.spawn(forth.carry(To::Target, target));
        let back = Datagrams {
            from: back,
            to: front,
            client,
            ways: seen,
        };
        self.0.spawn(back.carry(To::Client, target));
        Ok(Cable { address, ways })
    }

    fn udp(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }
}

impl Cable {
    /// Where to connect, or send datagrams, instead of to the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does: to the target, and from it.
    pub fn set(&self, to_target: Way, from_target: Way) {
        self.ways.send_modify(|ways| ways.ways = [to_target, from_target]);
    }

    /// Ends every connection; both ends are told.
    pub fn hang_up(&self) {
        self.ways.send_modify(|ways| ways.hung_up += 1);
    }
}

fn bind_both() -> io::Result<(std::net::TcpListener, std::net::UdpSocket)> {
    let mut last = io::Error::other("not tried");
    for _ in 0..TRIES {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match std::net::UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Waits while a way is cut; how late things are on it then.
async fn passable(ways: &mut watch::Receiver<Ways>, to: To) -> Duration {
    let open = ways.wait_for(|ways| ways.ways[to as usize] != Way::Cut).await;
    match open.map(|ways| ways.ways[to as usize]) {
        Ok(Way::Delay(delay)) => delay,
        Ok(Way::Pass | Way::Cut) | Err(_) => Duration::ZERO,
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, ways: watch::Receiver<Ways>) {
    loop {
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, target, ways.clone()));
        }
    }
}

async fn serve(client: TcpStream, target: SocketAddr, mut ways: watch::Receiver<Ways>) {
    let hung_up = ways.borrow().hung_up;
    passable(&mut ways, To::Target).await;
    // Nobody there: the client's connection ends.
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    for stream in [&client, &server] {
        // Only how fast it is depends on this.
        let _ = stream.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let there = pump(from_client, to_server, ways.clone(), To::Target);
    let back = pump(from_server, to_client, ways.clone(), To::Client);
    tokio::select! {
        _ = both(there, back) => {}
        _ = ways.wait_for(|ways| ways.hung_up != hung_up) => {}
    }
}

/// Until both directions have ended, or one has failed.
async fn both(
    there: impl Future<Output = io::Result<()>>,
    back: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::try_join!(there, back).map(|_| ())
}

/// Carries one direction until its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut ways: watch::Receiver<Ways>,
    way: To,
) -> io::Result<()> {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let mut reading = ways.clone();
    let read = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            passable(&mut reading, way).await;
            let len = from.read(&mut buffer).await.unwrap_or(0);
            // Cut while this was read: it waits here, not in the sender.
            let delay = passable(&mut reading, way).await;
            let piece = (Instant::now() + delay, buffer[..len].to_vec());
            if pieces.send(piece).await.is_err() || len == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            passable(&mut ways, way).await;
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    tokio::pin!(write);
    tokio::select! {
        written = &mut write => written,
        () = read => write.await,
    }
}

struct Datagrams {
    from: Arc<UdpSocket>,
    to: Arc<UdpSocket>,
    /// Who last sent something to the target.
    client: Arc<Mutex<Option<SocketAddr>>>,
    ways: watch::Receiver<Ways>,
}

impl Datagrams {
    async fn carry(self, way: To, target: SocketAddr) {
        let mut buffer = [0; DATAGRAM];
        loop {
            // An error is a closed port on the other side.
            let Ok((len, sender)) = self.from.recv_from(&mut buffer).await else {
                continue;
            };
            let to = {
                let mut client = self.client.lock();
                match way {
                    To::Target => {
                        *client = Some(sender);
                        Some(target)
                    }
                    To::Client => *client,
                }
            };
            let delay = match self.ways.borrow().ways[way as usize] {
                Way::Cut => continue,
                Way::Pass => Duration::ZERO,
                Way::Delay(delay) => delay,
            };
            let Some(to) = to else { continue };
            let (socket, datagram) = (Arc::clone(&self.to), buffer[..len].to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // Lost, as datagrams are.
                let _ = socket.send_to(&datagram, to).await;
            });
        }
    }
}

#[cfg(test)]
#[path = "cable_tests.rs"]
mod tests;
