//! A map ordered by a keyed hash of its keys: key space, sets and hashes.
//!
//! Ordered by hash, a map can be walked in pieces by a stateless cursor that neither misses nor repeats an element that
//! stays (SCAN, snapshots), a random element is found by a random hash (SPOP), and growth never copies the whole.
//! With a secret hash key a client cannot make keys collide; where two do by chance, they share a bucket.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::Hasher;

use siphasher::sip::SipHasher13;

/// Hashes keys with a secret.
#[derive(Clone, Copy, Debug)]
pub struct Hash(SipHasher13);

impl Hash {
    /// A hash for this secret.
    #[must_use]
    pub fn new(secret: u64) -> Self {
        Self(SipHasher13::new_with_keys(
            secret,
            secret.rotate_left(32) ^ 0x6674_766d_6b76,
        ))
    }

    /// The hash of a key.
    #[must_use]
    pub fn of(&self, key: &[u8]) -> u64 {
        let mut hasher = self.0;
        hasher.write(key);
        hasher.finish()
    }
}

/// An element that has a key.
pub trait Keyed {
    /// What identifies the element.
    fn key(&self) -> &[u8];
}

#[derive(Debug)]
enum Bucket<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Bucket<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Bucket::One(element) => core::slice::from_ref(element),
            Bucket::Many(elements) => elements,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Bucket::One(element) => core::slice::from_mut(element),
            Bucket::Many(elements) => elements,
        }
    }
}

/// A map of elements, ordered by the hash of their keys.
#[derive(Debug)]
pub struct HashTree<T> {
    buckets: BTreeMap<u64, Bucket<T>>,
    len: usize,
}

impl<T> Default for HashTree<T> {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<T: Keyed> HashTree<T> {
    /// Elements in the map.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element with that key and hash.
    #[must_use]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&T> {
        self.buckets
            .get(&hash)?
            .as_slice()
            .iter()
            .find(|element| element.key() == key)
    }

    /// As `get`. The element's key must not be changed.
    pub fn get_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut T> {
        self.buckets
            .get_mut(&hash)?
            .as_mut_slice()
            .iter_mut()
            .find(|element| element.key() == key)
    }

    /// Puts an element in, and gives back the one with the same key.
    pub fn insert(&mut self, hash: u64, element: T) -> Option<T> {
        let Some(bucket) = self.buckets.get_mut(&hash) else {
            self.buckets.insert(hash, Bucket::One(element));
            self.len += 1;
            return None;
        };
        if let Some(same) = bucket
            .as_mut_slice()
            .iter_mut()
            .find(|other| other.key() == element.key())
        {
            return Some(core::mem::replace(same, element));
        }
        self.len += 1;
        match core::mem::replace(bucket, Bucket::Many(Vec::new())) {
            Bucket::One(other) => *bucket = Bucket::Many(Vec::from([other, element])),
            Bucket::Many(mut others) => {
                others.push(element);
                *bucket = Bucket::Many(others);
            }
        }
        None
    }

    /// Takes the element with that key and hash out.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<T> {
        let bucket = self.buckets.get_mut(&hash)?;
        let at = bucket.as_slice().iter().position(|element| element.key() == key)?;
        self.len -= 1;
        if let Bucket::Many(elements) = bucket
            && elements.len() > 1
        {
            return Some(elements.swap_remove(at));
        }
        match self.buckets.remove(&hash)? {
            Bucket::One(element) => Some(element),
            Bucket::Many(mut elements) => elements.pop(),
        }
    }

    /// All elements, by hash.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.buckets.values().flat_map(Bucket::as_slice)
    }

    /// Buckets with a hash of at least `from`: the hash and the elements that have it, rarely more than one.
    pub fn buckets(&self, from: u64) -> impl Iterator<Item = (u64, &[T])> {
        self.buckets
            .range(from..)
            .map(|(&hash, bucket)| (hash, bucket.as_slice()))
    }

    /// The element at or after a hash, and the first one if there is none: a random one for a random hash.
    #[must_use]
    pub fn near(&self, hash: u64) -> Option<(u64, &T)> {
        let (hash, elements) = self.buckets(hash).next().or_else(|| self.buckets(0).next())?;
        elements.first().map(|element| (hash, element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Keyed for (&'static str, u32) {
        fn key(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    #[test]
    fn elements_with_one_hash_stay_apart() {
        let mut tree = HashTree::default();
        for (value, key) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(tree.insert(7, (key, u32::try_from(value).unwrap())), None);
        }
        assert_eq!(tree.insert(7, ("b", 10)), Some(("b", 1)));
        assert_eq!(tree.len(), 3);
        assert_eq!(tree.get(7, b"b"), Some(&("b", 10)));
        assert_eq!(tree.get(8, b"b"), None);
        assert_eq!(tree.get(7, b"d"), None);
        assert_eq!(tree.remove(7, b"a"), Some(("a", 0)));
        assert_eq!(tree.remove(7, b"a"), None);
        assert_eq!(tree.remove(7, b"c"), Some(("c", 2)));
        assert_eq!(tree.len(), 1);
        tree.get_mut(7, b"b").unwrap().1 = 11;
        assert_eq!(tree.remove(7, b"b"), Some(("b", 11)));
        assert!(tree.is_empty() && tree.buckets(0).next().is_none());
    }

    #[test]
    fn walking_is_by_hash_and_near_wraps() {
        let mut tree = HashTree::default();
        for (hash, key) in [(30, "c"), (10, "a"), (20, "b")] {
            tree.insert(hash, (key, 0));
        }
        assert_eq!(
            tree.iter().map(|element| element.0).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        assert_eq!(tree.buckets(20).map(|(hash, _)| hash).collect::<Vec<_>>(), [20, 30]);
        assert_eq!(tree.near(21).unwrap().0, 30);
        assert_eq!(tree.near(30).unwrap().0, 30);
        assert_eq!(tree.near(31).unwrap().0, 10);
    }

    #[test]
    fn the_secret_changes_hashes() {
        assert_ne!(Hash::new(1).of(b"key"), Hash::new(2).of(b"key"));
        assert_eq!(Hash::new(1).of(b"key"), Hash::new(1).of(b"key"));
    }
}
