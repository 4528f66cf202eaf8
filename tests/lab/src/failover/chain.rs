//! Kill after kill on one guest: the hosts, the clients, and what is checked.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use ftvm_demo::client::{Client, ClientConfig, Tally};
use ftvm_demo::hub::{Hub, HubPort};
use serde_json::{Map, Value, json};

use super::clock::{GuestClock, Off, SteadyClock};
use super::http::{Forget, Http, HttpConfig, Seen};
use super::{Figures, GUEST_IP, PREFIX, Settings, disk, millis, random};
use crate::ft_host::{Common, FtHost, Join, protected, takeover_ms, went_live};
use crate::nested::Host;

const REDIS_PORT: u16 = 6379;
const HTTP_PORT: u16 = 80;
const CLIENT_MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 7, 0, 0x21], [0x52, 0x54, 0, 7, 0, 0x22]];
const CLIENT_IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 7, 3), Ipv4Addr::new(192, 168, 7, 4)];

/// An emulated host boots, and Linux in it.
const START_LIMIT: Duration = Duration::from_secs(400);
/// A fresh host boots and takes the guest's state.
const JOIN_LIMIT: Duration = Duration::from_secs(240);
/// For the failover, beyond the detection time.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);
/// For reading everything back: this, and so much for each write.
const VERIFY_LIMIT: Duration = Duration::from_secs(120);
const VERIFY_EACH: Duration = Duration::from_millis(20);
/// A host lives no longer, whatever happens: it sees two kills at most, and the first one the guest's boot.
const HOST_LIMIT: Duration = Duration::from_secs(1800);
/// Acknowledged writes and pages under protection before each kill, at least, and after each failover.
const MIN_ACKS: u64 = 100;
const MIN_PAGES: u64 = 5;
/// Up to so much later the kill comes.
const KILL_WITHIN_MS: u64 = 5000;
/// One write in this time: hours of it can be read back in minutes.
const WRITE_EVERY: Duration = Duration::from_millis(20);
/// Writes, or readings back, without an answer at one time.
const DEPTH: usize = 16;
/// A file `stop` in the shared folder has the guest say its time and switch itself off.
const TYPIST: &str = "until [ -e /shared/stop ]; do sleep 1; done; echo 'echo time $(date +%s); poweroff' >&4";
/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Everything that runs.
pub(super) struct Chain<'a> {
    host: &'a Host,
    settings: &'a Settings,
    say: &'a mut dyn FnMut(&str),
    common: Common,
    hub: Hub,
    redis: Client,
    http: Http,
    clock: SteadyClock,
    /// The host on which the guest lives.
    primary: FtHost,
}

impl<'a> Chain<'a> {
    /// Boots the first host with the guest, and connects the clients to it.
    pub(super) fn start(host: &'a Host, settings: &'a Settings, say: &'a mut dyn FnMut(&str)) -> Result<Self, String> {
        let common = common(settings)?;
        let hub = Hub::start().map_err(|e| e.to_string())?;
        let plug = |name: &str| plug(&hub, settings, name);
        let ports = [plug("redis")?, plug("http")?];
        let clock = SteadyClock::start();
        let primary = FtHost::start(host, &plug("host-1")?, 1, None, &common)?;
        say("host 1 boots, and the guest on it");
        let redis = Client::start(redis_client(&ports[0], settings)).map_err(|e| e.to_string())?;
        let answers = || {
            let progress = redis.progress();
            match progress.ended {
                true => Err("the Redis client could not connect".to_owned()),
                false => Ok(progress.acked_writes > 0),
            }
        };
        wait("an answer of Redis", START_LIMIT, answers).map_err(|wrong| wrong + &primary.last_words())?;
        let http_client = HttpConfig {
            local: ports[1].peer.clone(),
            hub: ports[1].hub.clone(),
            mac: CLIENT_MACS[1],
            ip: CLIENT_IPS[1],
            prefix: PREFIX,
            server: (GUEST_IP, HTTP_PORT),
        };
        let http = Http::start(http_client, clock)?;
        Ok(Chain {
            host,
            settings,
            say,
            common,
            hub,
            redis,
            http,
            clock,
            primary,
        })
    }

