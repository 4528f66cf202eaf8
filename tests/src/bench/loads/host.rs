//! One of two emulated hosts with `ftvm run` in it, whose guest's console is typed on from here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm::roles::event::{Event, Protection, Stamped};

use crate::nested::{Capture, Host, Nic, Run, Running, Share, Streams};

/// How often what it says is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Reports of one host, in bytes: a line a second, for hours.
const REPORTS: usize = 1 << 22;
/// What the host and `ftvm` say, in bytes.
const SAID: usize = 1 << 18;
const LAST_LINES: usize = 30;
/// The guest's card.
const GUEST_MAC: &str = "52:54:00:07:00:02";

/// What both hosts have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// The guest's disk, which both hosts have as `/dev/vda`.
    pub(super) disk: PathBuf,
    /// The folder of the test-and-set, and of what is typed.
    pub(super) shared: PathBuf,
    pub(super) cmdline: String,
    pub(super) memory_mib: u32,
    pub(super) detection: Duration,
    pub(super) lease: Duration,
    /// How long a host may live.
    pub(super) limit: Duration,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Backup,
}

/// A running host.
#[derive(Debug)]
pub(super) struct LoadHost {
    side: Side,
    /// Ends the emulator when it is dropped.
    _running: Running,
    shared: PathBuf,
    typed: u32,
    reports: Capture,
    said: Capture,
}

