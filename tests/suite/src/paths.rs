//! Hosts that lose the way to the guest's disk, or whose disk does not answer, with real processes (PROTOCOL 30, 32). The
//! key-value guest keeps its log there, and ends itself when it is told of an error.

use std::time::Duration;

use ftvm_demo::client::Client;
use ftvm_lab::dm::{MODULES, PROGRAM, Way, disk};
use ftvm_lab::kv::{GUEST_IP, GUEST_MAC, Network, PORT};
use ftvm_lab::kvm_test;
use ftvm_lab::pair::{Side, Site, ftvm, is_live, limit, wait};
use ftvm_roles::event::{Event, Stamped};
use ftvm_roles::exit_code::ExitCode;

/// Keys that the client writes to in turn.
const KEYS: usize = 20;
/// Acknowledged writes that show that the guest goes on, one every 20 ms: more than two seconds, in which a new backup has said
/// what it reaches.
const WRITES: u64 = 120;

/// Two hosts with a cable and a way to the disk each.
struct Hosts {
    network: Network,
    site: Site,
    ways: [Way; 2],
    cables: [String; 2],
}

impl Hosts {
    fn new(number: u8, names: [&str; 2]) -> Self {
        let site = Site::new();
        let network = Network::new(&site.path(""));
        Hosts {
            ways: disk(number, names),
            cables: ["a", "b"].map(|name| network.plug(name)),
            network,
            site,
        }
    }

    fn devices(&self, host: usize) -> [String; 4] {
        let disk = format!("path={}", self.ways[host].device.display());
        let net = format!("{},mac={GUEST_MAC}", self.cables[host]);
        ["--disk".to_owned(), disk, "--net".to_owned(), net]
    }

    fn primary(&self, more: &[&str]) -> Side {
        let cmdline = format!("ip={GUEST_IP}/24 port={PORT} appendfsync=always");
        let guest = ["--kernel", "builtin:kv", "--cmdline", &cmdline];
        let devices = self.devices(0);
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        self.site.primary("primary", &guest, &[&devices[..], more].concat())
    }

    fn backup(&self) -> Side {
        let devices = self.devices(1);
        self.site
            .backup("backup", self.site.address, &devices.each_ref().map(String::as_str))
    }

    fn client(&self) -> Client {
        let _ = self.network.plug("client");
        self.network.client("client", KEYS, 2, Duration::from_millis(20))
    }
}

/// Waits until the client has more writes acknowledged.
fn more_writes(client: &Client) {
    let before = client.progress().acked_writes;
    wait("writes", limit(15), || {
        let progress = client.progress();
        assert!(!progress.ended, "the client ended: {progress:?}");
        (progress.acked_writes >= before + WRITES).then_some(())
    });
}

/// Everything that was acknowledged is there, and the client has noticed nothing.
fn check(client: Client) {
    let report = client.finish().expect("a report");
    assert!(report.connection_survived(), "{:?}", report.ending);
    assert_eq!(
        (report.tally.lost_writes, report.tally.verified_keys),
        (0, KEYS as u64),
        "{:?}",
        report.tally
    );
    println!("the client's longest gap: {} ms", report.client_gap_ms());
}

