//! One of two nested hosts, with `ftvm run` in it: what it is told, what it reports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm::roles::event::{Event, Protection, Stamped};

use crate::nested::{Capture, Host, Nic, Run, Running, Share, Streams};

/// How often reports are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Reports of one host, in bytes: some lines a second.
const REPORTS: usize = 1 << 22;
/// What the host and `ftvm` say, in bytes.
const SAID: usize = 1 << 18;
const LAST_LINES: usize = 30;
/// The last line among the reports: the host's command has ended.
const OVER: &str = "over";

/// What both hosts have in common.
#[derive(Debug, Clone)]
pub struct Common {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The guest's disk, which both hosts have as `/dev/vda`.
    pub disk: PathBuf,
    /// The folder of the test-and-set.
    pub shared: PathBuf,
    pub cmdline: String,
    /// RAM of the guest in MiB.
    pub memory_mib: u32,
    pub detection: Duration,
    pub lease: Duration,
    /// How long a host may live.
    pub limit: Duration,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Primary,
    Backup,
}

impl Side {
    /// As the hosts and files are called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Backup => "backup",
        }
    }

    fn address(self) -> &'static str {
        match self {
            Side::Primary => "192.168.7.11",
            Side::Backup => "192.168.7.12",
        }
    }
}

/// A running host.
#[derive(Debug)]
pub struct FtHost {
    side: Side,
    running: Option<Running>,
    reports: Capture,
    said: Capture,
}

impl FtHost {
    /// Boots a host whose network card is plugged into the hub port of these sockets, and starts `ftvm run` in it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(host: &Host, side: Side, common: &Common, hub: &Path, local: &Path) -> Result<Self, String> {
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
        let running = host.start(&run, streams).map_err(|e| format!("{}: {e}", side.name()))?;
        Ok(FtHost {
            side,
            running: Some(running),
            reports,
            said,
        })
    }

    /// Pulls the plug: the emulator is killed, with all that it had not yet written.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Waits until its command has ended; its exit code.
    ///
    /// # Errors
    /// If the host does not end in time, or was killed before.
    pub fn wait(&mut self) -> Result<u8, String> {
        let running = self.running.take().ok_or("the host has been killed")?;
        let ended = running.wait().map_err(|e| format!("{}: {e}", self.side.name()))?;
        Ok(ended.code)
    }

    /// Everything `ftvm` has reported.
    #[must_use]
    pub fn events(&self) -> Vec<Stamped> {
        let text = self.reports.text();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// If it does not come in time; says what the host said last.
    pub fn wait_event(&self, what: &str, limit: Duration, wanted: impl Fn(&Event) -> bool) -> Result<Stamped, String> {
        let begun = Instant::now();
        loop {
            let found = self.events().into_iter().find(|event| wanted(&event.event));
            if let Some(event) = found {
                return Ok(event);
            }
            if begun.elapsed() > limit {
                return Err(format!(
                    "no {what} on the {} within {limit:?}{}",
                    self.side.name(),
                    self.last_words()
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until it is protected, or protects.
    ///
    /// # Errors
    /// As [`FtHost::wait_event`].
    pub fn wait_protected(&self, limit: Duration) -> Result<Stamped, String> {
        self.wait_event("protection", limit, |event| {
            matches!(
                event,
                Event::State {
                    protection: Protection::Protected,
                    ..
                }
            )
        })
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        format!(
            "\n  the {} said last:\n{}",
            self.side.name(),
            self.said.last_lines(LAST_LINES)
        )
    }

    /// Everything it said, the guest's console at the end included.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.text()
    }
}

/// The host's command: network, shared folder, `ftvm run` with its reports on standard output and the guest's console on
/// standard error. A file `stop` in the shared folder has the guest say its time and switch itself off.
fn script(side: Side, common: &Common) -> String {
    let Common {
        cmdline,
        memory_mib,
        detection,
        lease,
        ..
    } = common;
    let (own, peer) = (side.address(), Side::Primary.address());
    let role = match side {
        Side::Primary => format!(
            "--primary --kernel /run/vmlinuz --initrd /run/initrd --memory {memory_mib}M --rng --detection {} --lease {} \
             --cmdline '{cmdline}'",
            detection.as_millis(),
            lease.as_millis()
        ),
        Side::Backup => format!("--backup --peer {peer}:7000 --rng"),
    };
    let mac = super::GUEST_MAC;
    format!(
        "exec 3>&1
trap 'echo {OVER} >&3' EXIT
mkdir -p /shared
mount -t virtiofs shared /shared || exit 1
ip link add br0 type bridge && ip link set br0 up && ip link set eth0 up master br0 || exit 1
ip tuntap add tap0 mode tap && ip link set tap0 up master br0 && ip addr add {own}/24 dev br0 || exit 1
mkfifo /run/keys && exec 4<>/run/keys || exit 1
ftvm run {role} --listen {own}:7000 --shared /shared --disk path=/dev/vda --net tap=tap0,mac={mac} \
         --console stdio --events /proc/self/fd/3 <&4 >&2 &
(until [ -e /shared/stop ]; do sleep 1; done; echo 'echo time $(date +%s); poweroff' >&4) &
wait %1
"
    )
}
