//! A nested host with `ftvm run` in it, one of several that have a disk, a folder and a network in common: what it is
//! told, what it reports. The chain of failovers and the loads are made of these.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ftvm_demo::hub::HubPort;
use ftvm_roles::event::{Event, Protection, Stamped};
use vmm::cli::DiskReadsArg;

use crate::nested::{Capture, Host, Nic, Run, Running, Share, Streams};

/// How often reports are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Reports of one host, in bytes: some lines a second.
const REPORTS: usize = 1 << 22;
/// What the host and `ftvm` say, in bytes.
const SAID: usize = 1 << 18;
const LAST_LINES: usize = 30;
/// The last line among the reports: the host's command has ended.
const OVER: &str = "over";
/// Port of `ftvm` on every host.
const FTVM_PORT: u16 = 7000;
/// The guest's card.
pub const GUEST_MAC: &str = "52:54:00:07:00:02";

/// What the command line says of a pair of emulated hosts.
#[derive(Args, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Detection time in ms: emulated hosts stand still for seconds now and then.
    #[arg(long, value_name = "MS", default_value_t = 6000)]
    pub detection: u64,
    /// Lease in ms.
    #[arg(long, value_name = "MS", default_value_t = 4000)]
    pub lease: u64,
    /// RAM of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 160)]
    pub memory: u32,
    /// Processors of an emulated host. The emulator has one thread for all of them: with two, a wakeup
    /// from one to the other takes 2.5 ms in the median, with one 0.3 (measured: the vCPU's thread wakes
    /// the link's).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub processors: u32,
    /// Where the backup gets what the guest reads from its disk.
    #[arg(long, value_enum, default_value = "log")]
    pub disk_reads: DiskReadsArg,
}

/// What all hosts have in common.
#[derive(Debug, Clone)]
pub struct Common {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The guest's disk, which all hosts have as `/dev/vda`.
    pub disk: PathBuf,
    /// The folder of the test-and-set, `/shared` in every host.
    pub shared: PathBuf,
    /// The guest's command line.
    pub cmdline: String,
    /// Further words for `ftvm run`.
    pub arguments: &'static str,
    /// A command in every host that writes on descriptor 4 what is to be typed on the guest's console.
    pub typist: String,
    pub terms: Terms,
    /// How long a host may live.
    pub limit: Duration,
}

/// How a backup came to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// From the handshake to the backup's holding everything.
    pub took: Duration,
    /// Of the state that travelled.
    pub bytes: u64,
}

/// A running host. Host `number` has the address 192.168.7.(10 + number).
#[derive(Debug)]
pub struct FtHost {
    number: u8,
    running: Option<Running>,
    reports: Capture,
    said: Capture,
}