impl LoadHost {
    /// Boots a host whose network card is plugged into the hub port of these sockets, and starts `ftvm run` in it.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) fn start(host: &Host, side: Side, common: &Common, hub: &Path, local: &Path) -> Result<Self, String> {
        let (reports, said) = (Capture::new(REPORTS), Capture::new(SAID));
        // Not busybox's shell: it would take its own `ip`, which knows no bridges.
        let mut run = Run::new(["bash", "-c", &script(side, common)]);
        run.programs = ["bash", "ip"].map(str::to_owned).to_vec();
        run.files = vec![
            (crate::ftvm()?, "/run/bin/ftvm".into()),
            (common.kernel.clone(), "/run/vmlinuz".into()),
            (common.initrd.clone(), "/run/initrd".into()),
        ];
        run.nics = vec![Nic {
            mac: [0x52, 0x54, 0, 7, 1, side as u8],
            local: local.to_owned(),
            remote: hub.to_owned(),
        }];
        run.disks = vec![common.disk.clone()];
        run.shares = vec![Share {
            here: common.shared.clone(),
            tag: "shared".to_owned(),
        }];
        run.timeout = common.limit;
        let streams = Streams {
            stdout: Box::new(reports.clone()),
            stderr: Box::new(said.clone()),
        };
        let running = host.start(&run, streams).map_err(|e| format!("{side:?}: {e}"))?;
        Ok(LoadHost {
            side,
            _running: running,
            shared: common.shared.clone(),
            typed: 0,
            reports,
            said,
        })
    }

    /// Types a line on the guest's console.
    ///
    /// # Errors
    /// If the shared folder cannot be written.
    pub(super) fn type_line(&mut self, line: &str) -> Result<(), String> {
        self.typed += 1;
        let (aside, file) = (
            self.shared.join("typing"),
            self.shared.join(format!("typed-{}", self.typed)),
        );
        fs::write(&aside, format!("{line}\n"))
            .and_then(|()| fs::rename(&aside, &file))
            .map_err(|e| format!("{}: {e}", file.display()))
    }

    /// Waits until the guest has said a line that begins with `start`; the rest of it.
    ///
    /// # Errors
    /// If that does not come in time; says what the host said last.
    pub(super) fn wait_line(&self, start: &str, limit: Duration) -> Result<String, String> {
        self.wait(&format!("{start:?} from the guest"), limit, || {
            rest_of_line(&self.said.text(), start)
        })
    }

    /// Waits until the guest is protected.
    ///
    /// # Errors
    /// As [`LoadHost::wait_line`].
    pub(super) fn wait_protected(&self, limit: Duration) -> Result<(), String> {
        self.wait("protection", limit, || self.is_protected().then_some(()))
    }

    /// Waits until the backup's execution is less than `lag` behind.
    ///
    /// # Errors
    /// As [`LoadHost::wait_line`].
    pub(super) fn wait_settled(&self, lag: Duration, limit: Duration) -> Result<(), String> {
        self.wait("level backup", limit, || {
            let last = self.events().into_iter().rev().find_map(|seen| match seen.event {
                Event::Traffic { lag_ns, .. } => Some(Duration::from_nanos(lag_ns)),
                _ => None,
            });
            last.is_some_and(|behind| behind < lag).then_some(())
        })
    }

    /// Whether the guest is protected now.
    pub(super) fn is_protected(&self) -> bool {
        let last = self.events().into_iter().rev().find_map(|seen| match seen.event {
            Event::State { protection, .. } => Some(protection),
            _ => None,
        });
        last == Some(Protection::Protected)
    }

    /// Everything `ftvm` has reported.
    pub(super) fn events(&self) -> Vec<Stamped> {
        let text = self.reports.text();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What it said last.
    pub(super) fn last_words(&self) -> String {
        format!(
            "\n  the {:?} said last:\n{}",
            self.side,
            self.said.last_lines(LAST_LINES)
        )
    }

    fn wait<T>(&self, what: &str, limit: Duration, found: impl Fn() -> Option<T>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            if let Some(found) = found() {
                return Ok(found);
            }
            if begun.elapsed() > limit {
                return Err(format!("no {what} within {limit:?}{}", self.last_words()));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What follows `start` on the last whole line that has it. Lines of `ftvm` itself may be mixed in before it.
fn rest_of_line(text: &str, start: &str) -> Option<String> {
    let at = text.rfind(start)? + start.len();
    let end = text[at..].find('\n')?;
    Some(text[at..at + end].trim().to_owned())
}

/// The host's command: network, shared folder, `ftvm run` with its reports on standard output and the guest's console on
/// standard error. Files `typed-1`, `typed-2` in the shared folder are typed, without a fork: the guest needs the host's
/// time.
fn script(side: Side, common: &Common) -> String {
    let Common {
        cmdline,
        memory_mib,
        detection,
        lease,
        ..
    } = common;
    let (own, role) = match side {
        Side::Primary => (
            "192.168.7.11",
            format!(
                "--primary --kernel /run/vmlinuz --initrd /run/initrd --memory {memory_mib}M --detection {} --lease {} \
                 --cmdline '{cmdline}'",
                detection.as_millis(),
                lease.as_millis()
            ),
        ),
        Side::Backup => ("192.168.7.12", "--backup --peer 192.168.7.11:7000".to_owned()),
    };
    let typist = match side {
        Side::Primary => {
            "n=1
while :; do
    if read -r line </shared/typed-$n; then echo \"$line\" >&4; n=$((n + 1)); else read -rt 0.2 -u 5; fi
done 2>/dev/null"
        }
        Side::Backup => ":",
    };
    format!(
        "exec 3>&1
mkdir -p /shared
mount -t virtiofs shared /shared || exit 1
ip link add br0 type bridge && ip link set br0 up && ip link set eth0 up master br0 || exit 1
ip tuntap add tap0 mode tap && ip link set tap0 up master br0 && ip addr add {own}/24 dev br0 || exit 1
mkfifo /run/keys /run/never && exec 4<>/run/keys 5<>/run/never || exit 1
ftvm run {role} --listen {own}:7000 --shared /shared --disk path=/dev/vda --net tap=tap0,mac={GUEST_MAC} \
         --console stdio --events /proc/self/fd/3 <&4 >&2 &
({typist}) &
wait %1
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_when_it_is_whole() {
        let text = "load 1 done 3 400\r\nINFO load 12 done 5 600\r\nload 13 done 7 8";
        assert_eq!(rest_of_line(text, "load 1 done").as_deref(), Some("3 400"));
        assert_eq!(rest_of_line(text, "load 12 done").as_deref(), Some("5 600"));
        assert_eq!(rest_of_line(text, "load 13 done"), None);
        assert_eq!(rest_of_line(text, "load 2 done"), None);
    }
}
