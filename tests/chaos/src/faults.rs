//! Which faults come, in which order: a function of the seed. Pure.
//!
//! Kinds come as from a shuffled pack, so that a short run has each of them. Now and then a second fault falls into the
//! first one; never one that takes both sides of a pair that has no third, which no pair can survive.

use std::time::Duration;

use clap::ValueEnum;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// SIGKILL of the primary, the backup or the standby.
    Kill,
    /// SIGKILL of the primary.
    KillPrimary,
    /// SIGSTOP, and SIGCONT after less or more than the detection time.
    Stop,
    /// Links that are hung up, or cut one way, both ways, or between the primary and everybody.
    Cut,
    /// Links on which everything comes later, by less or more than the detection time.
    Delay,
    /// The shared directory's file system is full, most times when it is needed.
    FullDisk,
    /// The shared directory is not there, most times when it is needed.
    NoShare,
}

impl Kind {
    /// Of these a run is made when it is not told otherwise.
    pub const PACK: [Kind; 6] = [
        Kind::Kill,
        Kind::Stop,
        Kind::Cut,
        Kind::Delay,
        Kind::FullDisk,
        Kind::NoShare,
    ];

    /// As the command line and JSON call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::KillPrimary => "kill-primary",
            Kind::Stop => "stop",
            Kind::Cut => "cut",
            Kind::Delay => "delay",
            Kind::FullDisk => "full-disk",
            Kind::NoShare => "no-share",
        }
    }
}

/// What a process is when a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Backup,
    Standby,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Dead until it is over, then started again as a standby.
    Kill(Role),
    Stop(Role),
    /// The pair's link, both ways.
    CutBoth,
    /// Only what the primary says is lost.
    CutFromPrimary,
    /// Only what the backup says is lost.
    CutFromBackup,
    /// All links of the primary.
    Isolate,
    /// The pair's connection ends, once.
    HangUp,
    /// The pair's link, each way.
    Delay(Duration),
    FullDisk,
    NoShare,
}

/// A fault and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    pub fault: Fault,
    /// After the step's beginning.
    pub after: Duration,
    /// Until it is mended.
    pub lasts: Duration,
}

/// What comes between two times of peace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub faults: Vec<Timed>,
}

impl Step {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let each = self.faults.iter().map(|timed| {
            let what = match timed.fault {
                Fault::Kill(role) => format!("kill {}", name(role)),
                Fault::Stop(role) => format!("stop {}", name(role)),
                Fault::CutBoth => "cut the pair's link".to_owned(),
                Fault::CutFromPrimary => "cut primary to backup".to_owned(),
                Fault::CutFromBackup => "cut backup to primary".to_owned(),
                Fault::Isolate => "isolate the primary".to_owned(),
                Fault::HangUp => return "hang up".to_owned(),
                Fault::Delay(delay) => format!("delay {} ms each way", delay.as_millis()),
                Fault::FullDisk => "shared directory full".to_owned(),
                Fault::NoShare => "shared directory gone".to_owned(),
            };
            format!("{what}, {} ms", timed.lasts.as_millis())
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Backup => "backup",
        Role::Standby => "standby",
    }
}

/// Draws faults.
#[derive(Debug)]
pub struct Plan {
    random: ChaCha8Rng,
    kinds: Vec<Kind>,
    pack: Vec<Kind>,
    detection: Duration,
}

impl Plan {
    /// Faults of these kinds, at least one, for a pair with this detection time.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind], detection: Duration) -> Self {
        Plan {
            random: ChaCha8Rng::seed_from_u64(seed),
            kinds: kinds.to_vec(),
            pack: Vec::new(),
            detection,
        }
    }

    /// The next faults.
    pub fn step(&mut self) -> Step {
        if self.pack.is_empty() {
            self.pack.clone_from(&self.kinds);
            self.pack.shuffle(&mut self.random);
        }
        let kind = self.pack.pop().unwrap_or(Kind::KillPrimary);
        let mut faults = match kind {
            Kind::KillPrimary => vec![self.kill(Role::Primary)],
            Kind::Kill => {
                let role = *self.pick(&[Role::Primary, Role::Primary, Role::Backup, Role::Standby]);
                vec![self.kill(role)]
            }
            Kind::Stop => {
                let role = *self.pick(&[Role::Primary, Role::Primary, Role::Backup, Role::Backup, Role::Standby]);
                let lasts = self.short_or_long();
                vec![now(Fault::Stop(role), lasts)]
            }
            Kind::Cut => {
                let fault = *self.pick(&[
                    Fault::CutBoth,
                    Fault::CutFromPrimary,
                    Fault::CutFromBackup,
                    Fault::Isolate,
                    Fault::HangUp,
                ]);
                let lasts = self.short_or_long();
                vec![now(fault, lasts)]
            }
            Kind::Delay => {
                let delay = match self.random.random_bool(0.5) {
                    true => self.times(6, 25),
                    false => self.times(110, 200),
                };
                let lasts = self.times(100, 300);
                let mut faults = vec![now(Fault::Delay(delay), lasts)];
                // A slow pair whose primary dies.
                if delay < self.detection && self.random.random_bool(0.5) {
                    faults.push(self.later(Fault::Kill(Role::Primary)));
                }
                faults
            }
            Kind::FullDisk => self.storage(Fault::FullDisk),
            Kind::NoShare => self.storage(Fault::NoShare),
        };
        let standby = |timed: &Timed| matches!(timed.fault, Fault::Kill(Role::Standby) | Fault::Stop(Role::Standby));
        if kind != Kind::KillPrimary && !faults.iter().any(standby) && self.random.random_bool(0.2) {
            let fault = *self.pick(&[Fault::Kill(Role::Standby), Fault::Stop(Role::Standby)]);
            faults.push(self.later(fault));
        }
        Step { kind, faults }
    }