    /// All kills, then everything is read back and checked.
    pub(super) fn perform(mut self, figures: &mut Figures) -> Result<(), String> {
        let mut unprotected = Instant::now();
        let mut backup = self.boot(2)?;
        for number in 1..=self.settings.kills {
            let mut kill = Map::new();
            kill.insert("kill".to_owned(), number.into());
            self.protect(&backup, unprotected, &mut kill)?;
            unprotected = Instant::now();
            let next = self.kill(number, backup, &mut kill)?;
            let kill = Value::Object(kill);
            (self.say)(&format!("kill {number} of {}: {kill}", self.settings.kills));
            figures.each.push(kill);
            match next {
                Some(next) => backup = next,
                None => break,
            }
        }
        self.verify(figures)
    }

    /// Boots a fresh host that is to be the primary's backup.
    fn boot(&self, number: u8) -> Result<FtHost, String> {
        let port = plug(&self.hub, self.settings, &format!("host-{number}"))?;
        FtHost::start(self.host, &port, number, Some(number - 1), &self.common)
    }

    /// Waits until the pair is one, and lets the clients work under its protection.
    fn protect(&mut self, backup: &FtHost, since: Instant, kill: &mut Map<String, Value>) -> Result<(), String> {
        let sides = |wrong: String| wrong + &self.primary.last_words() + &backup.last_words();
        let join = join(&self.primary, backup).map_err(sides)?;
        let unprotected = since.elapsed();
        self.work(Some(backup), MIN_ACKS, MIN_PAGES)?;
        kill.extend([
            ("join_ms".to_owned(), millis(join.took).into()),
            ("join_bytes".to_owned(), join.bytes.into()),
            ("unprotected_ms".to_owned(), millis(unprotected).into()),
        ]);
        (self.say)(&format!(
            "host {} protects the guest: its state, {} bytes, took {} ms; it had been unprotected for {} ms",
            backup.number(),
            join.bytes,
            millis(join.took),
            millis(unprotected)
        ));
        Ok(())
    }

    /// Kills the primary at a random moment; `backup` takes its place. The fresh host that is to be the next backup, unless
    /// this was the last kill.
    fn kill(&mut self, number: u8, backup: FtHost, kill: &mut Map<String, Value>) -> Result<Option<FtHost>, String> {
        std::thread::sleep(Duration::from_millis(
            random(self.settings.seed, number) % KILL_WITHIN_MS,
        ));
        if protected(&self.primary.events()).is_none() {
            let wrong = format!("before kill {number} the pair came apart by itself");
            return Err(wrong + &self.primary.last_words() + &backup.last_words());
        }
        let before = self.page(Forget::Worst)?;
        let since_last_ack = Duration::from_nanos(self.redis.progress().since_last_ack_ns.unwrap_or(0));
        let killed = Instant::now();
        self.primary.kill();
        self.primary = backup;
        // The dead host's processor is free, so the next one boots while the survivor takes over.
        let next = match number < self.settings.kills {
            true => Some(self.boot(number + 2)?),
            false => None,
        };
        let limit = Duration::from_millis(self.settings.terms.detection) + FAILOVER_LIMIT;
        let (reissued, reemitted) = self.primary.wait_for("go-live", limit, went_live)?;
        let live_after = killed.elapsed();
        // Only the first answers: what comes later may have waited for the next host's join.
        self.work(None, 1, 1)?;
        let after = self.page(Forget::Worst)?;
        let from = killed
            .saturating_duration_since(self.redis.begun())
            .saturating_sub(since_last_ack);
        let gap_ns = self
            .redis
            .history()
            .longest_gap_ns(u64::try_from(from.as_nanos()).unwrap_or(0));
        self.work(None, MIN_ACKS, MIN_PAGES)?;
        kill.extend([
            ("survivor".to_owned(), self.primary.number().into()),
            ("live_after_ms".to_owned(), millis(live_after).into()),
            ("takeover_ms".to_owned(), takeover_ms(&self.primary.events()).into()),
            ("client_gap_ms".to_owned(), (gap_ns / 1_000_000).into()),
            ("http_gap_ms".to_owned(), millis(after.longest).into()),
            ("http_gap_at_join_ms".to_owned(), millis(before.longest).into()),
            ("clock_off_ms".to_owned(), off_ms(after.clock).into()),
            ("reissued".to_owned(), reissued.into()),
            ("reemitted".to_owned(), reemitted.into()),
            ("acked_writes".to_owned(), self.redis.progress().acked_writes.into()),
            ("pages".to_owned(), after.pages.into()),
        ]);
        Ok(next)
    }