impl FtHost {
    /// Boots a host at `port` of a hub, and starts `ftvm run` in it: with the guest, or as the backup of host `of`, which
    /// may go live a while later.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(host: &Host, port: &HubPort, number: u8, of: Option<u8>, common: &Common) -> Result<Self, String> {
        let (reports, said) = (Capture::new(REPORTS), Capture::new(SAID));
        // Not busybox's shell: it would take its own `ip`, which knows no bridges.
        let mut run = Run::new(["bash", "-c", &script(number, of, common)]);
        run.programs = ["bash", "ip"].map(str::to_owned).to_vec();
        run.files = vec![(crate::ftvm()?, "/run/bin/ftvm".into())];
        if of.is_none() {
            run.files.push((common.kernel.clone(), "/run/vmlinuz".into()));
            run.files.push((common.initrd.clone(), "/run/initrd".into()));
        }
        run.nics = vec![Nic {
            mac: [0x52, 0x54, 0, 7, 1, number],
            local: port.peer.clone(),
            remote: port.hub.clone(),
        }];
        run.disks = vec![common.disk.clone()];
        run.shares = vec![Share {
            here: common.shared.clone(),
            tag: "shared".to_owned(),
        }];
        run.timeout = common.limit;
        run.processors = common.terms.processors;
        let streams = Streams {
            stdout: Box::new(reports.clone()),
            stderr: Box::new(said.clone()),
        };
        let running = host.start(&run, streams).map_err(|e| format!("host {number}: {e}"))?;
        Ok(FtHost {
            number,
            running: Some(running),
            reports,
            said,
        })
    }

    /// Which one.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
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
        let ended = running.wait().map_err(|e| format!("host {}: {e}", self.number))?;
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

    /// Waits until `found` finds something in what has been reported.
    ///
    /// # Errors
    /// If it does not within `limit`, or the host's command ends; says what the host said last.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        found: impl Fn(&[Stamped]) -> Option<T>,
    ) -> Result<T, String> {
        self.wait_until(what, limit, || found(&self.events()))
    }

    /// Waits until `found` finds something in what the host has said.
    ///
    /// # Errors
    /// As [`FtHost::wait_for`].
    pub fn wait_said<T>(&self, what: &str, limit: Duration, found: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        self.wait_until(what, limit, || found(&self.said.text()))
    }

    fn wait_until<T>(&self, what: &str, limit: Duration, found: impl Fn() -> Option<T>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            // In this order: what was reported before the end counts.
            let over = self.reports.text().lines().last() == Some(OVER);
            if let Some(found) = found() {
                return Ok(found);
            }
            let why = match over {
                true => "its command has ended".to_owned(),
                false if begun.elapsed() > limit => format!("within {limit:?}"),
                false => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            return Err(format!("no {what} on host {}: {why}{}", self.number, self.last_words()));
        }
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        format!(
            "\n  host {} said last:\n{}",
            self.number,
            self.said.last_lines(LAST_LINES)
        )
    }

    /// Everything it said, the guest's console at the end included.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.text()
    }
}

/// Whether the guest lives here: when it did not start here, the number of outputs and disk requests that were repeated.
#[must_use]
pub fn went_live(events: &[Stamped]) -> Option<(u64, u64)> {
    events.iter().find_map(|event| match event.event {
        Event::WentLive {
            reissued, reemitted, ..
        } => Some((reissued, reemitted)),
        _ => None,
    })
}

/// The host on which the guest lives has a backup, now; and how it got that.
#[must_use]
pub fn protected(events: &[Stamped]) -> Option<Join> {
    let mut starting = None;
    let mut bytes = 0;
    let mut join = None;
    for Stamped { at_ns, event } in events {
        match event {
            Event::State { protection, .. } => match protection {
                Protection::Starting => starting = Some(*at_ns),
                Protection::Protected => {
                    join = starting.map(|from| Join {
                        took: Duration::from_nanos(at_ns.saturating_sub(from)),
                        bytes,
                    });
                }
                Protection::NotProtected | Protection::Deciding => (starting, join) = (None, None),
            },
            Event::StateRecord { bytes: record } => bytes = *record,
            // What came before was the backup's view.
            Event::WentLive { .. } | Event::Suspected { .. } | Event::Ending { .. } => (starting, join) = (None, None),
            _ => {}
        }
    }
    join
}

/// Of the last moments of a failover, in milliseconds: the time from the suspicion to going live.
#[must_use]
pub fn takeover_ms(events: &[Stamped]) -> Option<u64> {
    let at = |wanted: fn(&Event) -> bool| {
        events
            .iter()
            .find(|event| wanted(&event.event))
            .map(|event| event.at_ns)
    };
    let suspected = at(|event| matches!(event, Event::Suspected { .. }))?;
    let live = at(|event| matches!(event, Event::WentLive { .. }))?;
    Some(live.saturating_sub(suspected) / 1_000_000)
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, 10 + number)
}

