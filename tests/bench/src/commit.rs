//! What the output rule costs: how much later an answer of the guest leaves when a backup has to hear of it first.
//!
//! The guest `kv` answers ARP requests; they come and go over a Unix datagram socket, so a round trip is the guest's work
//! and the wait for the ack. It is taken without a backup and with one on the same primary; the difference is the output
//! commit. A raw TCP ping-pong between two processes, of messages as long as the log frame and its ack, over the same
//! loopback and in turns with the others, is what any protocol of one round trip costs at least.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Digest, ExitSeq, Generation, Input, LogEntry, Mark, OutputSeq, Position};
use logging_channel::codec::FrameEncoder;
use logging_channel::message::{Ack, Message};

use ftvm_roles::event::Event;

use super::Figure;
use super::stats::{median, percentile};
use ftvm_lab::kv::{GUEST_IP, GUEST_MAC, cmdline};
use ftvm_lab::pair::Site;
use ftvm_lab::scaled;

/// Round trips before those that count.
const WARM_UP: usize = 30;
/// Round trips of one kind before the other has its turn.
const TURN: usize = 50;
const CLIENT_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x07, 0x00, 0x01];
const CLIENT_IP: [u8; 4] = [192, 168, 7, 1];
/// The shortest Ethernet frame without its checksum.
const FRAME: usize = 60;

/// Times `turns` turns of each kind.
///
/// # Errors
/// A sentence: no answer, or the link fails.
pub fn measure(turns: usize) -> Result<Vec<Figure>, String> {
    let site = Site::new();
    let cable = |name: &str| {
        let (own, remote) = (site.path(&format!("{name}.sock")), site.path("client.sock"));
        format!("dgram={},remote={}", own.display(), remote.display())
    };
    let mut client = Client::plug_in(&site)?;
    let net = format!("{},mac={GUEST_MAC}", cable("primary"));
    let cmdline = cmdline();
    let guest = ["--kernel", "builtin:kv", "--cmdline", &cmdline, "--net", &net];
    let primary = site.primary("primary", &guest, &[]);
    primary.wait_event("life", 1, scaled(Duration::from_secs(10)), |event| {
        matches!(event, Event::Leading { .. })
    });
    site.wait_console("kv ready", scaled(Duration::from_secs(10)));
    let (log, ack) = message_sizes();
    let mut echo = Echo::start(log, ack)?;

    client
        .times(WARM_UP)
        .map_err(|e| format!("{e}: {}", primary.stderr()))?;
    let mut alone = Vec::new();
    for _ in 0..turns {
        alone.extend(client.times(TURN)?);
    }
    let backup = site.backup("backup", site.address, &["--net", &cable("backup")]);
    primary.wait_protected();
    client.times(WARM_UP)?;
    echo.times(WARM_UP)?;
    let (mut paired, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        paired.extend(client.times(TURN).map_err(|e| format!("{e}: {}", backup.stderr()))?);
        raw.extend(echo.times(TURN)?);
    }
    let sizes = format!("raw TCP ping-pong, {log} and {ack} bytes");
    let commit = median(&paired) - median(&alone);
    Ok(vec![
        Figure::new("alone_us", median(&alone), "us", "answer without a backup, median"),
        Figure::new(
            "alone_p99_us",
            percentile(&alone, 0.99),
            "us",
            "answer without a backup, p99",
        ),
        Figure::new("paired_us", median(&paired), "us", "answer with a backup, median"),
        Figure::new(
            "paired_p99_us",
            percentile(&paired, 0.99),
            "us",
            "answer with a backup, p99",
        ),
        Figure::new("commit_us", commit, "us", "output commit: difference of the medians"),
        Figure::new("raw_us", median(&raw), "us", format!("{sizes}, median")),
        Figure::new("raw_p99_us", percentile(&raw, 0.99), "us", format!("{sizes}, p99")),
        Figure::new(
            "commit_ratio",
            commit / median(&raw),
            "",
            "output commit / raw ping-pong",
        ),
    ])
}

/// Somebody who asks the guest for its address.
struct Client {
    socket: UnixDatagram,
    guest: std::path::PathBuf,
    request: [u8; FRAME],
}