    /// What the HTTP client has seen, the guest's clock checked.
    fn page(&self, forget: Forget) -> Result<Seen, String> {
        let seen = self.http.seen(forget)?;
        too_far(seen.clock).map_or(Ok(seen), Err)
    }

    /// Waits until both clients have got so much more of what they want.
    fn work(&self, backup: Option<&FtHost>, more_acks: u64, more_pages: u64) -> Result<(), String> {
        let writes_wanted = self.redis.progress().acked_writes + more_acks;
        let writes = || {
            let progress = self.redis.progress();
            match progress.ended {
                true => Err("the Redis client has ended".to_owned()),
                false => Ok(progress.acked_writes >= writes_wanted),
            }
        };
        let both = || {
            let pages_wanted = self.page(Forget::Nothing)?.pages + more_pages;
            wait("acknowledged writes", FAILOVER_LIMIT, writes)?;
            let pages = || Ok(self.page(Forget::Nothing)?.pages >= pages_wanted);
            wait("pages", FAILOVER_LIMIT, pages)
        };
        both().map_err(|wrong| wrong + &self.primary.last_words() + &backup.map(FtHost::last_words).unwrap_or_default())
    }

    /// Has everything read back, switches the guest off, and looks at its disk.
    fn verify(self, figures: &mut Figures) -> Result<(), String> {
        let Chain {
            say,
            settings,
            common,
            redis,
            http,
            clock,
            mut primary,
            ..
        } = self;
        say(&format!(
            "{} acknowledged writes are read back",
            redis.progress().acked_writes
        ));
        let http = http.finish()?;
        let redis = redis.finish().map_err(|e| e.to_string())?;
        let mut wrong = Vec::new();
        wrong.extend(too_far(http.clock));
        wrong.extend(http.broken.map(|broken| format!("the HTTP connection: {broken}")));
        if !redis.connection_survived() {
            wrong.push(format!("the Redis connection: {:?}", redis.ending));
        }
        let tally = &redis.tally;
        wrong.extend(lost(tally));
        say("the guest switches itself off");
        let off_at_end = switch_off(&common, &mut primary, clock)?;
        wrong.extend(too_far(off_at_end).map(|wrong| wrong + " when it was switched off"));
        wrong.extend(disk::check(&common.disk).err());
        wrong.extend(disk::check_writes(&common.disk, tally.acked_writes, &settings.folder).err());
        figures.whole.extend([
            ("acked_writes".to_owned(), tally.acked_writes.into()),
            ("read_back".to_owned(), tally.verified_keys.into()),
            (
                "lost_writes".to_owned(),
                (tally.lost_writes + tally.unverified_keys).into(),
            ),
            ("pages".to_owned(), http.pages.into()),
        ]);
        if !wrong.is_empty() {
            return Err(wrong.join("; ") + &primary.last_words());
        }
        figures.whole.extend([
            ("connections_survived".to_owned(), json!(true)),
            ("clock_off_at_end_ms".to_owned(), off_ms(off_at_end).into()),
            ("on_disk".to_owned(), tally.acked_writes.into()),
            ("file_system".to_owned(), json!("clean")),
        ]);
        Ok(())
    }
}

/// A cable of the hub; its sockets lie in the settings' folder.
fn plug(hub: &Hub, settings: &Settings, name: &str) -> Result<HubPort, String> {
    let port = HubPort {
        hub: settings.folder.join(format!("hub-{name}")),
        peer: settings.folder.join(name),
    };
    hub.add(&port).map(|_| port).map_err(|e| format!("{name}: {e}"))
}

fn common(settings: &Settings) -> Result<Common, String> {
    let (disk, shared) = (settings.folder.join("disk"), settings.folder.join("shared"));
    fs::create_dir_all(&shared).map_err(|e| format!("{}: {e}", shared.display()))?;
    fs::copy(&settings.disk, &disk).map_err(|e| format!("{}: {e}", disk.display()))?;
    Ok(Common {
        kernel: settings.kernel.clone(),
        initrd: settings.initrd.clone(),
        disk,
        shared,
        cmdline: format!(
            "ftvm.root=/dev/vda ftvm.services=redis,nginx ftvm.appendfsync=everysec ftvm.ip={GUEST_IP}/{PREFIX}"
        ),
        arguments: "--rng",
        typist: TYPIST.to_owned(),
        terms: settings.terms,
        limit: HOST_LIMIT,
    })
}

