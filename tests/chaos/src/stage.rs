//! Where the faults happen: they are injected and mended on time, and peace is waited for.

use std::time::{Duration, Instant};

use logging_channel::clock::boottime_ns;

use super::cable::Way;
use super::client::Clients;
use super::ether::Ether;
use super::faults::{Fault, Role, Step};
use super::pool::{Cast, HOSTS, Pool};
use super::report::Row;
use super::storage::Storage;
use ftvm_lab::scaled;

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Peace must come in so long, and three detection times; the guest boots in it at first.
const PEACE_LIMIT: Duration = Duration::from_secs(15);

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    pub pool: Pool,
    pub storage: Storage,
    pub ether: Ether,
    pub clients: Clients,
    pub detection: Duration,
    pub begun: Instant,
    /// What came otherwise than planned in this step.
    pub notes: Vec<String>,
}

/// A fault comes, or is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Comes,
    IsMended,
}

impl Stage {
    /// A line with the time.
    #[must_use]
    pub fn stamped(&self, line: &str) -> String {
        format!("{:>6.1} s  {line}", self.begun.elapsed().as_secs_f64())
    }

    /// Whether something has been found wrong in passing.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        !self.pool.wrong.is_empty() || !self.pool.judge.wrong.is_empty()
    }

    /// One step: faults, mending, peace.
    ///
    /// # Errors
    /// If peace does not come, or this machine fails.
    pub fn perform(&mut self, number: u32, step: &Step) -> Result<Row, String> {
        let cast = self.wait_for_peace(None)?;
        self.notes.clear();
        self.pool.went_live_ns = None;
        let (begun, begun_ns) = (Instant::now(), boottime_ns());
        let mut turns: Vec<(Duration, Turn, Fault)> = Vec::new();
        for timed in &step.faults {
            turns.push((timed.after, Turn::Comes, timed.fault));
            turns.push((timed.after + timed.lasts, Turn::IsMended, timed.fault));
        }
        turns.sort_by_key(|(at, ..)| *at);
        for (at, turn, fault) in turns {
            while begun.elapsed() < at {
                self.pool.look()?;
                std::thread::sleep(LOOK.min(at.saturating_sub(begun.elapsed())));
            }
            match turn {
                Turn::Comes => self.inject(fault, &cast),
                Turn::IsMended => self.mend(fault, &cast),
            }
            .map_err(|e| format!("{fault:?}: {e}"))?;
        }
        let mended_ns = boottime_ns();
        let after = self.wait_for_peace(Some(begun))?;
        self.pool.judge.hear(&self.ether.take_frames());
        let since = |from: u64, at: u64| Duration::from_nanos(at.saturating_sub(from));
        Ok(Row {
            number,
            kind: step.kind.name(),
            what: step.words(),
            notes: std::mem::take(&mut self.notes),
            live_after: self.pool.went_live_ns.map(|at| since(begun_ns, at)),
            from: cast.primary,
            to: after.primary,
            gap: self.clients.longest_gap(begun),
            protected_again: since(begun_ns, after.protected_ns),
            protected_after_mending: since(mended_ns, after.protected_ns),
        })
    }

    /// Waits until the guest is protected, all three are at their place, and it stays so for longer than a detection time
    /// while the clients are served.
    ///
    /// # Errors
    /// If that does not come in time; says what everybody is and said.
    pub fn wait_for_peace(&mut self, since: Option<Instant>) -> Result<Cast, String> {
        let (begun, quiet) = (Instant::now(), self.detection * 5 / 4);
        let limit = scaled(PEACE_LIMIT) + 3 * self.detection;
        let mut held: Option<(Cast, Instant, usize)> = None;
        loop {
            self.pool.look()?;
            let answers = self.clients.answers();
            held = match (self.pool.cast(), held) {
                (Some(cast), Some((before, ..))) if cast == before => held,
                (Some(cast), _) => Some((cast, Instant::now(), answers)),
                (None, _) => None,
            };
            if let Some((cast, from, before)) = held
                && from.elapsed() > if since.is_some() { quiet } else { LOOK }
                && answers > before
            {
                return Ok(cast);
            }
            if begun.elapsed() > limit {
                let what = match held {
                    Some(_) => "the clients are not served",
                    None => "the guest is not protected, or a host has no place",
                };
                return Err(format!("after {limit:?} {what}{}", self.pool.describe()));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn inject(&mut self, fault: Fault, cast: &Cast) -> std::io::Result<()> {
        match fault {
            Fault::Kill(Role::Primary) => {
                if !self.pool.kill_protected(cast.primary) {
                    self.notes.push("the pair had parted: nobody was killed".to_owned());
                }
            }
            Fault::Kill(role) => {
                if !self.pool.kill(host(role, cast)) {
                    self.notes.push("it had ended".to_owned());
                }
            }
            Fault::Stop(role) => self.pool.stop(host(role, cast)),
            Fault::HangUp => {
                if let Some(cable) = self.pool.cable(cast.backup, cast.primary) {
                    cable.hang_up();
                }
            }
            Fault::CutBoth => self.set_pair(cast, Way::Cut, Way::Cut),
            Fault::CutFromPrimary => self.set_pair(cast, Way::Pass, Way::Cut),
            Fault::CutFromBackup => self.set_pair(cast, Way::Cut, Way::Pass),
            Fault::Delay(delay) => self.set_pair(cast, Way::Delay(delay), Way::Delay(delay)),
            Fault::Isolate => self.set_all(cast.primary, Way::Cut),
            Fault::FullDisk => self.storage.fill()?,
            Fault::NoShare => self.storage.take_away()?,
        }
        Ok(())
    }

    fn mend(&mut self, fault: Fault, cast: &Cast) -> std::io::Result<()> {
        match fault {
            Fault::Kill(role) => self.pool.raise(host(role, cast)),
            Fault::Stop(role) => self.pool.go_on(host(role, cast)),
            Fault::HangUp => {}
            Fault::CutBoth | Fault::CutFromPrimary | Fault::CutFromBackup | Fault::Delay(_) => {
                self.set_pair(cast, Way::Pass, Way::Pass);
            }
            Fault::Isolate => self.set_all(cast.primary, Way::Pass),
            Fault::FullDisk => self.storage.empty()?,
            Fault::NoShare => self.storage.bring_back()?,
        }
        Ok(())
    }

    /// The backup's cable to the primary: what the backup says, and what the primary says.
    fn set_pair(&self, cast: &Cast, from_backup: Way, from_primary: Way) {
        if let Some(cable) = self.pool.cable(cast.backup, cast.primary) {
            cable.set(from_backup, from_primary);
        }
    }

    fn set_all(&self, of: usize, way: Way) {
        for (one, other) in (0..HOSTS).flat_map(|host| [(host, of), (of, host)]) {
            if let Some(cable) = self.pool.cable(one, other) {
                cable.set(way, way);
            }
        }
    }
}

fn host(role: Role, cast: &Cast) -> usize {
    match role {
        Role::Primary => cast.primary,
        Role::Backup => cast.backup,
        Role::Standby => cast.standby,
    }
}