    /// The storage fails, and then something that needs it happens.
    fn storage(&mut self, fault: Fault) -> Vec<Timed> {
        let lasts = self.times(100, 300);
        let mut faults = vec![now(fault, lasts)];
        let needing = *self.pick(&[
            None,
            Some(Fault::Kill(Role::Primary)),
            Some(Fault::Kill(Role::Backup)),
            Some(Fault::CutBoth),
            Some(Fault::Stop(Role::Primary)),
        ]);
        if let Some(needing) = needing {
            let timed = Timed {
                fault: needing,
                after: self.times(5, 20),
                lasts: self.times(150, 300),
            };
            faults.push(timed);
        }
        faults
    }

    fn kill(&mut self, role: Role) -> Timed {
        now(Fault::Kill(role), self.times(20, 200))
    }

    fn later(&mut self, fault: Fault) -> Timed {
        Timed {
            fault,
            after: self.times(5, 80),
            lasts: self.short_or_long(),
        }
    }

    fn short_or_long(&mut self) -> Duration {
        match self.random.random_bool(0.35) {
            true => self.times(10, 60),
            false => self.times(150, 350),
        }
    }

    /// Between so many hundredths of the detection time.
    fn times(&mut self, least: u32, most: u32) -> Duration {
        self.detection * self.random.random_range(least..=most) / 100
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        of.choose(&mut self.random).expect("a choice")
    }
}

fn now(fault: Fault, lasts: Duration) -> Timed {
    Timed {
        fault,
        after: Duration::ZERO,
        lasts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: Duration = Duration::from_millis(1000);

    fn steps(seed: u64, count: usize) -> Vec<Step> {
        let mut plan = Plan::new(seed, &Kind::PACK, D);
        (0..count).map(|_| plan.step()).collect()
    }

    #[test]
    fn a_seed_is_a_run_and_a_pack_has_each_kind() {
        assert_eq!(steps(4, 50), steps(4, 50));
        assert_ne!(steps(4, 50), steps(5, 50));
        for pack in steps(6, 30).chunks(Kind::PACK.len()) {
            let mut kinds: Vec<Kind> = pack.iter().map(|step| step.kind).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, Kind::PACK);
        }
    }

    /// A kill of the primary is survived by its backup, which must not be touched, nor cut off before.
    #[test]
    fn no_step_takes_both_sides() {
        for step in (0..50).flat_map(|seed| steps(seed, 60)) {
            let has = |fault: Fault| step.faults.iter().any(|timed| timed.fault == fault);
            if !has(Fault::Kill(Role::Primary)) {
                continue;
            }
            for deadly in [
                Fault::Kill(Role::Backup),
                Fault::Stop(Role::Backup),
                Fault::CutBoth,
                Fault::CutFromPrimary,
                Fault::CutFromBackup,
                Fault::Isolate,
            ] {
                assert!(!has(deadly), "{}", step.words());
            }
            let slow = |timed: &Timed| matches!(timed.fault, Fault::Delay(delay) if delay >= D);
            assert!(!step.faults.iter().any(slow), "{}", step.words());
        }
    }

    #[test]
    fn everything_comes_and_some_at_once() {
        let all: Vec<Step> = (0..20).flat_map(|seed| steps(seed, 60)).collect();
        let comes = |wanted: fn(&Fault) -> bool| all.iter().flat_map(|step| &step.faults).any(|t| wanted(&t.fault));
        assert!(comes(|fault| matches!(fault, Fault::Kill(Role::Standby))));
        assert!(comes(|fault| matches!(fault, Fault::HangUp)));
        assert!(comes(|fault| matches!(fault, Fault::Isolate)));
        assert!(comes(|fault| matches!(fault, Fault::Delay(delay) if *delay > D)));
        assert!(comes(|fault| matches!(fault, Fault::Delay(delay) if *delay < D)));
        for lasts in [true, false] {
            let stop = |t: &Timed| matches!(t.fault, Fault::Stop(_)) && (t.lasts > D) == lasts;
            assert!(all.iter().flat_map(|step| &step.faults).any(stop));
        }
        assert!(all.iter().any(|step| step.faults.len() > 2));
        let kills = Plan::new(1, &[Kind::KillPrimary], D).step();
        assert_eq!(kills.faults.len(), 1);
    }
}
