//! A QEMU process and its machine protocol (QEMU, docs/interop/qmp-spec.txt): JSON objects, one a line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Until its socket is there, and for each answer.
const LIMIT: Duration = Duration::from_secs(60);
const LAST_LINES: usize = 12;
const LOOK: Duration = Duration::from_millis(20);

/// A running QEMU. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    stderr: PathBuf,
    console: PathBuf,
    control: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qemu {
    /// Starts it with its guest's `arguments`; its files in `folder` begin with `name`.
    ///
    /// # Errors
    /// A sentence: it does not start, or does not speak.
    pub(super) fn start(program: &Path, folder: &Path, name: &str, arguments: &[String]) -> Result<Self, String> {
        let file = |kind: &str| folder.join(format!("{name}.{kind}"));
        let (socket, stderr, console) = (file("qmp"), file("err"), file("console"));
        let failed = |e: std::io::Error| format!("QEMU, {name}: {e}");
        let mut child = Command::new(program)
            .args(arguments)
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        match greet(&socket) {
            Ok(control) => Ok(Qemu {
                child,
                stderr,
                console,
                control,
                events: Vec::new(),
            }),
            Err(wrong) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&stderr).unwrap_or_default();
                Err(format!("QEMU, {name}: {wrong}; it said: {said}"))
            }
        }
    }

    /// What its guest has said is there.
    pub(super) fn console(&self) -> PathBuf {
        self.console.clone()
    }

    /// What it and its guest said last.
    pub(super) fn last_words(&self) -> String {
        let read = |path: &Path| fs::read(path).map_or_else(|e| e.to_string(), |said| tail(&said));
        format!("QEMU said: {}; its guest: {}", read(&self.stderr), read(&self.console))
    }

    /// Executes a command; its result.
    ///
    /// # Errors
    /// A sentence: the command failed, or there was no answer.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        execute(&mut self.control, &mut self.events, command, arguments)
    }

    /// Those that came until now are of no interest.
    pub(super) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Waits for an event; its time in seconds, by the host's clock.
    ///
    /// # Errors
    /// A sentence: it did not come.
    pub(super) fn wait_event(&mut self, name: &str) -> Result<f64, String> {
        loop {
            if let Some(event) = self.events.iter().find(|event| event["event"] == name) {
                let part = |key: &str| event["timestamp"][key].as_f64().unwrap_or_default();
                return Ok(part("seconds") + part("microseconds") / 1e6);
            }
            let more = read(&mut self.control).map_err(|e| format!("QEMU, the event {name}: {e}"))?;
            self.events.push(more);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines.
fn tail(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n    ")
}

fn greet(socket: &Path) -> Result<BufReader<UnixStream>, String> {
    let begun = Instant::now();
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > LIMIT => return Err(format!("its control socket: {error}")),
            Err(_) => std::thread::sleep(LOOK),
        }
    };
    stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
    let mut control = BufReader::new(stream);
    read(&mut control)?;
    execute(&mut control, &mut Vec::new(), "qmp_capabilities", &json!({}))?;
    Ok(control)
}

fn execute(
    control: &mut BufReader<UnixStream>,
    events: &mut Vec<Value>,
    command: &str,
    arguments: &Value,
) -> Result<Value, String> {
    let request = json!({ "execute": command, "arguments": arguments });
    writeln!(control.get_mut(), "{request}").map_err(|e| format!("{command}: {e}"))?;
    loop {
        let mut answer = read(control).map_err(|e| format!("{command}: {e}"))?;
        if !answer["error"].is_null() {
            return Err(format!("{command}: {}", answer["error"]));
        }
        // Events come in between.
        match answer.get_mut("return") {
            Some(result) => return Ok(result.take()),
            None => events.push(answer),
        }
    }
}

fn read(control: &mut BufReader<UnixStream>) -> Result<Value, String> {
    let mut line = String::new();
    match control.read_line(&mut line) {
        Ok(0) => Err("it has ended".to_owned()),
        Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{line:?}: {e}")),
        Err(error) => Err(error.to_string()),
    }
}
