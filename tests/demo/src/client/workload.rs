//! What the client writes, what it may expect back, and how long it had to wait. Pure: time is an argument.
//!
//! Write number N (from 1) sets key `N mod keys` to a value with N in it. Answers come in the order of the requests, so
//! an acknowledged write is known by counting. In the end every key with an acknowledged write is read back, and must
//! hold exactly the latest acknowledged value: anything else is a lost write.

use std::collections::VecDeque;

use super::resp::{Reply, write_command};

/// A time without acknowledgements, in nanoseconds since the client's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before.
    pub from_ns: u64,
    /// The first acknowledgement after.
    pub to_ns: u64,
}

impl Gap {
    /// Its length in nanoseconds.
    #[must_use]
    pub fn len_ns(&self) -> u64 {
        self.to_ns.saturating_sub(self.from_ns)
    }
}

/// What the server has confirmed or broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes answered with +OK.
    pub acked_writes: u64,
    /// Writes answered with an error: the server did not take them, and said so.
    pub refused_writes: u64,
    /// Keys read back whose value was the latest acknowledged one.
    pub verified_keys: u64,
    /// Keys read back whose value was missing or another one.
    pub lost_writes: u64,
    /// Keys with an acknowledged write that were not read back.
    pub unverified_keys: u64,
    /// The first lost write: key, expected and found.
    pub first_lost: Option<String>,
    /// The longest time between two acknowledgements.
    pub longest_gap: Gap,
}

/// An answer that does not belong to its request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{request} was answered with {reply}")]
pub struct Unexpected {
    pub request: String,
    pub reply: String,
}

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A write is done.
    Acknowledgement,
    /// A write was refused, or a value read.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Set(u64),
    Get(usize),
}

/// The client's side of one connection.
#[derive(Debug)]
pub(super) struct Workload {
    keys: usize,
    depth: usize,
    next_write: u64,
    /// Unanswered, in order; at most `depth`.
    waiting: VecDeque<Request>,
    /// Per key the number of its latest acknowledged write, 0 for none.
    acked: Vec<u64>,
    next_read: usize,
    last_ack: Option<u64>,
    pub(super) tally: Tally,
}

impl Workload {
    /// Writes to `keys` keys (at least 1), up to `depth` requests (at least 1) unanswered.
    pub(super) fn new(keys: usize, depth: usize) -> Workload {
        Workload {
            keys: keys.max(1),
            depth: depth.max(1),
            next_write: 1,
            waiting: VecDeque::new(),
            acked: Vec::new(),
            next_read: 0,
            last_ack: None,
            tally: Tally::default(),
        }
    }