kvm_test! {
    modules = MODULES, programs = [PROGRAM];
    /// A primary that loses the way to its disk in the middle of its guest's writes hands over to a backup that has it still,
    /// and the guest is told of no error. Where the backup has lost its own before, the guest is told at once.
    fn kvm_paths_lost_disk() {
        let hosts = Hosts::new(0, ["lost-a", "lost-b"]);
        let mut primary = hosts.primary(&[]);
        hosts.site.wait_console("kv ready", limit(10));
        let backup = hosts.backup();
        let client = hosts.client();
        primary.wait_protected();
        more_writes(&client);
        hosts.ways[0].lose();
        let lost = primary.wait_event("loss of the disk", 1, limit(5), |event| matches!(event, Event::PathLost { .. }));
        assert!(matches!(lost.event, Event::PathLost { hands_over: true, .. }), "{lost:?}");
        assert_eq!(primary.code(limit(10)), i32::from(ExitCode::HandedOver.number()), "{}", primary.stderr());
        let live = backup.wait_event("go-live", 1, limit(10), is_live);
        assert!(matches!(live.event, Event::WentLive { reissued: 1.., .. }), "what failed is issued again: {live:?}");
        println!("{} ms from the first error to the new life", (live.at_ns - lost.at_ns) / 1_000_000);
        more_writes(&client);
        check(client);
        assert!(!hosts.site.console().contains("kv: disk"), "{}", hosts.site.console());
        drop(backup);

        let hosts = Hosts::new(1, ["both-a", "both-b"]);
        hosts.ways[1].lose();
        let mut primary = hosts.primary(&[]);
        hosts.site.wait_console("kv ready", limit(10));
        let mut backup = hosts.backup();
        primary.wait_protected();
        let client = hosts.client();
        hosts.ways[0].lose();
        let lost = primary.wait_event("loss of the disk", 1, limit(5), |event| matches!(event, Event::PathLost { .. }));
        assert!(matches!(lost.event, Event::PathLost { hands_over: false, .. }), "{lost:?}");
        for side in [&mut primary, &mut backup] {
            assert_eq!(side.code(limit(10)), i32::from(ExitCode::GuestFailed.number()), "{}", side.stderr());
        }
        drop(client);
        hosts.site.wait_console("kv: disk", limit(1));
        assert!(!backup.events().iter().any(|stamped| is_live(&stamped.event)));
    }
}

kvm_test! {
    modules = MODULES, programs = [PROGRAM];
    /// A disk that does not answer a read: the guest goes to the backup, whose way to the disk works, and the old primary ends as
    /// soon as it can.
    fn kvm_paths_silent_read() {
        let hosts = Hosts::new(0, ["read-a", "read-b"]);
        // The guest reads its log when it starts.
        let silence = hosts.ways[0].silence();
        let mut primary = hosts.primary(&[]);
        let silence = silence; // ends before the primary does
        let backup = hosts.backup();
        primary.wait_protected();
        // It may have been said before, when there was no backup yet.
        let said = primary.wait_event("handover", 1, limit(10), |event| {
            matches!(event, Event::DiskSilent { hands_over: true, .. })
        });
        assert!(matches!(said.event, Event::DiskSilent { write: false, .. }), "{said:?}");
        let live = backup.wait_event("go-live", 1, limit(10), is_live);
        hosts.site.wait_console("kv ready", limit(10));
        println!("{} ms from the handover to the new life", (live.at_ns - said.at_ns) / 1_000_000);
        // Its thread is in the kernel until the disk answers.
        drop(silence);
        assert_eq!(primary.code(limit(10)), i32::from(ExitCode::HandedOver.number()), "{}", primary.stderr());
        let suspected = |event: &Stamped| matches!(event.event, Event::Suspected { .. });
        assert!(!primary.events().iter().any(suspected), "{:?}", primary.events());
    }
}

kvm_test! {
    modules = MODULES, programs = [PROGRAM];
    /// A disk that does not answer a write: the write may land at any time, so the primary says so, keeps its guest, and goes on
    /// when it has landed.
    fn kvm_paths_silent_write() {
        let hosts = Hosts::new(0, ["write-a", "write-b"]);
        let socket = hosts.site.path("control");
        let socket = socket.to_str().expect("UTF-8");
        let primary = hosts.primary(&["--control", socket]);
        let backup = hosts.backup();
        let client = hosts.client();
        primary.wait_protected();
        more_writes(&client);
        let silence = hosts.ways[0].silence();
        let said = primary.wait_event("silence", 1, limit(10), |event| matches!(event, Event::DiskSilent { .. }));
        assert!(matches!(said.event, Event::DiskSilent { write: true, hands_over: false, .. }), "{said:?}");
        let (code, stdout, stderr) = ftvm(&hosts.site.path(""), &["status", "--control", socket]);
        assert!(code == 0 && stdout.contains("disk 0          does not answer"), "{stdout}{stderr}");
        drop(silence);
        primary.wait_event("answer", 1, limit(10), |event| matches!(event, Event::DiskAnswers { disk: 0 }));
        more_writes(&client);
        check(client);
        assert!(!backup.events().iter().any(|stamped| is_live(&stamped.event)), "the guest has stayed");
    }
}
