//! Redundancy that restores itself: `ftvm run --standby`, with real processes. The guest `pulse` writes numbered lines to a
//! console file that all sides share; a lost, repeated or reordered output would show there.

use std::net::SocketAddr;

use ftvm_lab::kvm_test;
use ftvm_lab::pair::{Side, Site, free_address, is_live, is_protected, limit};
use ftvm_roles::event::Event;

/// More than any guest here lives for.
const TICKS: u32 = 100_000;

/// Kills, one after the other.
const KILLS: usize = 4;

fn standby(site: &Site, name: &str, pool: &[SocketAddr], own: SocketAddr, more: &[&str]) -> Side {
    let peers: Vec<String> = pool
        .iter()
        .filter(|peer| **peer != own)
        .map(SocketAddr::to_string)
        .collect();
    let own = own.to_string();
    let mut arguments = vec!["--standby", "--listen", &own];
    arguments.extend(peers.iter().flat_map(|peer| ["--peer", peer]));
    site.start(name, &[&arguments, more].concat())
}

fn started(site: &Site) -> Side {
    let cmdline = format!("ticks={TICKS}");
    site.primary("host-0", &["--kernel", "builtin:pulse", "--cmdline", &cmdline], &[])
}

kvm_test! {
    /// A pool of three: whoever lives is killed, a standby takes the backup's place with no hand on it, and the dead host comes
    /// back as a standby.
    fn kvm_standby_chain() {
        let site = Site::new();
        let pool = [site.address, free_address(), free_address()];
        let here = ["--allow-same-host"];
        let mut sides = vec![started(&site)];
        sides.push(standby(&site, "host-1", &pool, pool[1], &here));
        sides[0].wait_protected();
        sides.push(standby(&site, "host-2", &pool, pool[2], &here));
        for kill in 0..KILLS {
            let lines = site.console().lines().count() + 10;
            site.wait_console(&format!("pulse {lines}\n"), limit(20));
            sides[kill].signal("KILL");
            sides[kill].wait(limit(5));
            let survivor = &sides[kill + 1];
            survivor.wait_event("go-live", 1, limit(10), is_live);
            survivor.wait_protected_again(limit(20));
            let name = format!("host-{}", kill + 3);
            sides.push(standby(&site, &name, &pool, pool[kill % pool.len()], &here));
        }
        let live = &mut sides[KILLS];
        live.signal("TERM");
        assert_eq!(live.code(limit(20)), 0, "{}", live.stderr());
        let expected: String = (1..=TICKS).map(|n| format!("pulse {n}\n")).collect();
        assert!(expected.starts_with(&site.console()), "{}", site.console());
    }
}

kvm_test! {
    /// A backup that sleeps loses its place, and takes it again by itself; a standby keeps away from its own host and site.
    fn kvm_standby_comes_back() {
        let site = Site::new();
        let pool = [site.address, free_address()];
        let primary = started(&site);
        let refused = standby(&site, "near", &pool, pool[1], &[]);
        refused.wait_event("refusal", 1, limit(10), |event| {
            matches!(event, Event::StandingBy { why } if why.contains("--allow-same-host"))
        });
        drop(refused);
        let backup = standby(&site, "backup", &pool, pool[1], &["--allow-same-host", "--priority", "1"]);
        primary.wait_protected();
        backup.signal("STOP");
        primary.wait_event("being alone", 1, limit(20), |event| {
            matches!(event, Event::ClaimWon { .. })
        });
        backup.signal("CONT");
        primary.wait_event("protection again", 2, limit(30), is_protected);
        // Under the generation that the primary has won meanwhile.
        backup.wait_event("following again", 2, limit(10), |event| matches!(event, Event::Following { .. }));
        let lines = site.console().lines().count() + 10;
        site.wait_console(&format!("pulse {lines}\n"), limit(20));
    }
}
