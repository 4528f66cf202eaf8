//! Pairs of real processes: deaths, sleeps, clean ends and mistakes. The guest `pulse` writes numbered lines to a console
//! file that both sides share; a lost, repeated or reordered output would show there.

use std::any::Any;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use ftvm_demo::relay::{Mode, Relay};
use ftvm_lab::pair::{Side, Site, detection, free_address, is_live, is_protected, limit};
use ftvm_lab::{kvm_test, scaled};
use ftvm_roles::event::{Event, Protection};

const PULSE: [&str; 2] = ["--kernel", "builtin:pulse"];

fn pulse(ticks: u32) -> Vec<String> {
    [PULSE[0], PULSE[1], "--cmdline"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("ticks={ticks}")])
        .collect()
}

/// A protected pair, some lines old.
fn protected(site: &Site, ticks: u32, backup: &[&str]) -> (Side, Side) {
    let guest = pulse(ticks);
    let primary = site.primary("primary", &guest.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    let backup = site.backup("backup", site.address, backup);
    primary.wait_protected();
    let lines = site.console().lines().count() + 10;
    site.wait_console(&format!("pulse {lines}\n"), limit(20));
    (primary, backup)
}

/// Every line once and in order, up to `ticks`.
fn assert_whole(site: &Site, ticks: u32) {
    let expected: String = (1..=ticks).map(|n| format!("pulse {n}\n")).collect();
    assert_eq!(site.console(), expected);
}

fn is_alone(event: &Event) -> bool {
    matches!(
        event,
        Event::State {
            protection: Protection::NotProtected,
            ..
        }
    )
}

fn has(side: &Side, wanted: impl Fn(&Event) -> bool) -> bool {
    side.events().iter().any(|event| wanted(&event.event))
}

kvm_test! {
    /// The primary dies: the backup carries on, and the outputs show no seam. Then it is protected anew, and dies too.
    fn kvm_pair_survives_two_deaths() {
        let site = Site::new();
        let second = free_address();
        let (mut primary, mut backup) = protected(&site, 3000, &["--listen", &second.to_string()]);
        primary.signal("KILL");
        primary.wait(limit(5));
        backup.wait_event("go-live", 1, limit(10), is_live);
        let mut third = site.backup("third", second, &[]);
        third.wait_protected();
        let lines = site.console().lines().count() + 20;
        site.wait_console(&format!("pulse {lines}\n"), limit(20));
        backup.signal("KILL");
        backup.wait(limit(5));
        third.wait_event("go-live", 1, limit(10), is_live);
        assert_eq!(third.code(limit(60)), 0, "{}", third.stderr());
        assert_whole(&site, 3000);
    }
}

kvm_test! {
    /// A clean end is no death: nobody asks for a generation, and the next life may start (PROTOCOL 18).
    fn kvm_pair_ends_cleanly() {
        let site = Site::new();
        for (ticks, signal) in [(1000, None), (100_000, Some("TERM"))] {
            let (mut primary, mut backup) = protected(&site, ticks, &[]);
            if let Some(signal) = signal {
                primary.signal(signal);
            }
            assert_eq!(primary.code(limit(30)), 0, "{}", primary.stderr());
            assert_eq!(backup.code(limit(30)), 0, "{}", backup.stderr());
            for side in [&primary, &backup] {
                assert!(!has(side, |event| matches!(event, Event::ClaimAsked { .. })), "{}", side.stderr());
            }
            for name in ["primary.events", "backup.events"] {
                std::fs::remove_file(site.path(name)).unwrap();
            }
        }
    }
}

kvm_test! {
    /// The backup dies, or sleeps: the primary goes on alone within detection and test-and-set, and takes a new backup.
    fn kvm_pair_loses_its_backup() {
        let site = Site::new();
        let (mut primary, mut backup) = protected(&site, 100_000, &[]);
        let killed = logging_channel::clock::boottime_ns();
        backup.signal("KILL");
        backup.wait(limit(5));
        let alone = primary.wait_event("being alone", 1, limit(10), is_alone);
        let took = Duration::from_nanos(alone.at_ns - killed);
        assert!(took < detection() + scaled(Duration::from_secs(1)), "alone after {took:?}");
        let mut sleeper = site.backup("sleeper", site.address, &[]);
        // It has acknowledged something: otherwise the primary waits for it as for one that joins.
        primary.wait_event("protection again", 2, limit(10), is_protected);
        sleeper.signal("STOP");
        primary.wait_event("being alone again", 2, limit(10), is_alone);
        sleeper.signal("CONT");
        assert_eq!(sleeper.code(limit(20)), 10, "{}", sleeper.stderr());
        let lines = site.console().lines().count() + 50;
        site.wait_console(&format!("pulse {lines}\n"), limit(20));
        primary.signal("TERM");
        assert_eq!(primary.code(limit(20)), 0, "{}", primary.stderr());
        // Stopped in the middle of a line, perhaps; but nothing is lost, twice, or out of order.
        let expected: String = (1..=100_000).map(|n| format!("pulse {n}\n")).collect();
        assert!(expected.starts_with(&site.console()), "{}", site.console());
    }
}

kvm_test! {
    /// The primary sleeps past the detection time and wakes up: one side stays live, the sleeper says nothing more and
    /// exits as the loser (PROTOCOL 11 to 14).
    fn kvm_pair_primary_sleeps() {
        let site = Site::new();
        let (mut primary, mut backup) = protected(&site, 1500, &[]);
        primary.signal("STOP");
        backup.wait_event("go-live", 1, limit(10), is_live);
        std::thread::sleep(detection());
        primary.signal("CONT");
        assert_eq!(primary.code(limit(20)), 10, "{}", primary.stderr());
        assert!(!has(&primary, is_live));
        assert_eq!(backup.code(limit(60)), 0, "{}", backup.stderr());
        assert_whole(&site, 1500);
    }
}

kvm_test! {
    /// A silent death: no packet gets through any more, then the primary is killed. Silence alone must tell.
    fn kvm_pair_dies_silently() {
        let site = Site::new();
        let relay = Relay::start(site.address).expect("a relay");
        let guest = pulse(1500);
        let mut primary = site.primary("primary", &guest.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        primary.wait_event("life", 1, limit(10), |event| matches!(event, Event::Leading { .. }));
        let mut backup = site.backup("backup", relay.address(), &[]);
        primary.wait_protected();
        std::thread::sleep(Duration::from_millis(300));
        relay.set_mode(Mode::Silent);
        let cut = logging_channel::clock::boottime_ns();
        primary.signal("KILL");
        primary.wait(limit(5));
        let suspected = backup.wait_event("suspicion", 1, limit(10), |event| matches!(event, Event::Suspected { .. }));
        let took = Duration::from_nanos(suspected.at_ns.saturating_sub(cut));
        assert!(took > detection() / 2, "without a closed connection only silence tells, after {took:?}");
        backup.wait_event("go-live", 1, limit(10), is_live);
        assert_eq!(backup.code(limit(60)), 0, "{}", backup.stderr());
        assert_whole(&site, 1500);
    }
}

kvm_test! {
    /// Cut off from each other but both alive: the storage decides, one side loses.
    fn kvm_pair_is_parted() {
        let site = Site::new();
        let relay = Relay::start(site.address).expect("a relay");
        let guest = pulse(1500);
        let mut primary = site.primary("primary", &guest.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        primary.wait_event("life", 1, limit(10), |event| matches!(event, Event::Leading { .. }));
        let mut backup = site.backup("backup", relay.address(), &[]);
        primary.wait_protected();
        relay.set_mode(Mode::Silent);
        let codes = [primary.code(limit(60)), backup.code(limit(60))];
        assert!(codes == [0, 10] || codes == [10, 0], "{codes:?}\n{}\n{}", primary.stderr(), backup.stderr());
        assert_whole(&site, 1500);
    }
}

kvm_test! {
    /// The storage is away when it is needed: the survivor waits and says so, and goes on when it is back (PROTOCOL 19).
    fn kvm_pair_waits_for_its_storage() {
        let site = Site::new();
        let (mut primary, mut backup) = protected(&site, 1500, &[]);
        std::fs::rename(site.path("shared"), site.path("elsewhere")).unwrap();
        primary.signal("KILL");
        primary.wait(limit(5));
        backup.wait_event("waiting", 2, limit(10), |event| matches!(event, Event::StorageUnreachable { .. }));
        assert!(!has(&backup, is_live), "live without the test-and-set");
        let written = site.console().len();
        std::thread::sleep(detection());
        assert_eq!(site.console().len(), written, "outputs are held");
        std::fs::rename(site.path("elsewhere"), site.path("shared")).unwrap();
        assert_eq!(backup.code(limit(60)), 0, "{}", backup.stderr());
        assert_whole(&site, 1500);
    }
}

kvm_test! {
    /// Who may not start or join is told why.
    fn kvm_pair_refuses_by_name() {
        let site = Site::new();
        let guest = pulse(100_000);
        let guest: Vec<&str> = guest.iter().map(String::as_str).collect();
        // A primary that cannot be heard has not taken the guest's name, neither when TCP's port is taken nor UDP's.
        for (name, taken) in [
            ("deaf", Box::new(TcpListener::bind(site.address).unwrap()) as Box<dyn Any>),
            ("mute", Box::new(UdpSocket::bind(site.address).unwrap())),
        ] {
            let mut deaf = site.primary(name, &guest, &[]);
            assert_eq!(deaf.code(limit(20)), 1);
            assert!(deaf.stderr().contains(&site.address.to_string()), "{}", deaf.stderr());
            drop(taken);
        }
        let mut primary = site.primary("primary", &guest, &[]);
        primary.wait_event("life", 1, limit(10), |event| matches!(event, Event::Leading { .. }));
        let elsewhere = free_address().to_string();
        let mut second = site.start("second", &[&["--primary", "--listen", &elsewhere, "--console", "off"], &guest[..]].concat());
        assert_eq!(second.code(limit(20)), 1);
        assert!(second.stderr().contains("may still be running"), "{}", second.stderr());
        let other = site.path("other");
        std::fs::create_dir_all(other.join("guest")).unwrap();
        let mut stranger = site.backup("stranger", site.address, &["--shared", other.to_str().unwrap()]);
        assert_eq!(stranger.code(limit(20)), 11, "{}", stranger.stderr());
        let mut poorer = site.backup("poorer", site.address, &["--disk", "path=/dev/null"]);
        assert_eq!(poorer.code(limit(20)), 11, "{}", poorer.stderr());
        assert!(poorer.stderr().contains("--disk"), "{}", poorer.stderr());
        let welcome = site.backup("welcome", site.address, &[]);
        welcome.wait_protected();
        let mut late = site.backup("late", site.address, &[]);
        assert_eq!(late.code(limit(20)), 11, "{}", late.stderr());
        assert!(late.stderr().contains("one at a time"), "{}", late.stderr());
        primary.signal("TERM");
        assert_eq!(primary.code(limit(20)), 0);
    }
}
