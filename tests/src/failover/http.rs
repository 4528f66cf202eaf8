//! An HTTP client that must not notice the failover: one kept-alive connection, the same page again and again.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use vmm::backends::net::Dgram;
use vmm::demo::client::stack::Stack;

/// Between two requests: nginx closes a connection after 1000, which is 200 s of this.
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
#[derive(Debug, Clone)]
pub struct HttpReport {
    /// Pages that came whole and were the same as the first.
    pub pages: u64,
    /// The longest wait for one.
    pub longest: Duration,
    /// Why the connection did not live to the end, if it did not.
    pub broken: Option<String>,
}

/// A running client.
#[derive(Debug)]
pub struct Http {
    finish: Arc<AtomicBool>,
    pages: Arc<AtomicU64>,
    thread: JoinHandle<HttpReport>,
}

impl Http {
    /// Plugs it in and starts it; it begins to ask as soon as it is connected.
    ///
    /// # Errors
    /// If its socket or thread cannot be made.
    pub fn start(config: HttpConfig) -> Result<Self, String> {
        let dgram = Dgram::open(&config.local, &config.hub).map_err(|e| e.to_string())?;
        let (finish, pages) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, counter) = (Arc::clone(&finish), Arc::clone(&pages));
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            let mut client = Client {
                stack: Stack::new(dgram, config.mac, config.ip, config.prefix, 1),
                finish: told,
                pages: counter,
                first: None,
                longest: Duration::ZERO,
            };
            let broken = client.run(config.server).err();
            HttpReport {
                pages: client.pages.load(Ordering::Relaxed),
                longest: client.longest,
                broken,
            }
        });
        Ok(Http {
            finish,
            pages,
            thread: thread.map_err(|e| e.to_string())?,
        })
    }

    /// Pages so far.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Lets it get one more page, and end.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn finish(self) -> Result<HttpReport, String> {
        self.finish.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the HTTP client panicked".to_owned())
    }
}

struct Client {
    stack: Stack,
    finish: Arc<AtomicBool>,
    pages: Arc<AtomicU64>,
    first: Option<Vec<u8>>,
    longest: Duration,
}

impl Client {
    fn run(&mut self, server: (Ipv4Addr, u16)) -> Result<(), String> {
        self.connect(server)?;
        loop {
            let last = self.finish.load(Ordering::Relaxed);
            let asked = Instant::now();
            let page = self.get(server.0)?;
            self.longest = self.longest.max(asked.elapsed());
            let first = self.first.get_or_insert_with(|| page.clone());
            if *first != page {
                return Err("a page differs from the first one".to_owned());
            }
            self.pages.fetch_add(1, Ordering::Relaxed);
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

    /// The body of the page `/`.
    fn get(&mut self, host: Ipv4Addr) -> Result<Vec<u8>, String> {
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
            if let Some(body) = body(&answer)? {
                return Ok(body);
            }
            if begun.elapsed() > SILENCE || answer.len() > MAX_ANSWER {
                return Err(format!("no page within {SILENCE:?}, {} bytes came", answer.len()));
            }
            self.stack.wait(LOOK);
        }
    }
}

/// The body of an answer with status 200, once it is complete.
fn body(answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the server said {:?}", head.lines().next().unwrap_or_default()));
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    let length: usize = length.ok_or_else(|| "an answer without a length".to_owned())?;
    Ok(answer.get(end + 4..end + 4 + length).map(<[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_when_it_is_whole() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(body(answer), Ok(Some(b"abc".to_vec())));
        assert_eq!(body(&answer[..answer.len() - 1]), Ok(None));
        assert_eq!(body(&answer[..20]), Ok(None));
        assert!(body(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("404"));
        assert!(body(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
