//! Sets.

use alloc::vec::Vec;

use super::{Value, optional_count};
use crate::engine::{Call, CommandError};
use crate::tree::Keyed;
use crate::value::{Member, Members};

type Result<T = ()> = core::result::Result<T, CommandError>;

impl Call<'_> {
    fn set_at(&self, key: &[u8]) -> Result<Option<&Members<Member>>> {
        Ok(match self.engine.store.get(key) {
            Some(value) => Some(value.set()?),
            None => None,
        })
    }
}

pub(super) fn sadd(call: &mut Call<'_>) -> Result {
    let (members, hash) = (call.arguments.from(2), call.engine.store.hash());
    let added = call.engine.store.update_or(
        call.argument(1),
        || Value::Set(Members::default()),
        |value| {
            let set = value.set_mut()?;
            let added = members
                .filter(|&member| set.insert(hash.of(member), member.into()).is_none())
                .count();
            Ok::<_, CommandError>(added)
        },
    )?;
    if added > 0 {
        call.journal_request();
    }
    call.reply.count(added);
    Ok(())
}

pub(super) fn srem(call: &mut Call<'_>) -> Result {
    let (members, hash) = (call.arguments.from(2), call.engine.store.hash());
    let removed = call.engine.store.update(call.argument(1), |value| {
        let set = value.set_mut()?;
        Ok::<_, CommandError>(
            members
                .filter(|member| set.remove(hash.of(member), member).is_some())
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

/// Removes members from a random hash on, and journals which.
pub(super) fn spop(call: &mut Call<'_>) -> Result {
    let count = optional_count(call, "spop")?;
    let (key, hash, random) = (call.argument(1), call.engine.store.hash(), call.engine.random());
    let Some(set) = call.set_at(key)? else {
        call.reply.null_for(count.is_some());
        return Ok(());
    };
    let tree = set.tree();
    let wanted = count.unwrap_or(1).min(tree.len());
    let chosen = || {
        tree.buckets(random)
            .chain(tree.buckets(0))
            .flat_map(|(_, members)| members)
            .take(wanted)
    };
    call.check_reply_of(chosen().map(|member| member.len()).sum())?;
    let members: Vec<Member> = chosen().cloned().collect();
    if count.is_some() {
        call.reply.array(members.len());
    }
    call.engine.store.update(key, |value| {
        let set = value.set_mut()?;
        for member in &members {
            set.remove(hash.of(member), member);
        }
        Ok::<_, CommandError>(())
    });
    members.iter().for_each(|member| call.reply.bulk(member));
    call.journal_removals(b"SREM", key, &members);
    Ok(())
}

pub(super) fn srandmember(call: &mut Call<'_>) -> Result {
    let random = call.engine.random();
    let member = match call.engine.store.get(call.argument(1)) {
        Some(value) => value.set()?.tree().near(random).map(|(_, member)| member.key()),
        None => None,
    };
    call.reply.optional(member);
    Ok(())
}

pub(super) fn scard(call: &mut Call<'_>) -> Result {
    let len = call.set_at(call.argument(1))?.map_or(0, |set| set.tree().len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn sismember(call: &mut Call<'_>) -> Result {
    let (hash, member) = (call.engine.store.hash(), call.argument(2));
    let found = call
        .set_at(call.argument(1))?
        .is_some_and(|set| set.tree().get(hash.of(member), member).is_some());
    call.reply.integer(i64::from(found));
    Ok(())
}

pub(super) fn smembers(call: &mut Call<'_>) -> Result {
    let Some(value) = call.engine.store.get(call.argument(1)) else {
        call.reply.array(0);
        return Ok(());
    };
    let members = value.set()?.tree();
    call.reply.array(members.len());
    for member in members.iter() {
        call.reply.bulk(member);
        if call.reply.is_too_long() {
            return Err(CommandError::REPLY_TOO_LONG);
        }
    }
    Ok(())
}
