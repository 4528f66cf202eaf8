//! The user's terminal: raw while a guest has it, with one way out.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::console::ConsoleError;

/// Ctrl-A, the key that begins a command to `ftvm` (as in QEMU's `-nographic`).
const ESCAPE: u8 = 0x01;

/// A raw terminal. Dropping it restores the settings.
#[derive(Debug)]
pub(super) struct RawMode {
    stdin: Stdin,
    saved: Termios,
}

impl RawMode {
    /// Makes standard input raw: every key reaches the guest, Ctrl-C included. Output keeps its processing, so that
    /// messages of `ftvm` itself look right. `None` where there is no terminal, or where it belongs to another job
    /// (changing it would stop this process, SIGTTOU).
    pub(super) fn enter() -> Result<Option<RawMode>, ConsoleError> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin) != Ok(getpgrp()) {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin).map_err(|errno| failed("read the terminal's settings", errno))?;
        let raw = raw_settings(&saved);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(|errno| failed("make the terminal raw", errno))?;
        Ok(Some(RawMode { stdin, saved }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(errno) = tcsetattr(self.stdin.as_fd(), SetArg::TCSADRAIN, &self.saved) {
            tracing::warn!("cannot restore the terminal ({errno}): `reset` does");
        }
    }
}

fn raw_settings(saved: &Termios) -> Termios {
    let mut raw = saved.clone();
    cfmakeraw(&mut raw);
    raw.output_flags |= saved.output_flags & OutputFlags::OPOST;
    raw
}

fn failed(what: &'static str, errno: Errno) -> ConsoleError {
    ConsoleError::Io {
        what,
        source: errno.into(),
    }
}

/// Whether the last key was [`ESCAPE`], across reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Keys {
    #[default]
    Plain,
    Escaped,
}

/// What typed bytes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// For the guest; may be empty.
    Text(Vec<u8>),
    /// For the guest, and then Ctrl-A x: the user wants out.
    Quit(Vec<u8>),
}

impl Keys {
    /// Takes typed bytes: Ctrl-A x quits, Ctrl-A twice or Ctrl-A a is one Ctrl-A, any other key after it is dropped.
    pub(super) fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (std::mem::take(self), byte) {
                (Keys::Plain, ESCAPE) => *self = Keys::Escaped,
                (Keys::Plain, _) => text.push(byte),
                (Keys::Escaped, b'x') => return Typed::Quit(text),
                (Keys::Escaped, b'a' | ESCAPE) => text.push(ESCAPE),
                (Keys::Escaped, _) => {}
            }
        }
        Typed::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    #[test]
    fn ctrl_a_x_quits_even_across_reads() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ab\x01"), Typed::Text(b"ab".to_vec()));
        assert_eq!(keys.typed(b"xcd"), Typed::Quit(Vec::new()));
        assert_eq!(Keys::default().typed(b"ab\x01xcd"), Typed::Quit(b"ab".to_vec()));
    }

    #[test]
    fn other_keys_reach_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"x\x03\x1a\xff"), Typed::Text(b"x\x03\x1a\xff".to_vec()));
        assert_eq!(keys.typed(b"\x01\x01x"), Typed::Text(b"\x01x".to_vec()));
        assert_eq!(keys.typed(b"\x01ax"), Typed::Text(b"\x01x".to_vec()));
        assert_eq!(
            keys.typed(b"\x01qx"),
            Typed::Text(b"x".to_vec()),
            "an unknown command is dropped, not half sent"
        );
    }

    #[test]
    fn raw_means_no_signals_no_echo_but_processed_output() {
        let pty = openpty(None, None).expect("pty");
        let cooked = tcgetattr(&pty.slave).expect("settings");
        assert!(
            cooked
                .local_flags
                .contains(LocalFlags::ISIG | LocalFlags::ECHO | LocalFlags::ICANON)
        );
        let raw = raw_settings(&cooked);
        assert!(
            !raw.local_flags
                .intersects(LocalFlags::ISIG | LocalFlags::ECHO | LocalFlags::ICANON)
        );
        assert!(raw.output_flags.contains(OutputFlags::OPOST));
    }
}
