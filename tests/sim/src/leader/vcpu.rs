//! The vCPU thread of a simulated primary: the guest runs in stretches of simulated time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ftvm_hypervisor::scripted::{ScriptedCpu, ScriptedKick};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::live::{Events, Live, Next, pause};
use vmm::run::vcpu::PairSink;

use super::super::common::Common;
use super::super::env::{Env, US, What};
use super::Leader;

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

/// The vCPU thread of a live machine.
#[derive(Debug)]
pub struct Vcpu {
    pub(super) live: Live<ScriptedCpu, PairSink, SimEvents>,
    pub(super) kick: Arc<ScriptedKick>,
    pub(super) next: Option<Next>,
    /// Events for the thread that are older than its last order are void.
    pub(super) token: u64,
}

impl Leader {
    /// Something for the vCPU thread to look at.
    pub fn tell(&mut self, env: &mut Env, common: &Common, event: HostEvent) {
        let now = env.instant(env.local(common.host));
        self.vcpu.live.events().0.push_back((now, event));
        if matches!(self.vcpu.next, Some(Next::Wait(_))) {
            self.vcpu.token += 1;
            env.after(US, common.id, What::Vcpu(self.vcpu.token));
        }
    }

    /// The vCPU thread runs for a while.
    pub fn run_vcpu(&mut self, env: &mut Env, common: &mut Common, token: u64) {
        if token != self.vcpu.token || matches!(self.vcpu.next, Some(Next::Ended(_))) {
            return;
        }
        if self.stream.waiting() >= BATCHES {
            return env.after(US * 500, common.id, What::Vcpu(token));
        }
        let begin = env.local(common.host);
        let time = Cell::new(begin);
        let base = env.base;
        let now = || base + Duration::from_nanos(time.get());
        let result = self.slice(env, &time, &now);
        let next = match result {
            Ok(next) => next,
            Err(error) => return self.expect(env, common, Err(error.to_string())),
        };
        let idle = self.stream.idle.load(Ordering::Relaxed);
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
                let finished = self.vcpu.live.finish(reason);
                self.expect(env, common, finished.map_err(|e| e.to_string()));
                self.vcpu.live.sink().ended(Ok(reason.clone()));
            }
        }
        self.vcpu.next = Some(next);
        common.wake(env, spent);
    }

    fn slice(
        &mut self,
        env: &mut Env,
        time: &Cell<u64>,
        now: &dyn Fn() -> Instant,
    ) -> Result<Next, ftvm_machine::machine::MachineError> {
        let end = time.get() + env.rng.between(SLICE / 10, SLICE);
        let vcpu = &mut self.vcpu;
        let mut next = match vcpu.next.take() {
            None => vcpu.live.begin(now)?,
            Some(Next::Wait(_)) => vcpu.live.woken(None, now)?,
            Some(next) => next,
        };
        while next == Next::Run && time.get() < end && self.stream.waiting() < BATCHES {
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
