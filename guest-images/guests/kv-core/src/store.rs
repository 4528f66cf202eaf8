//! The key space: keys with values and deadlines, and the memory they take.
//!
//! Keys are kept in their own order, so that the store can be walked in pieces from any key on, as the log's rewrite does.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Bound;

/// Memory of a key beside its bytes and its value: its place in a half-filled tree node, the deadline, allocations.
const KEY_COST: usize = 240;

/// What a key holds.
#[derive(Debug)]
pub struct Entry {
    value: Vec<u8>,
    /// When the key ends, in milliseconds since 1970.
    deadline: Option<u64>,
}

impl Entry {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// When the key ends, in milliseconds since 1970.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Estimate of its memory and its key's in bytes. It is on the safe side: the store refuses writes by it before the
    /// allocator has nothing left. It also bounds what the store takes in the log, because it is never less than the
    /// command that restores the key.
    fn cost(&self, key: &[u8]) -> usize {
        // Twice the key, because it stands once more beside its deadline.
        KEY_COST + 2 * key.len() + self.value.capacity()
    }
}

/// All keys.
#[derive(Debug, Default)]
pub struct Store {
    keys: BTreeMap<Box<[u8]>, Entry>,
    /// Deadlines with the key they are about.
    deadlines: BTreeSet<(u64, Box<[u8]>)>,
    used: usize,
}

impl Store {
    /// Estimate of the memory in use, in bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys that have a deadline.
    #[must_use]
    pub fn volatile_keys(&self) -> usize {
        self.deadlines.len()
    }

    /// All keys in order; only those behind `after`, if it is given.
    pub fn iter_after(&self, after: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &Entry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys
            .range::<[u8], _>((from, Bound::Unbounded))
            .map(|(key, entry)| (&key[..], entry))
    }

    /// The entry of a key.
    #[must_use]
    pub fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entry(key).map(Entry::value)
    }

    /// Sets a key, whatever it was before.
    pub fn set(&mut self, key: &[u8], value: Vec<u8>, deadline: Option<u64>) {
        let entry = Entry { value, deadline };
        self.used += entry.cost(key);
        if let Some(before) = self.keys.insert(key.into(), entry) {
            self.used -= before.cost(key);
            self.forget_deadline(key, before.deadline);
        }
        self.note_deadline(key, deadline);
    }

    /// Removes a key; `false` if there is no such key.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some(entry) = self.keys.remove(key) else {
            return false;
        };
        self.used -= entry.cost(key);
        self.forget_deadline(key, entry.deadline);
        true
    }

    /// Changes a key's deadline; `false` if there is no such key.
    pub fn set_deadline(&mut self, key: &[u8], deadline: Option<u64>) -> bool {
        let Some(entry) = self.keys.get_mut(key) else {
            return false;
        };
        let before = core::mem::replace(&mut entry.deadline, deadline);
        self.forget_deadline(key, before);
        self.note_deadline(key, deadline);
        true
    }

    /// Lets `change` work on a key's value, which is empty if there was no such key. The deadline stays.
    pub fn update(&mut self, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
        match self.keys.get_mut(key) {
            Some(entry) => {
                let before = entry.cost(key);
                change(&mut entry.value);
                self.used = self.used + entry.cost(key) - before;
            }
            None => {
                let mut value = Vec::new();
                change(&mut value);
                self.set(key, value, None);
            }
        }
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// When the next key ends, in milliseconds since 1970.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Removes a key whose deadline is not after `now`, and gives back the key.
    pub fn expire_one(&mut self, now: u64) -> Option<Box<[u8]>> {
        let (deadline, key) = self.deadlines.first()?;
        if *deadline > now {
            return None;
        }
        let key = key.clone();
        self.remove(&key);
        Some(key)
    }

    fn note_deadline(&mut self, key: &[u8], deadline: Option<u64>) {
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, key.into()));
        }
    }

    /// Forgets the deadline of a key that has gone or has got another one.
    fn forget_deadline(&mut self, key: &[u8], deadline: Option<u64>) {
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, key.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_memory_returns_to_zero() {
        let mut store = Store::default();
        store.set(b"a", b"12345".to_vec(), None);
        let one = store.used();
        assert_eq!(one, KEY_COST + 2 + 5);
        store.set(b"a", b"1".to_vec(), Some(5));
        assert_eq!(store.used(), one - 4);
        store.update(b"a", |value| *value = Vec::new());
        assert_eq!(store.used(), one - 5);
        store.update(b"b", |value| value.push(b'x'));
        assert!(store.used() > one);
        assert!(store.remove(b"a"));
        assert!(!store.remove(b"a"));
        assert!(store.remove(b"b"));
        assert_eq!((store.used(), store.len(), store.volatile_keys()), (0, 0, 0));
    }

    #[test]
    fn an_update_keeps_the_deadline_and_makes_missing_keys() {
        let mut store = Store::default();
        store.set(b"a", b"1".to_vec(), Some(5));
        store.update(b"a", |value| value.push(b'2'));
        store.update(b"b", |value| value.push(b'3'));
        let found = |key: &[u8]| store.entry(key).map(|entry| (entry.value(), entry.deadline()));
        assert_eq!(found(b"a"), Some((&b"12"[..], Some(5))));
        assert_eq!(found(b"b"), Some((&b"3"[..], None)));
    }

    #[test]
    fn keys_are_walked_in_order_from_any_place() {
        let mut store = Store::default();
        for key in ["c", "a", "b"] {
            store.set(key.as_bytes(), Vec::new(), None);
        }
        let walk = |after: Option<&str>| {
            let keys = store.iter_after(after.map(str::as_bytes)).map(|(key, _)| key.to_vec());
            String::from_utf8(keys.flatten().collect()).unwrap()
        };
        assert_eq!(walk(None), "abc");
        assert_eq!(walk(Some("a")), "bc");
        assert_eq!(walk(Some("aa")), "bc");
        assert_eq!(walk(Some("c")), "");
    }

    #[test]
    fn keys_end_at_their_deadline_in_order() {
        let mut store = Store::default();
        store.set(b"late", Vec::new(), Some(30));
        store.set(b"early", Vec::new(), Some(10));
        store.set(b"moved", Vec::new(), Some(5));
        store.set(b"kept", Vec::new(), Some(6));
        assert!(store.set_deadline(b"moved", Some(20)));
        assert!(store.set_deadline(b"kept", None));
        assert!(!store.set_deadline(b"none", Some(1)));
        assert_eq!(store.next_deadline(), Some(10));
        assert_eq!(store.expire_one(9), None);
        assert_eq!(store.expire_one(25).as_deref(), Some(&b"early"[..]));
        assert_eq!(store.expire_one(25).as_deref(), Some(&b"moved"[..]));
        assert_eq!(store.expire_one(29), None);
        assert_eq!(store.expire_one(30).as_deref(), Some(&b"late"[..]));
        assert_eq!(store.expire_one(u64::MAX), None);
        assert!(store.get(b"kept").is_some());
        store.set(b"kept", Vec::new(), Some(1));
        store.clear();
        assert_eq!((store.used(), store.next_deadline()), (0, None));
    }

    #[test]
    fn keys_with_one_deadline_end_one_by_one() {
        let mut store = Store::default();
        store.set(b"b", Vec::new(), Some(10));
        store.set(b"a", Vec::new(), Some(10));
        assert_eq!(store.expire_one(10).as_deref(), Some(&b"a"[..]));
        assert_eq!(store.expire_one(10).as_deref(), Some(&b"b"[..]));
        assert_eq!((store.expire_one(10), store.is_empty()), (None, true));
    }
}
