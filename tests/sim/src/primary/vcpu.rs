//! The vCPU thread of a simulated primary: the guest runs in stretches of simulated time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ftvm_hypervisor::scripted::{ScriptedCpu, ScriptedKick};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::link::guest::{FromGuest, PairSink, Reins, ToLink, take_together};
use ftvm_roles::live::{Events, Live, LiveError, Next, pause};

use super::super::checks::NO_FAILURE;
use super::super::common::Common;
use super::super::env::{Env, US, What};
use super::SimPrimary;

/// Batches that may wait for the link before the vCPU stops; the production queue blocks at 256.
const BATCHES: usize = 200;

/// Longest stretch of simulated time that the vCPU runs in one go: the period of the patience monitor.
const SLICE: u64 = 2_500 * US;

/// Host events with the time of their arrival.
#[derive(Debug, Default)]
pub struct SimEvents(VecDeque<(Instant, HostEvent)>);

impl Events for SimEvents {
    fn try_recv(&mut self) -> Option<HostEvent> {
        self.0.pop_front().map(|(_, event)| event)
    }

    fn oldest_pending(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }
}

/// What the vCPU thread has said and the link has not taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Rc<RefCell<VecDeque<FromGuest>>>);

impl ToLink for Said {
    fn say(&self, message: FromGuest) -> bool {
        self.0.borrow_mut().push_back(message);
        true
    }
}

impl Said {
    pub(super) fn waiting(&self) -> usize {
        self.0.borrow().len()
    }

    /// Said before everything that waits: by a planted bug.
    pub(super) fn ahead(&self, message: FromGuest) {
        self.0.borrow_mut().push_front(message);
    }

    /// The next thing said, batches that wait together.
    pub(super) fn next(&self) -> Option<FromGuest> {
        let mut waiting = self.0.borrow_mut();
        let first = waiting.pop_front()?;
        let (message, ahead) = take_together(first, || waiting.pop_front());
        if let Some(ahead) = ahead {
            waiting.push_front(ahead);
        }
        Some(message)
    }
}

/// The vCPU thread of a live machine.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub live: Live<ScriptedCpu, PairSink<Said>, SimEvents>,
    pub kick: Arc<ScriptedKick>,
    pub next: Option<Next>,
    /// Events for the thread that are older than its last order are void.
    pub token: u64,
    pub said: Said,
    pub reins: Reins,
}

impl SimPrimary {
    /// The vCPU thread runs for a while.
    pub fn run_vcpu(&mut self, env: &mut Env, common: &mut Common, token: u64) {
        if let Err(error) = self.side.vcpu.run(env, common, token) {
            let what = format!("process {}: {error}", common.id);
            env.checks.fail(env.now, NO_FAILURE, what);
        }
    }
}

impl Vcpu {
    /// Something for the thread to look at.
    pub fn tell(&mut self, env: &mut Env, common: &Common, event: HostEvent) {
        let now = env.instant(env.local(common.host));
        self.live.events().0.push_back((now, event));
        if matches!(self.next, Some(Next::Wait(_))) {
            self.token += 1;
            env.after(US, common.id, What::Vcpu(self.token));
        }
    }

    fn run(&mut self, env: &mut Env, common: &mut Common, token: u64) -> Result<(), LiveError> {
        if token != self.token || matches!(self.next, Some(Next::Ended(_))) {
            return Ok(());
        }
        if self.said.waiting() >= BATCHES {
            env.after(US * 500, common.id, What::Vcpu(token));
            return Ok(());
        }
        let begin = env.local(common.host);
        let time = Cell::new(begin);
        let base = env.base;
        let now = || base + Duration::from_nanos(time.get());
        let next = self.slice(env, &time, &now)?;
        let idle = self.reins.idle.load(Ordering::Relaxed);
        let ran = Duration::from_nanos(time.get() - begin);
        let spent = u64::try_from((ran + pause(ran, idle)).as_nanos()).unwrap_or(u64::MAX);
        match &next {
            Next::Run => env.after(spent.max(US), common.id, What::Vcpu(token)),
            Next::Wait(deadline) => {
                if let Some(deadline) = deadline {
                    let local = u64::try_from((*deadline - base).as_nanos()).unwrap_or(u64::MAX);
                    let at = env.true_time(common.host, local).max(env.now + spent);
                    env.at(at, common.id, What::Vcpu(token));
                }
            }
            Next::Ended(reason) => {
                self.live.finish(reason)?;
                self.said.say(FromGuest::Ended(Ok(reason.clone())));
            }
        }
        self.next = Some(next);
        common.wake(env, spent);
        Ok(())
    }

    fn slice(&mut self, env: &mut Env, time: &Cell<u64>, now: &dyn Fn() -> Instant) -> Result<Next, LiveError> {
        let end = time.get() + env.rng.between(SLICE / 10, SLICE);
        let vcpu = &mut *self;
        let mut next = match vcpu.next.take() {
            None => vcpu.live.begin(now)?,
            Some(Next::Wait(_)) => vcpu.live.woken(None, now)?,
            Some(next) => next,
        };
        while next == Next::Run && time.get() < end && vcpu.said.waiting() < BATCHES {
            let units = if vcpu.live.kick_due(now()) {
                env.rng.between(0, 3)
            } else {
                (end - time.get()) / env.terms.unit + 1
            };
            // A kick takes a moment to arrive, and the guest makes an exit meanwhile or does not.
            vcpu.kick.kick_after(units.max(1));
            let stepped = Cell::new(false);
            let (unit, exit) = (env.terms.unit, env.terms.exit);
            let kick = Arc::clone(&vcpu.kick);
            let began = time.get();
            let after = || {
                if !stepped.replace(true) {
                    let left = kick.left().unwrap_or(0);
                    time.set(began + (units.max(1) - left.min(units.max(1))) * unit + exit);
                }
                now()
            };
            next = vcpu.live.step(&after)?;
            let _ = after();
        }
        Ok(next)
    }
}
