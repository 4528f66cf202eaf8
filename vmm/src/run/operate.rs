//! `ftvm status`, `ftvm failover` and the other commands for a running guest: clients of its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::control::{Asked, Reply, Request};
use crate::cli::ControlArgs;
use ftvm_host::failure::Failure;
use ftvm_host::stdio::answer;
use ftvm_roles::operation::Operation;

/// No operation takes longer; a test-and-set on storage that does not answer may, and then the guest waits too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the process at `--control` for something, and prints the answer.
///
/// # Errors
/// If there is no such process, or it refuses.
pub fn run(asked: Asked, args: &ControlArgs) -> Result<u8, Failure> {
    let path = &args.control;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(format!(
            "--control {}: {what}: {error}; is `ftvm run --control` running there?",
            path.display()
        ))
    };
    let mut stream = UnixStream::connect(path).map_err(|e| failed("cannot connect", &e))?;
    let timeout = stream.set_read_timeout(Some(PATIENCE));
    timeout.map_err(|e| failed("cannot set a timeout", &e))?;
    let request = serde_json::to_string(&Request { request: asked }).map_err(Failure::new)?;
    writeln!(stream, "{request}").map_err(|e| failed("cannot ask", &e))?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .map_err(|e| failed("no answer", &e))?;
    if line.is_empty() {
        // The process that answers may be gone before its answer is: that is what was asked for.
        return match asked {
            Asked::Operation(Operation::TestFailover | Operation::PowerOff) => Ok(0),
            _ => Err(failed("the process has ended without an answer", &"end of file")),
        };
    }
    let reply: Reply = serde_json::from_str(&line).map_err(|e| failed("not an answer of ftvm's", &e))?;
    if args.json {
        answer(line.trim_end())?;
        return Ok(u8::from(reply.error.is_some()));
    }
    match (reply.done, reply.error, reply.status) {
        (_, Some(error), _) => Err(Failure::new(error)),
        (_, None, Some(status)) => {
            answer(status)?;
            Ok(0)
        }
        (done, None, None) => {
            answer(done.unwrap_or_default())?;
            Ok(0)
        }
    }
}
