//! Sorted sets, with integer scores: what `redis-benchmark` needs, and what goes with it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Value, lists, optional_count};
use crate::engine::{Call, CommandError, parse_integer};
use crate::reply::Decimal;
use crate::value::{End, Sorted};

type Result<T = ()> = core::result::Result<T, CommandError>;

impl Call<'_> {
    fn sorted_at(&self, key: &[u8]) -> Result<Option<&Sorted>> {
        Ok(match self.engine.store.get(key) {
            Some(value) => Some(value.sorted()?),
            None => None,
        })
    }

    fn score_of(&self, member: &[u8]) -> Result<Option<i64>> {
        let hash = self.engine.store.hash().of(member);
        let sorted = self.sorted_at(self.argument(1))?;
        Ok(sorted
            .and_then(|sorted| sorted.members().get(hash, member))
            .map(|scored| scored.score))
    }
}

fn new() -> Value {
    Value::Sorted(Box::default())
}

pub(super) fn zadd(call: &mut Call<'_>) -> Result {
    if !call.arguments.len().is_multiple_of(2) {
        return Err(CommandError::SYNTAX);
    }
    let pairs = || call.arguments.from(2).step_by(2).zip(call.arguments.from(3).step_by(2));
    if pairs().any(|(score, _)| parse_integer(score).is_none()) {
        return Err(CommandError::NOT_FLOAT);
    }
    let hash = call.engine.store.hash();
    let added = call.engine.store.update_or(call.argument(1), new, |value| {
        let sorted = value.sorted_mut()?;
        let added = pairs().filter(|&(score, member)| {
            let score = parse_integer(score).unwrap_or_default();
            sorted.insert(hash.of(member), member, score).is_none()
        });
        Ok::<_, CommandError>(added.count())
    })?;
    call.journal_request();
    call.reply.count(added);
    Ok(())
}

pub(super) fn zincrby(call: &mut Call<'_>) -> Result {
    let amount = parse_integer(call.argument(2)).ok_or(CommandError::NOT_FLOAT)?;
    let member = call.argument(3);
    let score = call
        .score_of(member)?
        .unwrap_or(0)
        .checked_add(amount)
        .ok_or(CommandError::OVERFLOW)?;
    let hash = call.engine.store.hash().of(member);
    let insert = |value: &mut Value| value.sorted_mut().map(|sorted| sorted.insert(hash, member, score));
    call.engine.store.update_or(call.argument(1), new, insert)?;
    call.journal_request();
    call.reply.bulk_integer(score);
    Ok(())
}

pub(super) fn zrem(call: &mut Call<'_>) -> Result {
    let (members, hash) = (call.arguments.from(2), call.engine.store.hash());
    let removed = call.engine.store.update(call.argument(1), |value| {
        let sorted = value.sorted_mut()?;
        Ok::<_, CommandError>(
            members
                .filter(|member| sorted.remove(hash.of(member), member).is_some())
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

fn pop(call: &mut Call<'_>, end: End, name: &'static str) -> Result {
    let wanted = optional_count(call, name)?.unwrap_or(1);
    let key = call.argument(1);
    let Some(sorted) = call.sorted_at(key)? else {
        call.reply.array(0);
        return Ok(());
    };
    let order = sorted.order();
    let bytes = match end {
        End::Left => order.iter().take(wanted).map(|(_, member)| member.len()).sum(),
        End::Right => order.iter().rev().take(wanted).map(|(_, member)| member.len()).sum(),
    };
    call.check_reply_of(bytes)?;
    let popped: Vec<(i64, Box<[u8]>)> = match end {
        End::Left => order.iter().take(wanted).cloned().collect(),
        End::Right => order.iter().rev().take(wanted).cloned().collect(),
    };
    call.reply.array(2 * popped.len());
    for (score, member) in &popped {
        call.reply.bulk(member);
        call.reply.bulk_integer(*score);
    }
    let hash = call.engine.store.hash();
    let members: Vec<Box<[u8]>> = popped.into_iter().map(|(_, member)| member).collect();
    call.engine.store.update(key, |value| {
        let sorted = value.sorted_mut()?;
        for member in &members {
            sorted.remove(hash.of(member), member);
        }
        Ok::<_, CommandError>(())
    });
    call.journal_removals(b"ZREM", key, &members);
    Ok(())
}

pub(super) fn zpopmin(call: &mut Call<'_>) -> Result {
    pop(call, End::Left, "zpopmin")
}

pub(super) fn zpopmax(call: &mut Call<'_>) -> Result {
    pop(call, End::Right, "zpopmax")
}

pub(super) fn zcard(call: &mut Call<'_>) -> Result {
    let len = call
        .sorted_at(call.argument(1))?
        .map_or(0, |sorted| sorted.order().len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn zscore(call: &mut Call<'_>) -> Result {
    match call.score_of(call.argument(2))? {
        Some(score) => call.reply.bulk_integer(score),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn zrange(call: &mut Call<'_>) -> Result {
    let (start, stop) = (call.integer(2)?, call.integer(3)?);
    let options: Vec<&[u8]> = call.arguments.from(4).collect();
    let with_scores = match options[..] {
        [] => false,
        [word] if word.eq_ignore_ascii_case(b"withscores") => true,
        _ => return Err(CommandError::SYNTAX),
    };
    let Some(value) = call.engine.store.get(call.argument(1)) else {
        call.reply.array(0);
        return Ok(());
    };
    let order = value.sorted()?.order();
    let range = lists::range(start, stop, order.len());
    call.reply.array(range.len() * if with_scores { 2 } else { 1 });
    for (score, member) in order.iter().skip(range.start).take(range.len()) {
        call.reply.bulk(member);
        if with_scores {
            call.reply.bulk(Decimal::new(*score).as_bytes());
        }
        if call.reply.is_too_long() {
            return Err(CommandError::REPLY_TOO_LONG);
        }
    }
    Ok(())
}