fn redis_client(port: &HubPort, settings: &Settings) -> ClientConfig {
    let writes = u32::from(settings.kills) * 6000; // two minutes of them for each kill
    ClientConfig {
        local: port.peer.clone(),
        hub: port.hub.clone(),
        mac: CLIENT_MACS[0],
        ip: CLIENT_IPS[0],
        prefix: PREFIX,
        server: (GUEST_IP, REDIS_PORT),
        keys: ftvm_demo::client::MAX_KEYS,
        depth: DEPTH,
        write_every: WRITE_EVERY,
        connect_wait: START_LIMIT,
        silence: FAILOVER_LIMIT,
        verify_wait: VERIFY_LIMIT + VERIFY_EACH * writes,
    }
}

/// Waits until both sides say that they are a pair. A backup that gives up ends this at once.
fn join(primary: &FtHost, backup: &FtHost) -> Result<Join, String> {
    let follows = |events: &[ftvm_roles::event::Stamped]| {
        use ftvm_roles::event::{Event, Protection};
        let protects =
            |event: &Event| matches!(event, Event::State { protection, .. } if *protection == Protection::Protected);
        events.iter().any(|event| protects(&event.event)).then_some(())
    };
    backup.wait_for("protection", JOIN_LIMIT, follows)?;
    primary.wait_for("protection", JOIN_LIMIT, protected)
}

fn wait(what: &str, limit: Duration, done: impl Fn() -> Result<bool, String>) -> Result<(), String> {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() > limit {
            return Err(format!("not enough {what} within {limit:?}"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What the client misses.
fn lost(tally: &Tally) -> Option<String> {
    if tally.lost_writes + tally.unverified_keys + tally.refused_writes == 0 {
        return None;
    }
    Some(format!(
        "{} writes lost, {} unverified, {} refused; {}",
        tally.lost_writes,
        tally.unverified_keys,
        tally.refused_writes,
        tally.first_lost.clone().unwrap_or_default()
    ))
}

/// By how much the guest's clock was off at least.
fn off_ms(off: Option<Off>) -> u64 {
    millis(off.map_or(Duration::ZERO, |off| off.by))
}

/// What is wrong with the guest's clock, if it was off by more than it may.
fn too_far(off: Option<Off>) -> Option<String> {
    let off = off.filter(Off::too_far)?;
    Some(format!("the guest's clock was {off}"))
}

/// Has the guest say its time and switch itself off; whether its clock was off.
fn switch_off(common: &Common, primary: &mut FtHost, clock: SteadyClock) -> Result<Option<Off>, String> {
    let asked = clock.now();
    fs::write(common.shared.join("stop"), "").map_err(|e| format!("the file `stop`: {e}"))?;
    let said = || said_time(&primary.said());
    wait("words about the guest's time", FAILOVER_LIMIT, || Ok(said().is_some()))
        .map_err(|wrong| wrong + &primary.last_words())?;
    let (time, heard) = (UNIX_EPOCH + Duration::from_secs(said().unwrap_or(0)), clock.now());
    let off = GuestClock::default().said(time, asked, heard)?;
    match primary.wait()? {
        0 => Ok(off),
        code => Err(format!(
            "the survivor ended with exit code {code}{}",
            primary.last_words()
        )),
    }
}

/// The time that the guest has said on its console, once the line is complete.
fn said_time(console: &str) -> Option<u64> {
    let complete = &console[..=console.rfind('\n')?];
    let mut lines = complete.lines().rev();
    lines.find_map(|line| line.trim().strip_prefix("time ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_time_is_taken_from_a_complete_line() {
        let typed = "/ # echo time $(date +%s); poweroff\r\n";
        assert_eq!(said_time(typed), None);
        assert_eq!(said_time(&format!("{typed}time 1795")), None);
        assert_eq!(
            said_time(&format!("{typed}time 1795251030\r\n[ 1.0] EXT4")),
            Some(1_795_251_030)
        );
        assert_eq!(said_time(""), None);
    }

    #[test]
    fn what_the_client_misses_is_told() {
        assert_eq!(lost(&Tally::default()), None);
        for tally in [
            Tally {
                lost_writes: 1,
                ..Tally::default()
            },
            Tally {
                unverified_keys: 1,
                ..Tally::default()
            },
            Tally {
                refused_writes: 1,
                ..Tally::default()
            },
        ] {
            assert!(lost(&tally).is_some(), "{tally:?}");
        }
    }
}
