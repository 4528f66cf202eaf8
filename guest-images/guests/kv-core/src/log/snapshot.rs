//! The store as commands that restore it, in pieces.

use alloc::vec::Vec;

use crate::journal::append;
use crate::reply::Decimal;
use crate::store::{Entry, Store};
use crate::tree::{HashTree, Keyed};
use crate::value::{Cost, Value};

/// Most elements of a collection in one command.
const MAX_ELEMENTS: usize = 4096;

/// Bytes of elements that one command should have, so that the key, which each command repeats, is a small part of it.
fn enough_for(key: &[u8]) -> usize {
    (8 << 10) + 4 * key.len()
}

/// Where to go on: at a bucket of keys, a key in it, and a place in its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    hash: u64,
    key: usize,
    /// Index into a list, or hash of the next element.
    element: u64,
}

impl Cursor {
    /// Appends commands until there are `enough` bytes of them, at the least; `None` if that was all.
    pub(super) fn write(mut self, store: &Store, commands: &mut Vec<u8>, enough: usize) -> Option<Self> {
        for (hash, entries) in store.keys().buckets(self.hash) {
            if hash != self.hash {
                self = Self {
                    hash,
                    key: 0,
                    element: 0,
                };
            }
            while let Some(entry) = entries.get(self.key) {
                match write_some(entry, self.element, commands) {
                    Some(element) => self.element = element,
                    None => {
                        self = Self {
                            key: self.key + 1,
                            element: 0,
                            ..self
                        }
                    }
                }
                if commands.len() >= enough {
                    return Some(self);
                }
            }
        }
        None
    }
}

/// Appends a command with some elements of a key, and its deadline after the last of them; otherwise the next element.
fn write_some(entry: &Entry, from: u64, commands: &mut Vec<u8>) -> Option<u64> {
    let key = entry.key();
    let deadline = entry
        .deadline()
        .map(|deadline| Decimal::new(i64::try_from(deadline).unwrap_or(i64::MAX)));
    let next = match entry.value() {
        Value::String(bytes) => {
            let set: [&[u8]; 5] = [
                b"SET",
                key,
                bytes,
                b"PXAT",
                deadline.as_ref().map_or(&b""[..], |deadline| deadline.as_bytes()),
            ];
            append(commands, set[..if deadline.is_some() { 5 } else { 3 }].iter().copied());
            return None;
        }
        Value::List(list) => {
            let start = usize::try_from(from).unwrap_or(usize::MAX).min(list.items().len());
            let mut bytes = 0;
            let few = |item: &&[u8]| {
                let more = bytes < enough_for(key);
                bytes += item.len();
                more
            };
            let items = list
                .items()
                .range(start..)
                .take(MAX_ELEMENTS)
                .map(|item| &item[..])
                .take_while(few);
            let items: Vec<&[u8]> = items.collect();
            let end = start + items.len();
            write_command(commands, b"RPUSH", key, items);
            (end < list.items().len()).then_some(end as u64)
        }
        Value::Set(set) => write_members(commands, b"SADD", key, set.tree(), from, |member| [member, &[]], 1),
        Value::Hash(fields) => write_members(
            commands,
            b"HSET",
            key,
            fields.tree(),
            from,
            |field| [&field.name, &field.value],
            2,
        ),
        Value::Sorted(sorted) => {
            let (buckets, next) = some_buckets(sorted.members(), from, enough_for(key));
            let scores: Vec<_> = buckets
                .iter()
                .map(|scored| (Decimal::new(scored.score), &scored.member))
                .collect();
            let pairs = scores.iter().flat_map(|(score, member)| [score.as_bytes(), member]);
            write_command(commands, b"ZADD", key, pairs.collect());
            next
        }
    };
    if let (None, Some(deadline)) = (next, &deadline) {
        append(commands, [&b"PEXPIREAT"[..], key, deadline.as_bytes()].into_iter());
    }
    next
}

fn write_members<T: Keyed + Cost>(
    commands: &mut Vec<u8>,
    name: &[u8],
    key: &[u8],
    tree: &HashTree<T>,
    from: u64,
    parts: impl Fn(&T) -> [&[u8]; 2],
    used: usize,
) -> Option<u64> {
    let (elements, next) = some_buckets(tree, from, enough_for(key));
    let arguments = elements
        .into_iter()
        .flat_map(|element| parts(element).into_iter().take(used))
        .collect();
    write_command(commands, name, key, arguments);
    next
}

/// Elements from a hash on, and the hash to go on with.
fn some_buckets<T: Keyed + Cost>(tree: &HashTree<T>, from: u64, enough: usize) -> (Vec<&T>, Option<u64>) {
    let mut elements = Vec::new();
    let mut bytes = 0;
    for (hash, bucket) in tree.buckets(from) {
        if elements.len() >= MAX_ELEMENTS || bytes >= enough {
            return (elements, Some(hash));
        }
        bytes += bucket.iter().map(Cost::cost).sum::<usize>();
        elements.extend(bucket);
    }
    (elements, None)
}

fn write_command(commands: &mut Vec<u8>, name: &[u8], key: &[u8], arguments: Vec<&[u8]>) {
    let mut command = Vec::with_capacity(2 + arguments.len());
    command.extend([name, key]);
    command.extend(arguments);
    append(commands, command.into_iter());
}
