//! An HTTP client that must not notice the failovers: one kept-alive connection, the same page again and again.
//!
//! nginx says the guest's time with every page (RFC 9110, 6.6.1: whole seconds). It was read between the request and the
//! answer, so it must lie between the two, however long a failover in between has taken; and it never goes back.

use parking_lot::{Mutex, MutexGuard};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use ftvm_demo::client::stack::Stack;
use ftvm_host::net::Dgram;
use smoltcp::socket::tcp::State;

use super::clock::{GuestClock, Off, SteadyClock};

/// Between two requests. The guest's `nginx.conf` lets a connection have as many as it likes.
const EVERY: Duration = Duration::from_millis(200);
/// How often the thread looks around.
const LOOK: Duration = Duration::from_millis(10);
/// No answer for so long: given up.
const SILENCE: Duration = Duration::from_secs(120);
/// The largest answer expected: nginx's headers and a small page.
const MAX_ANSWER: usize = 1 << 16;

/// Where the client is, and whom it talks to.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub local: PathBuf,
    pub hub: PathBuf,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub prefix: u8,
    pub server: (Ipv4Addr, u16),
}

/// What it saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Pages that came whole and were the same as the first.
    pub pages: u64,
    /// The longest wait for one, since this was last asked for.
    pub longest: Duration,
    /// What the guest's clock said when it was furthest off since this was last asked for, if it has been off.
    pub clock: Option<Off>,
    /// Why the connection did not live to the end, if it did not.
    pub broken: Option<String>,
}

/// A running client.
#[derive(Debug)]
pub struct Http {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    finish: AtomicBool,
    seen: Mutex<Seen>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock()
    }
}

impl Http {
    /// Plugs it in and starts it; it begins to ask as soon as it is connected. What the guest says its time is is compared
    /// with `clock`.
    ///
    /// # Errors
    /// If its socket or thread cannot be made.
    pub fn start(config: HttpConfig, clock: SteadyClock) -> Result<Self, String> {
        let dgram = Dgram::open(&config.local, &config.hub).map_err(|e| e.to_string())?;
        let shared = Arc::<Shared>::default();
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            let mut client = Client {
                stack: Stack::new(dgram, config.mac, config.ip, config.prefix, 1),
                shared: told,
                first: None,
                clock,
                guest_clock: GuestClock::default(),
            };
            let broken = client.run(config.server).err();
            client.shared.seen().broken = broken;
        });
        Ok(Http {
            shared,
            thread: thread.map_err(|e| e.to_string())?,
        })
    }

    /// What it has seen so far; with `forget`, its longest wait and the clock's largest error are counted anew from here.
    ///
    /// # Errors
    /// Why the connection broke.
    pub fn seen(&self, forget: Forget) -> Result<Seen, String> {
        let mut seen = self.shared.seen();
        if let Some(broken) = &seen.broken {
            return Err(format!("the HTTP connection: {broken}"));
        }
        let so_far = seen.clone();
        if forget == Forget::Worst {
            (seen.longest, seen.clock) = (Duration::ZERO, None);
        }
        Ok(so_far)
    }

    /// Lets it get one more page, and end.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn finish(self) -> Result<Seen, String> {
        self.shared.finish.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the HTTP client panicked".to_owned())?;
        Ok(self.shared.seen().clone())
    }
}

/// Whether looking begins a new count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    Nothing,
    Worst,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    date: SystemTime,
    body: Vec<u8>,
}

struct Client {
    stack: Stack,
    shared: Arc<Shared>,
    first: Option<Vec<u8>>,
    clock: SteadyClock,
    guest_clock: GuestClock,
}

impl Client {
    fn run(&mut self, server: (Ipv4Addr, u16)) -> Result<(), String> {
        self.connect(server)?;
        loop {
            let last = self.shared.finish.load(Ordering::Relaxed);
            let (asked, asked_at) = (Instant::now(), self.clock.now());
            let page = self.get(server.0)?;
            let off = self.guest_clock.said(page.date, asked_at, self.clock.now())?;
            let first = self.first.get_or_insert_with(|| page.body.clone());
            if *first != page.body {
                return Err("a page differs from the first one".to_owned());
            }
            let mut seen = self.shared.seen();
            seen.pages += 1;
            seen.longest = seen.longest.max(asked.elapsed());
            seen.clock = [seen.clock, off].into_iter().flatten().max_by_key(|off| off.by);
            drop(seen);
            if last {
                self.stack.socket().close();
                self.stack.turn();
                return Ok(());
            }
            while asked.elapsed() < EVERY {
                self.stack.turn();
                self.stack.wait(LOOK);
            }
        }
    }

    fn connect(&mut self, server: (Ipv4Addr, u16)) -> Result<(), String> {
        let mut port = 51_000;
        let begun = Instant::now();
        while self.stack.socket().state() != State::Established {
            if self.stack.socket().state() == State::Closed {
                port += 1;
                self.stack.connect(server, port).map_err(|e| e.to_string())?;
            }
            if begun.elapsed() > SILENCE {
                return Err("no connection".to_owned());
            }
            self.stack.turn();
            self.stack.wait(LOOK);
        }
        Ok(())
    }

    /// The page `/`.
    fn get(&mut self, host: Ipv4Addr) -> Result<Page, String> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let sent = self
            .stack
            .socket()
            .send_slice(request.as_bytes())
            .map_err(|e| e.to_string())?;
        if sent != request.len() {
            return Err("the connection takes no request".to_owned());
        }
        let begun = Instant::now();
        let mut answer = Vec::new();
        loop {
            self.stack.turn();
            let mut buffer = [0; 4096];
            let len = self.stack.socket().recv_slice(&mut buffer);
            answer.extend_from_slice(&buffer[..len.map_err(|_| "the connection was lost".to_owned())?]);
            if let Some(page) = page(&answer)? {
                return Ok(page);
            }
            if begun.elapsed() > SILENCE || answer.len() > MAX_ANSWER {
                return Err(format!("no page within {SILENCE:?}, {} bytes came", answer.len()));
            }
            self.stack.wait(LOOK);
        }
    }
}

/// An answer with status 200, once it is complete.
fn page(answer: &[u8]) -> Result<Option<Page>, String> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the server said {:?}", head.lines().next().unwrap_or_default()));
    }
    let field = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let length = field("content-length").and_then(|value| value.parse().ok());
    let length: usize = length.ok_or_else(|| "an answer without a length".to_owned())?;
    let date = field("date").and_then(|value| httpdate::parse_http_date(value).ok());
    let date = date.ok_or_else(|| "an answer without a date".to_owned())?;
    let body = answer.get(end + 4..end + 4 + length);
    Ok(body.map(|body| Page {
        date,
        body: body.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_page_is_taken_when_it_is_whole() {
        let answer = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:01:00 GMT\r\ncontent-length: 3\r\n\r\nabc";
        let whole = Page {
            date: at(60),
            body: b"abc".to_vec(),
        };
        assert_eq!(page(answer), Ok(Some(whole)));
        assert_eq!(page(&answer[..answer.len() - 1]), Ok(None));
        assert_eq!(page(&answer[..20]), Ok(None));
        assert!(page(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("404"));
        for without in [
            "Content-Length: 3",
            "Date: Thu, 01 Jan 1970 00:01:00 GMT",
            "Date: now\r\nContent-Length: 3",
        ] {
            assert!(page(format!("HTTP/1.1 200 OK\r\n{without}\r\n\r\n").as_bytes()).is_err());
        }
    }
}
