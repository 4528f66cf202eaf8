//! What a key can hold, each kind with an estimate of the memory it takes.
//!
//! The estimates are on the safe side: the store refuses writes by them before the allocator has nothing left. They
//! also bound what the store takes in the log: [`crate::log`] relies on every cost being at least the size of the records
//! that restore the element.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::tree::{HashTree, Keyed};

/// Memory of a list element beside its bytes: its box in a half-filled ring, and the allocation.
const LIST_ELEMENT_COST: usize = 64;
/// Memory of a member or field beside its bytes: its place in a half-filled tree node, and the allocation.
const MEMBER_COST: usize = 112;

/// An element whose memory can be told.
pub trait Cost {
    /// Estimate in bytes.
    fn cost(&self) -> usize;
}

/// Elements in a [`HashTree`] with the sum of their costs.
#[derive(Debug)]
pub struct Members<T> {
    tree: HashTree<T>,
    cost: usize,
}

impl<T> Default for Members<T> {
    fn default() -> Self {
        Self {
            tree: HashTree::default(),
            cost: 0,
        }
    }
}

impl<T: Keyed + Cost> Members<T> {
    /// The elements.
    #[must_use]
    pub fn tree(&self) -> &HashTree<T> {
        &self.tree
    }

    /// Puts an element in, and gives back the one with the same key.
    pub fn insert(&mut self, hash: u64, element: T) -> Option<T> {
        self.cost += element.cost();
        let before = self.tree.insert(hash, element);
        self.cost -= before.as_ref().map_or(0, Cost::cost);
        before
    }

    /// Takes an element out.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<T> {
        let removed = self.tree.remove(hash, key);
        self.cost -= removed.as_ref().map_or(0, Cost::cost);
        removed
    }
}

/// A member of a set.
pub type Member = Box<[u8]>;

impl Keyed for Member {
    fn key(&self) -> &[u8] {
        self
    }
}

impl Cost for Member {
    fn cost(&self) -> usize {
        MEMBER_COST + self.len()
    }
}

/// A field of a hash.
#[derive(Debug)]
pub struct Field {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

impl Keyed for Field {
    fn key(&self) -> &[u8] {
        &self.name
    }
}

impl Cost for Field {
    fn cost(&self) -> usize {
        MEMBER_COST + self.name.len() + self.value.len()
    }
}

/// A member of a sorted set with its score. Scores are integers: the guest has no floating point.
#[derive(Debug)]
pub struct Scored {
    pub member: Box<[u8]>,
    pub score: i64,
}

impl Keyed for Scored {
    fn key(&self) -> &[u8] {
        &self.member
    }
}

impl Cost for Scored {
    fn cost(&self) -> usize {
        // It stands in the tree and in the order.
        2 * (MEMBER_COST + self.member.len())
    }
}

/// A list.
#[derive(Debug, Default)]
pub struct List {
    items: VecDeque<Box<[u8]>>,
    bytes: usize,
}

/// An end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Left,
    Right,
}

impl List {
    /// The elements.
    #[must_use]
    pub fn items(&self) -> &VecDeque<Box<[u8]>> {
        &self.items
    }

    /// Adds an element.
    pub fn push(&mut self, end: End, item: &[u8]) {
        self.bytes += item.len();
        match end {
            End::Left => self.items.push_front(item.into()),
            End::Right => self.items.push_back(item.into()),
        }
    }

    /// Takes an element off.
    pub fn pop(&mut self, end: End) -> Option<Box<[u8]>> {
        let item = match end {
            End::Left => self.items.pop_front(),
            End::Right => self.items.pop_back(),
        }?;
        self.bytes -= item.len();
        if self.items.len() * 4 < self.items.capacity() {
            self.items.shrink_to(self.items.len() * 2);
        }
        Some(item)
    }
}

/// A sorted set.
#[derive(Debug, Default)]
pub struct Sorted {
    members: Members<Scored>,
    order: BTreeSet<(i64, Box<[u8]>)>,
}

impl Sorted {
    /// The members by hash.
    #[must_use]
    pub fn members(&self) -> &HashTree<Scored> {
        self.members.tree()
    }

    /// The members by score.
    #[must_use]
    pub fn order(&self) -> &BTreeSet<(i64, Box<[u8]>)> {
        &self.order
    }

    /// Sets a member's score, and gives back the one before.
    pub fn insert(&mut self, hash: u64, member: &[u8], score: i64) -> Option<i64> {
        let before = self.members.insert(
            hash,
            Scored {
                member: member.into(),
                score,
            },
        );
        let before = before.map(|before| {
            self.order.remove(&(before.score, before.member));
            before.score
        });
        self.order.insert((score, member.into()));
        before
    }

    /// Takes a member out.
    pub fn remove(&mut self, hash: u64, member: &[u8]) -> Option<i64> {
        let removed = self.members.remove(hash, member)?;
        self.order.remove(&(removed.score, removed.member));
        Some(removed.score)
    }
}

/// What a key holds.
#[derive(Debug)]
pub enum Value {
    String(Vec<u8>),
    List(List),
    Set(Members<Member>),
    Hash(Members<Field>),
    Sorted(Box<Sorted>),
}

/// A command met a key of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongType;

macro_rules! accessors {
    ($get:ident, $get_mut:ident, $variant:ident, $type:ty) => {
        /// The value as this kind.
        ///
        /// # Errors
        /// It is of another kind.
        pub fn $get(&self) -> Result<&$type, WrongType> {
            match self {
                Value::$variant(value) => Ok(value),
                _ => Err(WrongType),
            }
        }

        /// The value as this kind.
        ///
        /// # Errors
        /// It is of another kind.
        pub fn $get_mut(&mut self) -> Result<&mut $type, WrongType> {
            match self {
                Value::$variant(value) => Ok(value),
                _ => Err(WrongType),
            }
        }
    };
}

impl Value {
    accessors!(string, string_mut, String, Vec<u8>);
    accessors!(list, list_mut, List, List);
    accessors!(set, set_mut, Set, Members<Member>);
    accessors!(hash, hash_mut, Hash, Members<Field>);
    accessors!(sorted, sorted_mut, Sorted, Sorted);

    /// The kind as TYPE names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "string",
            Value::List(_) => "list",
            Value::Set(_) => "set",
            Value::Hash(_) => "hash",
            Value::Sorted(_) => "zset",
        }
    }

    /// Whether it is a collection without elements, which does not exist as a key.
    #[must_use]
    pub fn is_empty_collection(&self) -> bool {
        match self {
            Value::String(_) => false,
            Value::List(list) => list.items.is_empty(),
            Value::Set(members) => members.tree.is_empty(),
            Value::Hash(fields) => fields.tree.is_empty(),
            Value::Sorted(sorted) => sorted.order.is_empty(),
        }
    }
}

impl Cost for Value {
    fn cost(&self) -> usize {
        match self {
            Value::String(bytes) => bytes.capacity(),
            Value::List(list) => list.bytes + list.items.len() * LIST_ELEMENT_COST,
            Value::Set(members) => members.cost,
            Value::Hash(fields) => fields.cost,
            Value::Sorted(sorted) => sorted.members.cost,
        }
    }
}