/// The host's command: network, shared folder, `ftvm run` with its reports on standard output and the guest's console on
/// standard error.
fn script(number: u8, of: Option<u8>, common: &Common) -> String {
    let Common {
        cmdline,
        arguments,
        typist,
        terms,
        ..
    } = common;
    let own = address(number);
    let role = match of {
        None => format!(
            "--primary --kernel /run/vmlinuz --initrd /run/initrd --memory {}M --detection {} --lease {} \
             --disk-reads {} --cmdline '{cmdline}'",
            terms.memory,
            terms.detection,
            terms.lease,
            terms.disk_reads.name()
        ),
        Some(of) => format!("--backup --peer {}:{FTVM_PORT}", address(of)),
    };
    format!(
        "exec 3>&1
trap 'echo {OVER} >&3' EXIT
mkdir -p /shared
mount -t virtiofs shared /shared || exit 1
ip link add br0 type bridge && ip link set br0 up && ip link set eth0 up master br0 || exit 1
ip tuntap add tap0 mode tap && ip link set tap0 up master br0 && ip addr add {own}/24 dev br0 || exit 1
mkfifo /run/keys && exec 4<>/run/keys || exit 1
ftvm run {role} {arguments} --listen {own}:{FTVM_PORT} --shared /shared --disk path=/dev/vda \
         --net tap=tap0,mac={GUEST_MAC} --console stdio --events /proc/self/fd/3 <&4 >&2 &
({typist}
) &
wait %1
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, event: Event) -> Stamped {
        Stamped {
            at_ns: seconds * 1_000_000_000,
            event,
        }
    }

    fn state(protection: Protection) -> Event {
        Event::State {
            protection,
            why: String::new(),
        }
    }

    /// A backup that goes live and gets a backup itself.
    fn survivor() -> Vec<Stamped> {
        let suspected = Event::Suspected { reason: String::new() };
        let live = Event::WentLive {
            generation: 2,
            reissued: 3,
            reemitted: 4,
        };
        vec![
            at(0, Event::Following { generation: 1 }),
            at(1, Event::StateRecord { bytes: 5 }),
            at(2, state(Protection::Protected)),
            at(10, suspected),
            at(14, live),
            at(20, state(Protection::Starting)),
            at(21, Event::StateRecord { bytes: 7 }),
            at(23, state(Protection::Protected)),
        ]
    }

    #[test]
    fn a_join_is_read_from_the_events_of_the_life_it_belongs_to() {
        let events = survivor();
        let join = Join {
            took: Duration::from_secs(3),
            bytes: 7,
        };
        assert_eq!(protected(&events), Some(join));
        assert_eq!(
            protected(&events[..7]),
            None,
            "its own time as a backup is another matter"
        );
        assert_eq!((went_live(&events[..4]), went_live(&events)), (None, Some((3, 4))));
        assert_eq!((takeover_ms(&events[..4]), takeover_ms(&events)), (None, Some(4000)));
    }

    #[test]
    fn a_pair_that_comes_apart_is_not_protected() {
        for event in [
            state(Protection::NotProtected),
            state(Protection::Deciding),
            Event::Suspected { reason: String::new() },
        ] {
            let mut events = survivor();
            events.push(at(30, event));
            assert_eq!(protected(&events), None);
            events.push(at(40, state(Protection::Starting)));
            events.push(at(42, state(Protection::Protected)));
            assert_eq!(protected(&events).map(|join| join.took), Some(Duration::from_secs(2)));
        }
    }

    #[test]
    fn every_host_has_an_address_of_its_own_and_is_told_of_the_survivor() {
        let common = Common {
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            disk: PathBuf::new(),
            shared: PathBuf::new(),
            cmdline: "quiet".to_owned(),
            arguments: "--rng",
            typist: ":".to_owned(),
            terms: Terms {
                detection: 6000,
                lease: 4000,
                memory: 160,
                processors: 1,
                disk_reads: DiskReadsArg::Log,
            },
            limit: Duration::from_secs(1),
        };
        let first = script(1, None, &common);
        assert!(
            first.contains("--primary") && first.contains("--listen 192.168.7.11:7000"),
            "{first}"
        );
        let third = script(3, Some(2), &common);
        assert!(
            third.contains("--backup --peer 192.168.7.12:7000 --rng --listen"),
            "{third}"
        );
        assert!(third.contains("--listen 192.168.7.13:7000"), "{third}");
    }
}
