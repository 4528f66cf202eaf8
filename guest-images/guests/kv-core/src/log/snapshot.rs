//! The store as commands that restore it, in pieces.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::journal::append;
use crate::reply::Decimal;
use crate::store::{Entry, Store};

/// How far the store has been written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last key that has been; `None` at the beginning.
    after: Option<Box<[u8]>>,
}

impl Cursor {
    /// Appends commands until there are `enough` bytes of them, at the least; `None` if that was all.
    pub(super) fn write(&self, store: &Store, commands: &mut Vec<u8>, enough: usize) -> Option<Self> {
        for (key, entry) in store.iter_after(self.after.as_deref()) {
            write_entry(key, entry, commands);
            if commands.len() >= enough {
                return Some(Self {
                    after: Some(key.into()),
                });
            }
        }
        None
    }
}

fn write_entry(key: &[u8], entry: &Entry, commands: &mut Vec<u8>) {
    match entry.deadline() {
        None => append(commands, [b"SET", key, entry.value()].into_iter()),
        Some(deadline) => {
            let deadline = Decimal::new(i64::try_from(deadline).unwrap_or(i64::MAX));
            append(
                commands,
                [b"SET", key, entry.value(), b"PXAT", deadline.as_bytes()].into_iter(),
            );
        }
    }
}
