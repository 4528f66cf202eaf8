//! One live side at a time, judged from what the wire heard and what the sides reported. Pure.
//!
//! Every life begins with a higher generation. From the first frame of a life on, nobody else may speak for the guest,
//! except that a frame of the life before may still be on its way: the new life repeats what it does not know to have
//! left, so such a frame is a duplicate, byte for byte (PROTOCOL 7, 14). Anything else is a second live side.

use std::collections::{BTreeMap, BTreeSet};

use super::ether::Frame;

/// A guest's life on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub generation: u64,
    /// The host, which is also its port at the wire.
    pub host: usize,
    /// The process, by a number of its own.
    pub process: u64,
    /// It cannot have spoken before: the start, or the suspicion that led to it. CLOCK_BOOTTIME.
    pub from_ns: u64,
}

/// Judges frames as they come.
#[derive(Debug, Default)]
pub struct Judge {
    lives: Vec<Life>,
    /// Which process won a generation.
    winners: BTreeMap<u64, u64>,
    /// The life that spoke last.
    current: usize,
    /// What it said.
    said: BTreeSet<u64>,
    late: Vec<Frame>,
    pub wrong: Vec<String>,
    /// Frames of a life that was over, which the next one repeated.
    pub duplicates: u64,
}

impl Judge {
    /// A side says that it won a generation.
    pub fn won(&mut self, generation: u64, process: u64) {
        let winner = *self.winners.entry(generation).or_insert(process);
        if winner != process {
            self.wrong.push(format!(
                "generation {generation} was won by process {winner} and by process {process}"
            ));
        }
    }

    /// A side says that it is live.
    pub fn lives(&mut self, life: Life) {
        self.won(life.generation, life.process);
        self.lives.push(life);
        self.lives.sort_by_key(|life| life.generation);
    }

    /// How often the guest has moved.
    #[must_use]
    pub fn moves(&self) -> usize {
        self.lives.len().saturating_sub(1)
    }

    /// Takes what the wire heard while `lives` were known. All that is said of a life must have been told before.
    pub fn hear(&mut self, frames: &[Frame]) {
        for moment in frames.chunk_by(|one, next| one.moment == next.moment) {
            // Of one moment the life that is current spoke first.
            let (current, others): (Vec<&Frame>, Vec<&Frame>) = moment
                .iter()
                .partition(|frame| self.lives.get(self.current).is_some_and(|life| life.host == frame.port));
            for frame in current.into_iter().chain(others) {
                self.hear_one(*frame);
            }
        }
        self.settle();
    }

    fn hear_one(&mut self, frame: Frame) {
        let Some(life) = self.lives.get(self.current) else {
            self.wrong
                .push(format!("host {} spoke before any life began", frame.port));
            return;
        };
        if life.host == frame.port {
            self.said.insert(frame.hash);
            return;
        }
        let begun = |next: &Life| next.host == frame.port && next.from_ns <= frame.at_ns;
        let later = self.lives.iter().skip(self.current + 1).position(begun);
        match later {
            Some(more) => {
                // What the life before left on its way is judged by what the new one says.
                self.settle();
                self.current += 1 + more;
                self.said = BTreeSet::from([frame.hash]);
            }
            None => self.late.push(frame),
        }
    }

    /// Late frames must have been repeated by now.
    fn settle(&mut self) {
        for frame in std::mem::take(&mut self.late) {
            match self.said.contains(&frame.hash) {
                true => self.duplicates += 1,
                false => self.wrong.push(format!(
                    "host {} said something of its own at {} ns while the guest lived on host {}",
                    frame.port, frame.at_ns, self.lives[self.current].host
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(at_ns: u64, port: usize, hash: u64) -> Frame {
        Frame {
            at_ns,
            moment: at_ns,
            port,
            hash,
        }
    }

    /// The guest starts on host 0 and goes to host 1, where the other side is suspected at 100.
    fn moved() -> Judge {
        let mut judge = Judge::default();
        for (generation, host, process, from_ns) in [(1, 0, 7, 1), (2, 1, 8, 100)] {
            judge.lives(Life {
                generation,
                host,
                process,
                from_ns,
            });
        }
        judge
    }

    #[test]
    fn one_life_after_the_other_is_right() {
        let mut judge = moved();
        judge.hear(&[frame(10, 0, 1), frame(120, 0, 2), frame(130, 1, 2), frame(140, 1, 3)]);
        judge.hear(&[frame(150, 1, 4)]);
        assert_eq!((judge.wrong.len(), judge.duplicates, judge.moves()), (0, 0, 1));
    }

    #[test]
    fn a_late_frame_must_be_a_duplicate() {
        let mut judge = moved();
        judge.hear(&[frame(10, 0, 1), frame(130, 1, 3), frame(131, 0, 2), frame(132, 1, 2)]);
        assert_eq!((judge.wrong.len(), judge.duplicates), (0, 1));
        judge.hear(&[frame(133, 0, 5), frame(140, 1, 6)]);
        assert_eq!(judge.wrong.len(), 1, "{:?}", judge.wrong);
    }

    #[test]
    fn nobody_speaks_before_it_suspects() {
        let mut judge = moved();
        judge.hear(&[frame(10, 0, 1), frame(99, 1, 2)]);
        assert_eq!(judge.wrong.len(), 1);
        let mut judge = moved();
        judge.hear(&[frame(10, 0, 1), frame(100, 1, 2)]);
        assert!(judge.wrong.is_empty());
    }

    #[test]
    fn two_lives_in_turns_are_two_live_sides() {
        let mut judge = moved();
        judge.hear(&[frame(110, 0, 1), frame(120, 1, 2), frame(130, 0, 3), frame(140, 1, 4)]);
        assert_eq!(judge.wrong.len(), 1);
    }

    #[test]
    fn the_order_of_one_moment_is_nobodys_fault() {
        let mut judge = moved();
        let at_once = [(1, 2), (0, 1)].map(|(port, hash)| Frame {
            moment: 5,
            ..frame(120, port, hash)
        });
        judge.hear(&at_once);
        assert!(judge.wrong.is_empty(), "{:?}", judge.wrong);
    }

    #[test]
    fn a_generation_has_one_winner() {
        let mut judge = moved();
        judge.won(2, 8);
        assert!(judge.wrong.is_empty());
        judge.won(2, 7);
        assert_eq!(judge.wrong.len(), 1);
    }

    #[test]
    fn the_third_host_is_nobody() {
        let mut judge = moved();
        judge.hear(&[frame(10, 2, 1)]);
        assert_eq!(judge.wrong.len(), 1);
        let mut judge = Judge::default();
        judge.hear(&[frame(10, 0, 1)]);
        assert_eq!(judge.wrong.len(), 1);
    }
}