impl Client {
    fn plug_in(site: &Site) -> Result<Self, String> {
        let socket = UnixDatagram::bind(site.path("client.sock")).map_err(|e| format!("client.sock: {e}"))?;
        let limit = scaled(Duration::from_secs(2));
        socket.set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        Ok(Client {
            socket,
            guest: site.path("primary.sock"),
            request: arp_request(),
        })
    }

    /// Round trips in microseconds.
    fn times(&mut self, count: usize) -> Result<Vec<f64>, String> {
        (0..count).map(|_| self.ask()).collect()
    }

    fn ask(&mut self) -> Result<f64, String> {
        let begun = Instant::now();
        let sent = self.socket.send_to(&self.request, &self.guest);
        sent.map_err(|e| format!("cannot send to the guest: {e}"))?;
        let mut frame = [0; 2048];
        loop {
            let len = self.socket.recv(&mut frame);
            let len = len.map_err(|e| format!("the guest does not answer an ARP request: {e}"))?;
            if is_arp_reply(&frame[..len]) {
                return Ok(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
}

/// "Who has the guest's address?" (RFC 826)
fn arp_request() -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&CLIENT_MAC);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&CLIENT_MAC);
    frame[28..32].copy_from_slice(&CLIENT_IP);
    frame[38..42].copy_from_slice(&GUEST_IP.octets());
    frame
}

fn is_arp_reply(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] && frame[28..32] == GUEST_IP.octets()
}

/// Bytes of the log frame that a request makes, and of its ack.
fn message_sizes() -> (usize, usize) {
    let at = Position {
        exit: ExitSeq(100_000),
        k: 1,
    };
    let frame = arp_request().to_vec();
    let mark = Mark {
        at,
        digest: Digest::default(),
        outputs: OutputSeq(1000),
        sent_ns: 1_000_000_000_000,
        registers: None,
        memory_hash: None,
    };
    let input = LogEntry::Input {
        at: at.exit,
        input: Input::NetRx { nic: 0, frame },
    };
    let log = Message::Log {
        number: 10_000,
        entries: vec![input, LogEntry::Mark(mark)],
    };
    let ack = Message::Ack(Ack {
        frame: 10_000,
        received: at,
        executed: at,
        echo_ns: 1_000_000_000_000,
        ..Ack::default()
    });
    let mut encoder = FrameEncoder::new();
    let mut size = |message| encoder.message(Generation(1), message).expect("a small message").len();
    (size(&log), size(&ack))
}

/// A process that answers each message of one length with one of another.
struct Echo {
    child: Child,
    stream: TcpStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Echo {
    fn start(request: usize, reply: usize) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut child = Command::new(own)
            .args(["echo", &request.to_string(), &reply.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start the echo: {e}"))?;
        let mut address = String::new();
        let told = child
            .stdout
            .take()
            .map(|out| BufReader::new(out).read_line(&mut address));
        let stream = match told {
            Some(Ok(_)) => {
                TcpStream::connect(address.trim()).and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            }
            Some(Err(error)) => Err(error),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        let stream = stream.map_err(|e| {
            let _ = child.kill();
            format!("no connection to the echo at {:?}: {e}", address.trim())
        })?;
        Ok(Echo {
            child,
            stream,
            request: vec![1; request],
            reply: vec![0; reply],
        })
    }

    /// Round trips in microseconds.
    fn times(&mut self, count: usize) -> Result<Vec<f64>, String> {
        let once = |_| {
            let begun = Instant::now();
            self.stream.write_all(&self.request)?;
            self.stream.read_exact(&mut self.reply)?;
            Ok(begun.elapsed().as_secs_f64() * 1e6)
        };
        let times: std::io::Result<Vec<f64>> = (0..count).map(once).collect();
        times.map_err(|e| format!("the echo: {e}"))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It ends by itself when its connection does; this is for one that never had any.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other end of the ping-pong: says where it listens, and serves one connection.
///
/// # Errors
/// A sentence: the loopback refuses.
pub fn echo(request: usize, reply: usize) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("echo: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    println!("{}", listener.local_addr().map_err(failed)?);
    let (mut stream, _) = listener.accept().map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (mut request, reply) = (vec![0; request], vec![1; reply]);
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&reply).map_err(failed)?;
    }
    Ok(())
}
