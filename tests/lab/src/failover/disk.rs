//! The guest's disk after its power-off, as programs of this machine see it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Where Redis keeps its append-only file (`guest-images/linux/root/redis.conf`).
const APPEND_ONLY: &str = "/var/lib/redis/appendonlydir";

/// Whether the file system is clean, as its own checker sees it.
pub(super) fn check(disk: &Path) -> Result<(), String> {
    let output = run(Command::new("e2fsck").args(["-f", "-n"]).arg(disk))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "the file system is not clean: {}",
        String::from_utf8_lossy(&output.stdout).trim()
    ))
}

/// Whether the append-only file on the disk has the writes 1 to `acked`: what a Redis that starts from this disk knows.
/// Redis in the guest answers from memory, so only this shows that no write to the disk was lost.
pub(super) fn check_writes(disk: &Path, acked: u64, folder: &Path) -> Result<(), String> {
    let request = format!("rdump {APPEND_ONLY} {}", folder.display());
    let output = run(Command::new("debugfs").args(["-R", &request]).arg(disk))?;
    let here = folder.join(Path::new(APPEND_ONLY).file_name().unwrap_or_default());
    let entries = fs::read_dir(&here).map_err(|e| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "{APPEND_ONLY} cannot be read from the disk: {e}; debugfs said: {}",
            said.trim()
        )
    })?;
    let mut found = vec![false; usize::try_from(acked).map_err(|e| e.to_string())?];
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        note_writes(&bytes, &mut found);
    }
    let missing = found.iter().filter(|found| !**found).count();
    match found.iter().position(|found| !found) {
        None => Ok(()),
        Some(first) => Err(format!(
            "of {acked} acknowledged writes {missing} are not on the disk, first number {}",
            first + 1
        )),
    }
}

/// Notes the numbers of the writes in a part of the append-only file (`ftvm_demo::client`: write N sets `value:N`).
fn note_writes(bytes: &[u8], found: &mut [bool]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let number = line.strip_prefix(b"value:").and_then(|rest| rest.strip_suffix(b"\r"));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        if let Some(found) = number.and_then(|number| found.get_mut(number.checked_sub(1)?)) {
            *found = true;
        }
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output();
    output.map_err(|e| {
        let name = command.get_program().to_string_lossy();
        format!("cannot run {name}: {e}; tests/install-deps installs it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_found_in_the_append_only_file() {
        let file =
            b"*3\r\n$3\r\nSET\r\n$5\r\nkey:1\r\n$7\r\nvalue:1\r\n*3\r\n$3\r\nSET\r\n$5\r\nkey:3\r\n$7\r\nvalue:3\r\n";
        let mut found = [false; 3];
        note_writes(file, &mut found);
        assert_eq!(found, [true, false, true]);
        let mut found = [false; 2];
        note_writes(b"value:0\r\nvalue:3\r\nvalue:2\nvalue:x\r\n\0\0\0value:1", &mut found);
        assert_eq!(found, [false; 2], "neither out of range nor cut short");
    }
}
