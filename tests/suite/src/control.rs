//! Operating a guest through its control socket, with real processes: `ftvm status`, `failover` and the rest. The guest
//! `pulse` writes numbered lines to a console file that all sides share; a lost, repeated or reordered output, or a clock
//! that jumps, would show there.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ftvm_lab::kvm_test;
use ftvm_lab::pair::{Side, Site, free_address, limit, wait};
use ftvm_lab::tun::Tap;
use ftvm_roles::event::Event;
use ftvm_roles::operation::Unprotected;
use vmm::control::{ControlReply, Role, Status};

/// Exit code, standard output and standard error of `ftvm OPERATION --control SOCKET`.
fn ask(operation: &str, socket: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(ftvm_lab::ftvm().expect("ftvm"));
    command.arg(operation).arg("--control").arg(socket).args(more);
    let output = command.output().expect("ftvm starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

fn done(operation: &str, socket: &Path) {
    let (code, stdout, stderr) = ask(operation, socket, &[]);
    assert_eq!(code, 0, "{operation}: {stdout}{stderr}");
    println!("{operation}: {}", stdout.trim());
}

fn refused(operation: &str, socket: &Path, why: &str) {
    let (code, stdout, stderr) = ask(operation, socket, &[]);
    assert_eq!(code, 1, "{operation}: {stdout}{stderr}");
    assert!(stderr.contains(why), "{operation} should say '{why}': {stderr}");
}

fn status(socket: &Path) -> Status {
    let (code, stdout, stderr) = ask("status", socket, &["--json"]);
    assert_eq!(code, 0, "{stderr}");
    let reply: ControlReply = serde_json::from_str(&stdout).expect("a reply");
    reply.status.expect("a status")
}

fn wait_status(what: &str, socket: &Path, wanted: impl Fn(&Status) -> bool) {
    wait(what, limit(20), || wanted(&status(socket)).then_some(()));
}

fn standby(site: &Site, name: &str, own: SocketAddr, peers: &[SocketAddr]) -> Side {
    let (own, socket) = (own.to_string(), site.path(&format!("{name}.control")));
    let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
    let mut arguments = vec!["--standby", "--allow-same-host", "--listen", &own];
    arguments.extend(["--control", socket.to_str().expect("UTF-8")]);
    arguments.extend(peers.iter().flat_map(|peer| ["--peer", peer]));
    site.start(name, &arguments)
}

fn lines(site: &Site) -> usize {
    site.console().lines().count()
}

fn wait_lines(site: &Site, more: usize) {
    let wanted = lines(site) + more;
    wait("more lines", limit(20), || (lines(site) >= wanted).then_some(()));
}

/// Says nonsense to the socket; the answer.
fn nonsense(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("connects");
    // The other side may have heard enough before all is said.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Every life of the guest counts from 1, without a gap; so many lives. A reset may come in the middle of a line.
fn check_console(site: &Site, lives: usize) {
    let console = site.console();
    // The guest may be in the middle of its last line.
    let console = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut expected = 1;
    let mut seen = 1;
    for line in console.lines() {
        let whole = format!("pulse {expected}");
        match line.strip_suffix("pulse 1") {
            Some(cut) if expected > 1 && whole.starts_with(cut) => (seen, expected) = (seen + 1, 2),
            _ => {
                assert_eq!(line, whole, "{console}");
                expected += 1;
            }
        }
    }
    assert_eq!(seen, lives, "{console}");
}

kvm_test! {
    /// Everything an operator can ask for, in one life of a guest that ends on its third host.
    fn kvm_control() {
        let site = Site::new();
        let pool = [site.address, free_address(), free_address()];
        let a = site.path("a.control");
        let b = site.path("b.control");
        let c = site.path("c.control");
        refused("status", &a, "is `ftvm run --control` running there?");
        let guest = ["--kernel", "builtin:pulse", "--cmdline", "ticks=100000"];
        let mut first = site.primary("a", &guest, &["--control", a.to_str().expect("UTF-8")]);
        wait("the control socket", limit(20), || a.exists().then_some(()));
        wait_lines(&site, 5);
        let alone = status(&a);
        assert_eq!((alone.role, alone.generation, alone.protected), (Role::Primary, 1, false));
        assert_eq!(alone.why, Some(Unprotected::NeedBackup));
        refused("failover", &a, "no backup");
        for bytes in [&b"\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xFF; 2000], b"{\"request\":\"x\"}\n"] {
            assert!(nonsense(&a, bytes).contains("expected one line"));
        }

        let mut second = standby(&site, "b", pool[1], &[pool[0], pool[2]]);
        first.wait_protected();
        wait_status("protection", &a, |status| status.protected);
        wait_status("following", &b, |status| status.role == Role::Backup && status.protected);
        refused("pause", &b, "ask the primary");

        // A pause is a standstill, which nobody takes for a death, and which the guest does not notice.
        refused("resume", &a, "not paused");
        done("pause", &a);
        // What the guest said before may still wait for the backup.
        wait("standstill", limit(10), || {
            let before = lines(&site);
            std::thread::sleep(ftvm_lab::pair::detection());
            (lines(&site) == before).then_some(())
        });
        let still = lines(&site);
        std::thread::sleep(2 * ftvm_lab::pair::detection());
        assert_eq!(lines(&site), still);
        let paused = status(&a);
        assert!(paused.paused && paused.protected, "{paused}");
        done("resume", &a);
        wait_lines(&site, 5);

        done("suspend-protection", &a);
        assert_eq!(status(&a).why, Some(Unprotected::Suspended));
        wait_status("standing by", &b, |status| status.role == Role::Standby);
        wait_lines(&site, 5);
        assert!(!status(&a).protected);
        done("resume-protection", &a);
        wait_status("protection again", &a, |status| status.protected);
        assert_eq!(status(&a).generation, 2);
        done("restart-backup", &a);
        wait_status("another backup", &a, |status| status.protected && status.generation == 3);

        // The boot record follows the clone.
        wait("the reset", limit(20), || (ask("reset", &a, &[]).0 == 0).then_some(()));
        wait("the second life", limit(20), || (site.console().matches("pulse 1\n").count() == 2).then_some(()));
        wait_lines(&site, 5);
        assert!(status(&a).protected, "the backup has taken part");

        done("failover", &a);
        assert_eq!(first.code(limit(10)), 12, "{}", first.stderr());
        assert!(!a.exists(), "the socket goes with its process");
        let stopped = first.wait_event("handover", 1, limit(1), |event| matches!(event, Event::HandingOver { .. }));
        let live = second.wait_event("go-live", 1, limit(10), |event| matches!(event, Event::WentLive { .. }));
        let gap = Duration::from_nanos(live.at_ns - stopped.at_ns);
        println!("planned failover: {} ms from the request to the new life", gap.as_millis());
        let outwaited = second.events().into_iter().any(|stamped| matches!(stamped.event, Event::LeaseOver { .. }));
        assert!(!outwaited, "no lease was waited for");
        wait_lines(&site, 5);
        let moved = status(&b);
        assert_eq!((moved.role, moved.generation), (Role::Primary, 4));
        assert!(moved.last_failover.is_some_and(|last| last.planned && last.generation == 4), "{moved}");

        let mut third = standby(&site, "c", pool[2], &[pool[0], pool[1]]);
        wait_status("protection of the new primary", &b, |status| status.protected);
        // What it holds came with the failover: a second reset, without the kernel's file.
        wait("the second reset", limit(20), || (ask("reset", &b, &[]).0 == 0).then_some(()));
        wait("the third life", limit(20), || (site.console().matches("pulse 1\n").count() == 3).then_some(()));
        done("pause", &b);
        done("test-failover", &b);
        second.wait(limit(10));
        third.wait_event("go-live", 1, limit(10), |event| matches!(event, Event::WentLive { .. }));
        wait_status("the third host", &c, |status| status.role == Role::Primary);
        let last = status(&c);
        assert!(last.paused, "it was paused, and is: {last}");
        assert!(last.last_failover.is_some_and(|last| !last.planned));
        done("resume", &c);
        wait_lines(&site, 5);
        assert_eq!(status(&c).why, Some(Unprotected::NeedBackup));
        done("power-off", &c);
        assert_eq!(third.code(limit(20)), 0, "{}", third.stderr());
        check_console(&site, 3);
    }
}

kvm_test! {
    programs = ["ip"];
    /// A primary whose network interface goes down hands its guest over to a backup whose is up, and to no other.
    fn kvm_control_lost_interface() {
        let site = Site::new();
        let taps = [Tap::new("ftvm-c0"), Tap::new("ftvm-c1")];
        let guest = ["--kernel", "builtin:pulse", "--cmdline", "ticks=100000", "--net", "tap=ftvm-c0"];
        let mut primary = site.primary("primary", &guest, &[]);
        taps[1].set("down");
        let backup = site.backup("backup", site.address, &["--net", "tap=ftvm-c1"]);
        primary.wait_protected();
        wait_lines(&site, 5);
        taps[0].set("down");
        let lost = |hands_over: bool| {
            move |event: &Event| matches!(event, Event::PathLost { hands_over: found, .. } if *found == hands_over)
        };
        primary.wait_event("loss of its interface", 1, limit(10), lost(false));
        taps[1].set("up");
        primary.wait_event("handover", 1, limit(10), lost(true));
        assert_eq!(primary.code(limit(10)), 12, "{}", primary.stderr());
        backup.wait_event("go-live", 1, limit(10), |event| matches!(event, Event::WentLive { .. }));
        wait_lines(&site, 5);
        check_console(&site, 1);
    }
}
