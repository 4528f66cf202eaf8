//! Hashes.

use super::Value;
use crate::engine::{Call, CommandError};
use crate::value::{Field, Members};

type Result<T = ()> = core::result::Result<T, CommandError>;

impl Call<'_> {
    fn hash_at(&self, key: &[u8]) -> Result<Option<&Members<Field>>> {
        Ok(match self.engine.store.get(key) {
            Some(value) => Some(value.hash()?),
            None => None,
        })
    }
}

/// Sets fields, and says how many are new.
fn set_fields(call: &mut Call<'_>, name: &'static str) -> Result<usize> {
    if !call.arguments.len().is_multiple_of(2) {
        return Err(CommandError::Arity(name));
    }
    let (mut fields, hash) = (call.arguments.from(2), call.engine.store.hash());
    let added = call.engine.store.update_or(
        call.argument(1),
        || Value::Hash(Members::default()),
        |value| {
            let members = value.hash_mut()?;
            let mut added = 0;
            while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
                let field = Field {
                    name: name.into(),
                    value: value.into(),
                };
                added += usize::from(members.insert(hash.of(name), field).is_none());
            }
            Ok::<_, CommandError>(added)
        },
    )?;
    call.journal_request();
    Ok(added)
}

pub(super) fn hset(call: &mut Call<'_>) -> Result {
    let added = set_fields(call, "hset")?;
    call.reply.count(added);
    Ok(())
}

pub(super) fn hmset(call: &mut Call<'_>) -> Result {
    set_fields(call, "hmset")?;
    call.reply.ok();
    Ok(())
}

pub(super) fn hdel(call: &mut Call<'_>) -> Result {
    let (names, hash) = (call.arguments.from(2), call.engine.store.hash());
    let removed = call.engine.store.update(call.argument(1), |value| {
        let fields = value.hash_mut()?;
        Ok::<_, CommandError>(
            names
                .filter(|name| fields.remove(hash.of(name), name).is_some())
                .count(),
        )
    });
    let removed = removed.unwrap_or(Ok(0))?;
    if removed > 0 {
        call.journal_request();
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn hget(call: &mut Call<'_>) -> Result {
    let (hash, name) = (call.engine.store.hash(), call.argument(2));
    let field = match call.engine.store.get(call.argument(1)) {
        Some(value) => value.hash()?.tree().get(hash.of(name), name),
        None => None,
    };
    call.reply.optional(field.map(|field| &field.value[..]));
    Ok(())
}

pub(super) fn hmget(call: &mut Call<'_>) -> Result {
    let hash = call.engine.store.hash();
    let fields = match call.engine.store.get(call.argument(1)) {
        Some(value) => Some(value.hash()?.tree()),
        None => None,
    };
    call.reply.array(call.arguments.len() - 2);
    for name in call.arguments.from(2) {
        let field = fields.and_then(|fields| fields.get(hash.of(name), name));
        call.reply.optional(field.map(|field| &field.value[..]));
        if call.reply.is_too_long() {
            return Err(CommandError::REPLY_TOO_LONG);
        }
    }
    Ok(())
}

pub(super) fn hexists(call: &mut Call<'_>) -> Result {
    let (hash, name) = (call.engine.store.hash(), call.argument(2));
    let found = call
        .hash_at(call.argument(1))?
        .is_some_and(|fields| fields.tree().get(hash.of(name), name).is_some());
    call.reply.integer(i64::from(found));
    Ok(())
}

pub(super) fn hlen(call: &mut Call<'_>) -> Result {
    let len = call.hash_at(call.argument(1))?.map_or(0, |fields| fields.tree().len());
    call.reply.count(len);
    Ok(())
}

/// Replies with `parts` of each field: names, values or both.
fn list_fields<const N: usize>(call: &mut Call<'_>, parts: fn(&Field) -> [&[u8]; N]) -> Result {
    let Some(value) = call.engine.store.get(call.argument(1)) else {
        call.reply.array(0);
        return Ok(());
    };
    let fields = value.hash()?.tree();
    call.reply.array(fields.len() * N);
    for field in fields.iter() {
        parts(field).into_iter().for_each(|part| call.reply.bulk(part));
        if call.reply.is_too_long() {
            return Err(CommandError::REPLY_TOO_LONG);
        }
    }
    Ok(())
}

pub(super) fn hgetall(call: &mut Call<'_>) -> Result {
    list_fields(call, |field| [&field.name, &field.value])
}

pub(super) fn hkeys(call: &mut Call<'_>) -> Result {
    list_fields(call, |field| [&field.name])
}

pub(super) fn hvals(call: &mut Call<'_>) -> Result {
    list_fields(call, |field| [&field.value])
}
