//! Connecting to a peer that may not be there yet.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{FrameStream, TcpFrames, TransportError};

/// How often and how patiently to try to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first failure; doubled after each further one.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Time for one attempt.
    pub each: Duration,
}

impl Default for Backoff {
    /// About 10 s in all where the connection is refused: a primary that is just being started is found.
    fn default() -> Backoff {
        Backoff {
            first: Duration::from_millis(50),
            most: Duration::from_secs(2),
            attempts: 10,
            each: Duration::from_secs(2),
        }
    }
}

/// Connects to `address` ("host:port"), trying again with growing pauses.
///
/// # Errors
/// The last attempt's error, with how many there were.
pub async fn connect(address: &str, backoff: Backoff) -> Result<TcpFrames, TransportError> {
    let mut pause = backoff.first;
    let attempts = backoff.attempts.max(1);
    let mut attempt = 1;
    loop {
        let error = match timeout(backoff.each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return FrameStream::tcp(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", backoff.each)),
        };
        if attempt == attempts {
            return Err(TransportError::Connect {
                peer: address.to_owned(),
                attempts,
                source: error,
            });
        }
        tracing::debug!(address, attempt, %error, "cannot connect yet");
        sleep(pause).await;
        pause = (pause * 2).min(backoff.most);
        attempt += 1;
    }
}