    /// Whether another request may be sent before the next answer.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < self.depth
    }

    /// Requests without an answer yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Appends the next write to `out`.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let number = self.next_write;
        self.next_write += 1;
        self.waiting.push_back(Request::Set(number));
        write_command(out, &["SET", &key_name(self.key(number)), &value(number)]);
    }

    /// Appends the next read-back to `out`. `false` when every acknowledged write has been asked for, and while a write
    /// is unanswered, whose key would be read too early.
    pub(super) fn read_back(&mut self, out: &mut Vec<u8>) -> bool {
        if self.waiting.iter().any(|request| matches!(request, Request::Set(_))) {
            return false;
        }
        while self.acked.get(self.next_read) == Some(&0) {
            self.next_read += 1;
        }
        if self.next_read >= self.acked.len() {
            return false;
        }
        self.waiting.push_back(Request::Get(self.next_read));
        write_command(out, &["GET", &key_name(self.next_read)]);
        self.next_read += 1;
        true
    }

    /// Takes the next answer, which came at `now_ns`, and says what it was.
    pub(super) fn answer(&mut self, reply: &Reply, now_ns: u64) -> Result<Answer, Unexpected> {
        match (self.waiting.pop_front(), reply) {
            (Some(Request::Set(number)), Reply::SimpleString(text)) if text == b"OK" => {
                self.acked(number, now_ns);
                return Ok(Answer::Acknowledgement);
            }
            (Some(Request::Set(_)), Reply::Error(_)) => self.tally.refused_writes += 1,
            (Some(Request::Get(key)), Reply::BulkString(found)) => self.compare(key, Some(found)),
            (Some(Request::Get(key)), Reply::Null) => self.compare(key, None),
            (request, reply) => {
                return Err(Unexpected {
                    request: request.map_or("nothing".into(), |request| format!("{request:?}")),
                    reply: format!("{reply:?}"),
                });
            }
        }
        Ok(Answer::Other)
    }

    /// How long ago the last acknowledgement was, if any.
    pub(super) fn since_last_ack(&self, now_ns: u64) -> Option<u64> {
        self.last_ack.map(|last| now_ns.saturating_sub(last))
    }

    /// The end: keys that were not read back stay unverified.
    pub(super) fn finish(mut self) -> Tally {
        let acknowledged = self.acked.iter().filter(|number| **number != 0).count();
        let read = self.tally.verified_keys + self.tally.lost_writes;
        self.tally.unverified_keys = u64::try_from(acknowledged).expect("64 bits").saturating_sub(read);
        self.tally
    }

    fn acked(&mut self, number: u64, now_ns: u64) {
        let key = self.key(number);
        if self.acked.len() <= key {
            self.acked.resize(key + 1, 0);
        }
        self.acked[key] = number;
        self.tally.acked_writes += 1;
        let gap = Gap {
            from_ns: self.last_ack.unwrap_or(now_ns),
            to_ns: now_ns,
        };
        if gap.len_ns() > self.tally.longest_gap.len_ns() {
            self.tally.longest_gap = gap;
        }
        self.last_ack = Some(now_ns);
    }

    fn compare(&mut self, key: usize, found: Option<&[u8]>) {
        let expected = value(self.acked[key]);
        if found == Some(expected.as_bytes()) {
            self.tally.verified_keys += 1;
            return;
        }
        self.tally.lost_writes += 1;
        self.tally.first_lost.get_or_insert_with(|| {
            let found = found.map_or("nothing".into(), |found| {
                format!("{:?}", String::from_utf8_lossy(found))
            });
            format!("{} is {found}, acknowledged was {expected:?}", key_name(key))
        });
    }

    fn key(&self, number: u64) -> usize {
        usize::try_from((number - 1) % u64::try_from(self.keys).expect("64 bits")).expect("less than `keys`")
    }
}

fn key_name(key: usize) -> String {
    format!("key:{}", key + 1)
}

