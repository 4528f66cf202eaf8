//! Slows a primary whose backup falls behind (the paper, section 2.3).

/// Time between two changes of the pace, in nanoseconds: about as long as the effect of the last one takes to show.
const STEP_NS: u64 = 100_000_000;

/// How much more of the time the guest stands still with a step, and how much less: thousandths. Slowing is quick, as
/// the lag is lost time at a failover; recovery is slow, as the limit is found from below only by trying.
const MORE: u32 = 50;
const LESS: u32 = 10;

/// Most of the time that the guest stands still, in thousandths: a tenth is always left to it.
const MOST: u32 = 900;

/// What share of the time a guest stands still, so that its backup keeps up. Pure.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    limit_ns: u64,
    idle: u32,
    stepped: Option<u64>,
}

impl Pace {
    /// A lag above `limit_ns` slows; below half of it, it recovers.
    #[must_use]
    pub fn new(limit_ns: u64) -> Self {
        Pace {
            limit_ns,
            idle: 0,
            stepped: None,
        }
    }

    /// The lag is `lag_ns` at `now_ns`; thousandths of the time that the guest is to stand still.
    pub fn step(&mut self, now_ns: u64, lag_ns: u64) -> u32 {
        if self.stepped.is_none_or(|at| now_ns.saturating_sub(at) >= STEP_NS) {
            self.stepped = Some(now_ns);
            if lag_ns > self.limit_ns {
                self.idle = (self.idle + MORE).min(MOST);
            } else if lag_ns < self.limit_ns / 2 {
                self.idle = self.idle.saturating_sub(LESS);
            }
        }
        self.idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn it_slows_in_steps_and_recovers_slowly() {
        let mut pace = Pace::new(50 * MS);
        assert_eq!(pace.step(0, 50 * MS), 0, "at the limit nothing happens");
        assert_eq!(pace.step(100 * MS, 50 * MS + 1), MORE);
        assert_eq!(pace.step(199 * MS, 500 * MS), MORE, "one step at a time");
        assert_eq!(pace.step(200 * MS, 500 * MS), 2 * MORE);
        assert_eq!(
            pace.step(300 * MS, 25 * MS),
            2 * MORE,
            "between half and all of the limit it stays"
        );
        assert_eq!(pace.step(400 * MS, 25 * MS - 1), 2 * MORE - LESS);
        let mut now = 400 * MS;
        let mut steps = |lag| {
            for _ in 0..100 {
                now += STEP_NS;
                pace.step(now, lag);
            }
            pace.step(now, lag)
        };
        assert_eq!(steps(60 * MS), MOST);
        assert_eq!(steps(0), 0);
    }
}
