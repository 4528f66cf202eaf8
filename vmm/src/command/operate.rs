//! `ftvm status`, `ftvm failover` and the other commands for a running guest: clients of its control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ftvm_host::stdio::answer;
use ftvm_roles::exit_code::ExitCode;
use ftvm_roles::operation::Operation;

use crate::cli::ControlArgs;
use crate::control::{Asked, ControlReply, ControlRequest};
use crate::failure::Failure;

/// No operation takes longer; a test-and-set on storage that does not answer may, and then the guest waits too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an operation was not carried out, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
enum OperateError {
    /// Nobody is there, or stops being there.
    #[error("--control {}: {what}: {source}; is `ftvm run --control` running there?", .path.display())]
    Socket {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    /// Somebody else is there.
    #[error("--control {}: not an answer of ftvm's: {source}; is `ftvm run --control` running there?", .path.display())]
    NotAnAnswer { path: PathBuf, source: serde_json::Error },
    /// The process that was asked says no, and why.
    #[error("{0}")]
    Refused(String),
}

/// Asks the process at `--control` for something, and prints the answer.
pub(super) fn run(asked: Asked, args: &ControlArgs) -> Result<ExitCode, Failure> {
    let Some(line) = ask(asked, args)? else {
        return Ok(ExitCode::Success);
    };
    let reply: ControlReply = serde_json::from_str(&line).map_err(|source| OperateError::NotAnAnswer {
        path: args.control.clone(),
        source,
    })?;
    if args.json {
        answer(line.trim_end())?;
        return Ok(match reply.error {
            Some(_) => ExitCode::Error,
            None => ExitCode::Success,
        });
    }
    match (reply.done, reply.error, reply.status) {
        (_, Some(why), _) => return Err(OperateError::Refused(why).into()),
        (_, None, Some(status)) => answer(status)?,
        (done, None, None) => answer(done.unwrap_or_default())?,
    }
    Ok(ExitCode::Success)
}

/// The line that is answered; `None` if the process has ended instead, and was asked to.
fn ask(asked: Asked, args: &ControlArgs) -> Result<Option<String>, Failure> {
    let failed = |what| {
        let path = args.control.clone();
        move |source| OperateError::Socket { path, what, source }
    };
    let mut stream = UnixStream::connect(&args.control).map_err(failed("cannot connect"))?;
    let timeout = stream.set_read_timeout(Some(PATIENCE));
    timeout.map_err(failed("cannot set a timeout"))?;
    let request = serde_json::to_string(&ControlRequest { request: asked })?;
    writeln!(stream, "{request}").map_err(failed("cannot ask"))?;
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    read.map_err(failed("no answer"))?;
    if !line.is_empty() {
        return Ok(Some(line));
    }
    // The process that answers may be gone before its answer is: that is what was asked for.
    match asked {
        Asked::Operation(Operation::TestFailover | Operation::PowerOff) => Ok(None),
        _ => {
            let end = io::Error::new(io::ErrorKind::UnexpectedEof, "end of file");
            Err(failed("the process has ended without an answer")(end).into())
        }
    }
}