fn value(number: u64) -> String {
    format!("value:{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn ok() -> Reply {
        Reply::SimpleString(b"OK".to_vec())
    }

    fn bulk(text: &str) -> Reply {
        Reply::BulkString(text.as_bytes().to_vec())
    }

    fn written(workload: &mut Workload, count: usize) {
        for number in 0..count {
            workload.write(&mut Vec::new());
            workload.answer(&ok(), number as u64 * MS).expect("expected");
        }
    }

    #[test]
    fn writes_are_numbered_and_bounded() {
        let mut workload = Workload::new(100, 2);
        let mut out = Vec::new();
        assert!(workload.has_room());
        workload.write(&mut out);
        workload.write(&mut out);
        assert!(!workload.has_room());
        let expected =
            "*3\r\n$3\r\nSET\r\n$5\r\nkey:1\r\n$7\r\nvalue:1\r\n*3\r\n$3\r\nSET\r\n$5\r\nkey:2\r\n$7\r\nvalue:2\r\n";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
        workload.answer(&ok(), 0).expect("expected");
        assert!(workload.has_room());
        assert_eq!(workload.waiting(), 1);
    }

    #[test]
    fn every_acknowledged_key_is_read_back() {
        let mut workload = Workload::new(100, 4);
        written(&mut workload, 3);
        let mut out = Vec::new();
        while workload.read_back(&mut out) {}
        assert_eq!(workload.waiting(), 3);
        for number in 1..=3 {
            workload.answer(&bulk(&format!("value:{number}")), 0).expect("expected");
        }
        let tally = workload.finish();
        assert_eq!(
            (
                tally.acked_writes,
                tally.verified_keys,
                tally.lost_writes,
                tally.unverified_keys
            ),
            (3, 3, 0, 0)
        );
    }

    #[test]
    fn reading_back_waits_for_the_last_write() {
        let mut workload = Workload::new(100, 4);
        written(&mut workload, 1);
        workload.write(&mut Vec::new());
        assert!(!workload.read_back(&mut Vec::new()));
        assert_eq!(workload.answer(&ok(), 0), Ok(Answer::Acknowledgement));
        assert!(workload.read_back(&mut Vec::new()));
        assert!(workload.read_back(&mut Vec::new()));
        assert_eq!(workload.answer(&bulk("value:1"), 0), Ok(Answer::Other));
        assert!(!workload.read_back(&mut Vec::new()));
    }

    #[test]
    fn missing_and_wrong_values_are_lost_writes() {
        let mut workload = Workload::new(100, 4);
        written(&mut workload, 4);
        while workload.read_back(&mut Vec::new()) {}
        workload.answer(&bulk("value:1"), 0).expect("expected");
        workload.answer(&Reply::Null, 0).expect("expected");
        workload.answer(&bulk("value:4"), 0).expect("expected");
        let tally = workload.finish();
        assert_eq!(
            (tally.verified_keys, tally.lost_writes, tally.unverified_keys),
            (1, 2, 1)
        );
        assert_eq!(
            tally.first_lost.expect("one"),
            "key:2 is nothing, acknowledged was \"value:2\""
        );
    }

    #[test]
    fn a_key_written_again_must_hold_the_latest_acknowledged_value() {
        let mut workload = Workload::new(2, 4);
        written(&mut workload, 3);
        while workload.read_back(&mut Vec::new()) {}
        workload.answer(&bulk("value:1"), 0).expect("an old value");
        workload.answer(&bulk("value:2"), 0).expect("expected");
        let tally = workload.finish();
        assert_eq!((tally.verified_keys, tally.lost_writes), (1, 1));
    }

    #[test]
    fn a_refused_write_is_not_acknowledged() {
        let mut workload = Workload::new(100, 4);
        workload.write(&mut Vec::new());
        workload.answer(&Reply::Error("ERR full".into()), 0).expect("expected");
        written(&mut workload, 1);
        let mut out = Vec::new();
        while workload.read_back(&mut out) {}
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$5\r\nkey:2\r\n");
        assert_eq!((workload.tally.acked_writes, workload.tally.refused_writes), (1, 1));
    }

    #[test]
    fn answers_to_nothing_or_of_the_wrong_kind_are_errors() {
        let mut workload = Workload::new(100, 4);
        assert_eq!(
            workload.answer(&ok(), 0).expect_err("nothing was asked").request,
            "nothing"
        );
        workload.write(&mut Vec::new());
        assert!(workload.answer(&bulk("value:1"), 0).is_err());
        workload.write(&mut Vec::new());
        assert!(workload.answer(&Reply::SimpleString(b"QUEUED".to_vec()), 0).is_err());
    }

    #[test]
    fn the_longest_gap_lies_between_two_acknowledgements() {
        let mut workload = Workload::new(100, 1);
        for at in [1000, 1001, 1003, 1503, 1504, 1510] {
            workload.write(&mut Vec::new());
            workload.answer(&ok(), at * MS).expect("expected");
        }
        let expected = Gap {
            from_ns: 1003 * MS,
            to_ns: 1503 * MS,
        };
        assert_eq!(
            workload.tally.longest_gap, expected,
            "and not the time before the first one"
        );
        assert_eq!(workload.since_last_ack(1600 * MS), Some(90 * MS));
    }
}
