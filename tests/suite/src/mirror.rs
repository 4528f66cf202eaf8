//! Private disks: each host has an image of its own, and a backup that joins is brought level. The key-value guest keeps its
//! log there; what it acknowledges is stable.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ftvm_demo::client::Client;
use ftvm_lab::kv::{GUEST_IP, GUEST_MAC, Network, PORT};
use ftvm_lab::kvm_test;
use ftvm_lab::pair::{Side, Site, free_address, is_live, limit, wait};
use ftvm_roles::event::Event;

/// The least that kv takes is 17 MiB.
const DISK_BYTES: usize = 18 << 20;
/// Keys that the client writes to in turn.
const KEYS: usize = 40;
/// Acknowledged writes in each life.
const WRITES: u64 = 60;

/// Two hosts with an image and a cable each.
struct Hosts<'a> {
    site: &'a Site,
    network: &'a Network,
    addresses: [SocketAddr; 2],
    cables: [String; 2],
}

impl<'a> Hosts<'a> {
    fn new(site: &'a Site, network: &'a Network) -> Self {
        Hosts {
            site,
            network,
            addresses: [site.address, free_address()],
            cables: ["a", "b"].map(|name| network.plug(name)),
        }
    }

    fn image(&self, host: usize) -> std::path::PathBuf {
        self.site.path(["a.img", "b.img"][host])
    }

    fn disk(&self, host: usize) -> String {
        format!("path={},direct=off,private=on", self.image(host).display())
    }

    fn primary(&self, name: &str, host: usize, disk: &str) -> Side {
        let cmdline = format!("ip={GUEST_IP}/24 port={PORT} appendfsync=always");
        let net = format!("{},mac={GUEST_MAC}", self.cables[host]);
        let guest = ["--kernel", "builtin:kv", "--cmdline", &cmdline];
        self.site.primary(name, &guest, &["--disk", disk, "--net", &net])
    }

    /// A standby of whoever lives on the other host.
    fn standby(&self, name: &str, host: usize, disk: &str) -> Side {
        let (own, peer) = (self.addresses[host].to_string(), self.addresses[1 - host].to_string());
        let role = ["--standby", "--allow-same-host", "--listen", &own, "--peer", &peer];
        self.site.start(
            name,
            &[&role[..], &["--disk", disk, "--net", &self.cables[host]]].concat(),
        )
    }

    fn client(&self) -> Client {
        self.network.client("client", KEYS, 4, Duration::from_millis(20))
    }
}

/// Waits until the client has so many more writes acknowledged.
fn more_writes(client: &Client) {
    let before = client.progress().acked_writes;
    wait("writes", limit(15), || {
        let progress = client.progress();
        assert!(!progress.ended, "the client ended: {progress:?}");
        (progress.acked_writes >= before + WRITES).then_some(())
    });
}

/// Kills who lives; the other goes on.
fn fail_over(from: &mut Side, to: &Side, client: &Client) {
    from.signal("KILL");
    from.wait(limit(5));
    to.wait_event("go-live", 1, limit(10), is_live);
    more_writes(client);
}

fn refused(side: &mut Side, words: &str) {
    assert_eq!(side.code(limit(20)), 1, "{}", side.stderr());
    assert!(side.stderr().contains(words), "{}", side.stderr());
}

fn fill(image: &Path, byte: u8) {
    std::fs::write(image, vec![byte; DISK_BYTES]).unwrap();
}

kvm_test! {
    /// Primary with a blank image, backup with one full of garbage. The primary dies, comes back with its stale image, is
    /// brought level, and takes over when the other dies. After a clean end the images are equal, and only they start.
    fn kvm_mirror_survives_two_failures() {
        let site = Site::new();
        let network = Network::new(&site.path(""));
        let hosts = Hosts::new(&site, &network);
        let _ = network.plug("client");
        fill(&hosts.image(0), 0);
        fill(&hosts.image(1), 0xee);
        let mut first = hosts.primary("first", 0, &hosts.disk(0));
        site.wait_console("kv ready", limit(10));
        let shared = hosts.disk(1).replace("private=on", "private=off");
        let other = hosts.standby("other", 1, &shared);
        other.wait_event("refusal", 1, limit(10), |event| {
            matches!(event, Event::StandingBy { why } if why.contains("private on the primary"))
        });
        drop(other);
        let mut second = hosts.standby("second", 1, &hosts.disk(1));
        let client = hosts.client();
        first.wait_protected();
        more_writes(&client);
        fail_over(&mut first, &second, &client);
        let mut third = hosts.standby("third", 0, &hosts.disk(0));
        second.wait_protected_again(limit(20));
        more_writes(&client);
        fail_over(&mut second, &third, &client);
        let mut fourth = hosts.standby("fourth", 1, &hosts.disk(1));
        third.wait_protected_again(limit(20));
        more_writes(&client);
        // The client's writes go on until the end.
        let report = client.finish().unwrap();
        assert!(report.connection_survived(), "{:?}", report.ending);
        assert_eq!((report.tally.lost_writes, report.tally.verified_keys), (0, KEYS as u64));
        third.signal("TERM");
        for side in [&mut third, &mut fourth] {
            assert_eq!(side.code(limit(20)), 0, "{}", side.stderr());
        }
        let [a, b] = [0, 1].map(|host| std::fs::read(hosts.image(host)).unwrap());
        assert!(a == b, "the images differ, first at {:?}", a.iter().zip(&b).position(|(a, b)| a != b));
        // An image that nobody knows is not the guest's newest; the backup's is, and has everything.
        fill(&site.path("c.img"), 0);
        let unknown = format!("path={},direct=off,private=on", site.path("c.img").display());
        refused(&mut hosts.primary("unknown", 1, &unknown), "not known to hold the guest's newest data");
        let mut last = hosts.primary("last", 1, &hosts.disk(1));
        site.wait_console(&format!("kv: {KEYS} keys"), limit(10));
        last.signal("TERM");
        assert_eq!(last.code(limit(20)), 0, "{}", last.stderr());
        // Since then the other one's is older.
        refused(&mut hosts.primary("older", 0, &hosts.disk(0)), "not known to hold the guest's newest data");
    }
}
