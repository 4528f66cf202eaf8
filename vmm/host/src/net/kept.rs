//! The last moments of inbound traffic at a backup, for the guest it may become (PROTOCOL 22).
//!
//! What clients send between the primary's death and the backup's go-live would be lost, and each client would wait for
//! its retransmission timer. The backup keeps the newest frames instead and hands them over when it goes live; what the
//! primary had already received arrives twice, which networks do. Pure: time is an argument.

use std::collections::VecDeque;

/// Frames kept: at most a queue of host events, because they are delivered into one.
pub const MAX_KEPT_FRAMES: usize = 512;

/// Bytes kept: [`MAX_KEPT_FRAMES`] of full size.
pub const MAX_KEPT_BYTES: usize = MAX_KEPT_FRAMES * super::MAX_FRAME;

/// The newest inbound frames, oldest first.
#[derive(Debug)]
pub(super) struct KeptFrames {
    frames: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    keep_ns: u64,
}

impl KeptFrames {
    /// Keeps frames for `keep_ns` nanoseconds.
    pub(super) fn new(keep_ns: u64) -> KeptFrames {
        KeptFrames {
            frames: VecDeque::new(),
            bytes: 0,
            keep_ns,
        }
    }

    /// Keeps a frame that arrived at `now` (nanoseconds, never decreasing) and forgets what is too old or too much.
    /// Returns how many frames were forgotten.
    pub(super) fn keep(&mut self, now: u64, frame: Vec<u8>) -> u64 {
        self.bytes += frame.len();
        self.frames.push_back((now, frame));
        let mut forgotten = self.forget_old(now);
        while self.frames.len() > MAX_KEPT_FRAMES || self.bytes > MAX_KEPT_BYTES {
            self.forget_first();
            forgotten += 1;
        }
        forgotten
    }

    /// Hands over what is not too old at `now`, in the order of arrival, and keeps nothing.
    pub(super) fn take(&mut self, now: u64) -> impl Iterator<Item = Vec<u8>> + use<> {
        self.forget_old(now);
        self.bytes = 0;
        std::mem::take(&mut self.frames).into_iter().map(|(_, frame)| frame)
    }

    fn forget_old(&mut self, now: u64) -> u64 {
        let mut forgotten = 0;
        while self
            .frames
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > self.keep_ns)
        {
            self.forget_first();
            forgotten += 1;
        }
        forgotten
    }

    fn forget_first(&mut self) {
        if let Some((_, frame)) = self.frames.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(kept: &mut KeptFrames, now: u64) -> Vec<Vec<u8>> {
        kept.take(now).collect()
    }

    #[test]
    fn frames_are_kept_exactly_as_long_as_asked() {
        let mut kept = KeptFrames::new(100);
        assert_eq!(kept.keep(0, vec![1]), 0);
        assert_eq!(kept.keep(1, vec![2]), 0);
        assert_eq!(
            kept.keep(101, vec![3]),
            1,
            "101 after the first: too old; 100 after the second: not yet"
        );
        assert_eq!(frames(&mut kept, 101), [vec![2], vec![3]]);
        assert!(frames(&mut kept, 101).is_empty(), "taken once");
    }

    #[test]
    fn taking_forgets_what_grew_old_since() {
        let mut kept = KeptFrames::new(100);
        kept.keep(0, vec![1]);
        kept.keep(50, vec![2]);
        assert_eq!(frames(&mut kept, 101), [vec![2]]);
    }

    #[test]
    fn the_newest_frames_stay_when_there_are_too_many() {
        let mut kept = KeptFrames::new(u64::MAX);
        let count = u16::try_from(MAX_KEPT_FRAMES).expect("small");
        for number in 0..count {
            assert_eq!(kept.keep(0, number.to_be_bytes().to_vec()), 0);
        }
        assert_eq!(kept.keep(0, count.to_be_bytes().to_vec()), 1);
        let left = frames(&mut kept, 0);
        assert_eq!(left.len(), MAX_KEPT_FRAMES);
        assert_eq!(left[0], 1u16.to_be_bytes());
        assert_eq!(left[MAX_KEPT_FRAMES - 1], count.to_be_bytes());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut kept = KeptFrames::new(u64::MAX);
        kept.keep(0, vec![0; MAX_KEPT_BYTES]);
        assert_eq!(kept.bytes, MAX_KEPT_BYTES);
        assert_eq!(kept.keep(0, vec![1]), 1);
        assert_eq!(kept.bytes, 1);
        assert_eq!(frames(&mut kept, 0), [vec![1]]);
        assert_eq!(kept.bytes, 0);
    }
}
