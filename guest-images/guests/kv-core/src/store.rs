//! The key space: keys with values and deadlines, and the memory they take.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;

use crate::tree::{Hash, HashTree, Keyed};
use crate::value::{Cost, Value};

/// Memory of a key beside its bytes and its value: its place in a half-filled tree node, the deadline, allocations.
const KEY_COST: usize = 240;

/// A key with what it holds.
#[derive(Debug)]
pub struct Entry {
    key: Box<[u8]>,
    value: Value,
    /// When it ends, in milliseconds since 1970.
    deadline: Option<u64>,
}

impl Entry {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// When the key ends, in milliseconds since 1970.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }
}

impl Keyed for Entry {
    fn key(&self) -> &[u8] {
        &self.key
    }
}

impl Cost for Entry {
    fn cost(&self) -> usize {
        // Twice the key, because the log repeats it with a collection's deadline.
        KEY_COST + 2 * self.key.len() + self.value.cost()
    }
}

/// All keys.
#[derive(Debug)]
pub struct Store {
    hash: Hash,
    keys: HashTree<Entry>,
    /// Deadlines with the hash of the key they are about.
    deadlines: BTreeSet<(u64, u64)>,
    used: usize,
}

impl Store {
    /// An empty store whose hashes depend on a secret.
    #[must_use]
    pub fn new(secret: u64) -> Self {
        Self {
            hash: Hash::new(secret),
            keys: HashTree::default(),
            deadlines: BTreeSet::new(),
            used: 0,
        }
    }

    /// The hash that the store and the collections in it use.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Estimate of the memory in use, in bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &HashTree<Entry> {
        &self.keys
    }

    /// Keys that have a deadline.
    #[must_use]
    pub fn volatile_keys(&self) -> usize {
        self.deadlines.len()
    }

    /// The entry of a key.
    #[must_use]
    pub fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(self.hash.of(key), key)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Value> {
        self.entry(key).map(Entry::value)
    }

    /// Sets a key, whatever it was before.
    pub fn set(&mut self, key: &[u8], value: Value, deadline: Option<u64>) {
        let hash = self.hash.of(key);
        let entry = Entry {
            key: key.into(),
            value,
            deadline,
        };
        self.used += entry.cost();
        if let Some(before) = self.keys.insert(hash, entry) {
            self.used -= before.cost();
            self.forget_deadline(hash, before.deadline);
        }
        self.note_deadline(hash, deadline);
    }

    /// Removes a key, and gives back its value.
    pub fn remove(&mut self, key: &[u8]) -> Option<Value> {
        let hash = self.hash.of(key);
        let entry = self.keys.remove(hash, key)?;
        self.used -= entry.cost();
        self.forget_deadline(hash, entry.deadline);
        Some(entry.value)
    }

    /// Changes a key's deadline; `false` if there is no such key.
    pub fn set_deadline(&mut self, key: &[u8], deadline: Option<u64>) -> bool {
        let hash = self.hash.of(key);
        let Some(entry) = self.keys.get_mut(hash, key) else {
            return false;
        };
        let before = core::mem::replace(&mut entry.deadline, deadline);
        self.forget_deadline(hash, before);
        self.note_deadline(hash, deadline);
        true
    }

    /// Lets `change` work on a key's value. A collection that it leaves empty is removed.
    pub fn update<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Value) -> R) -> Option<R> {
        let hash = self.hash.of(key);
        let entry = self.keys.get_mut(hash, key)?;
        let before = entry.value.cost();
        let result = change(&mut entry.value);
        self.used = self.used + entry.value.cost() - before;
        if entry.value.is_empty_collection() {
            self.remove(key);
        }
        Some(result)
    }

    /// As `update`, on a new value if there is no such key.
    pub fn update_or<R>(&mut self, key: &[u8], new: impl FnOnce() -> Value, change: impl FnOnce(&mut Value) -> R) -> R {
        if self.entry(key).is_none() {
            let mut value = new();
            let result = change(&mut value);
            if !value.is_empty_collection() {
                self.set(key, value, None);
            }
            return result;
        }
        self.update(key, change).expect("the key has just been found")
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.keys = HashTree::default();
        self.deadlines.clear();
        self.used = 0;
    }

    /// When the next key ends, in milliseconds since 1970.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Removes a key whose deadline is not after `now`, and gives back the key.
    pub fn expire_one(&mut self, now: u64) -> Option<Box<[u8]>> {
        let &(deadline, hash) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        let (_, entries) = self.keys.buckets(hash).next()?;
        let key = entries
            .iter()
            .find(|entry| entry.deadline == Some(deadline))?
            .key
            .clone();
        self.remove(&key);
        Some(key)
    }

    fn note_deadline(&mut self, hash: u64, deadline: Option<u64>) {
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, hash));
        }
    }

    /// Forgets the deadline of an entry that has gone or has got another one. Two keys with one hash and one deadline share
    /// a note.
    fn forget_deadline(&mut self, hash: u64, deadline: Option<u64>) {
        let Some(deadline) = deadline else {
            return;
        };
        let bucket = self.keys.buckets(hash).next().filter(|&(found, _)| found == hash);
        if !bucket.is_some_and(|(_, entries)| entries.iter().any(|entry| entry.deadline == Some(deadline))) {
            self.deadlines.remove(&(deadline, hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{End, List};

    fn text(bytes: &[u8]) -> Value {
        Value::String(bytes.to_vec())
    }

    #[test]
    fn used_memory_returns_to_zero() {
        let mut store = Store::new(1);
        store.set(b"a", text(b"12345"), None);
        let one = store.used();
        assert_eq!(one, KEY_COST + 2 + 5);
        store.set(b"a", text(b"1"), Some(5));
        assert_eq!(store.used(), one - 4);
        store.update(b"a", |value| value.string_mut().unwrap().clear()).unwrap();
        store.update_or(
            b"l",
            || Value::List(List::default()),
            |value| value.list_mut().unwrap().push(End::Left, b"x"),
        );
        assert!(store.used() > one);
        assert!(store.remove(b"a").is_some());
        assert!(store.remove(b"a").is_none());
        assert_eq!(
            store.update(b"l", |value| value.list_mut().unwrap().pop(End::Right)),
            Some(Some((*b"x").into()))
        );
        assert_eq!((store.used(), store.keys().len(), store.volatile_keys()), (0, 0, 0));
    }

    #[test]
    fn an_update_that_makes_nothing_leaves_no_key() {
        let mut store = Store::new(1);
        store.update_or(b"l", || Value::List(List::default()), |_| ());
        assert!(store.get(b"l").is_none());
        assert_eq!(store.update(b"l", |_| ()), None);
    }

    #[test]
    fn keys_end_at_their_deadline_in_order() {
        let mut store = Store::new(1);
        store.set(b"late", text(b""), Some(30));
        store.set(b"early", text(b""), Some(10));
        store.set(b"moved", text(b""), Some(5));
        store.set(b"kept", text(b""), Some(6));
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
        store.set(b"kept", text(b""), Some(1));
        store.clear();
        assert_eq!((store.used(), store.next_deadline()), (0, None));
    }
}
