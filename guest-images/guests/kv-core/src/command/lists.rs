//! Lists.

use core::ops::Range;

use super::{Value, optional_count};
use crate::engine::{Call, CommandError};
use crate::value::{End, List};

type Result<T = ()> = core::result::Result<T, CommandError>;

impl Call<'_> {
    fn list_at(&self, key: &[u8]) -> Result<Option<&List>> {
        Ok(match self.engine.store.get(key) {
            Some(value) => Some(value.list()?),
            None => None,
        })
    }
}

fn push(call: &mut Call<'_>, end: End) -> Result {
    let items = call.arguments.from(2);
    let len = call.engine.store.update_or(
        call.argument(1),
        || Value::List(List::default()),
        |value| {
            let list = value.list_mut()?;
            items.for_each(|item| list.push(end, item));
            Ok::<_, CommandError>(list.items().len())
        },
    )?;
    call.journal_request();
    call.reply.count(len);
    Ok(())
}

pub(super) fn lpush(call: &mut Call<'_>) -> Result {
    push(call, End::Left)
}

pub(super) fn rpush(call: &mut Call<'_>) -> Result {
    push(call, End::Right)
}

fn pop(call: &mut Call<'_>, end: End, name: &'static str) -> Result {
    let count = optional_count(call, name)?;
    let key = call.argument(1);
    let Some(list) = call.list_at(key)? else {
        call.reply.null_for(count.is_some());
        return Ok(());
    };
    let wanted = count.unwrap_or(1).min(list.items().len());
    let bytes = match end {
        End::Left => list.items().iter().take(wanted).map(|item| item.len()).sum(),
        End::Right => list.items().iter().rev().take(wanted).map(|item| item.len()).sum(),
    };
    call.check_reply_of(bytes)?;
    if count.is_some() {
        call.reply.array(wanted);
    }
    let reply = &mut call.reply;
    call.engine.store.update(key, |value| {
        let list = value.list_mut()?;
        (0..wanted)
            .filter_map(|_| list.pop(end))
            .for_each(|item| reply.bulk(&item));
        Ok::<_, CommandError>(())
    });
    if wanted > 0 {
        call.journal_request();
    }
    Ok(())
}

pub(super) fn lpop(call: &mut Call<'_>) -> Result {
    pop(call, End::Left, "lpop")
}

pub(super) fn rpop(call: &mut Call<'_>) -> Result {
    pop(call, End::Right, "rpop")
}

pub(super) fn llen(call: &mut Call<'_>) -> Result {
    let len = call.list_at(call.argument(1))?.map_or(0, |list| list.items().len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn lindex(call: &mut Call<'_>) -> Result {
    let index = call.integer(2)?;
    let item = match call.engine.store.get(call.argument(1)) {
        Some(value) => {
            let items = value.list()?.items();
            position(index, items.len()).and_then(|at| items.get(at))
        }
        None => None,
    };
    call.reply.optional(item.map(|item| &item[..]));
    Ok(())
}

pub(super) fn lrange(call: &mut Call<'_>) -> Result {
    let (start, stop) = (call.integer(2)?, call.integer(3)?);
    let Some(value) = call.engine.store.get(call.argument(1)) else {
        call.reply.array(0);
        return Ok(());
    };
    let items = value.list()?.items();
    let range = range(start, stop, items.len());
    call.reply.array(range.len());
    for item in items.range(range) {
        call.reply.bulk(item);
        if call.reply.is_too_long() {
            return Err(CommandError::REPLY_TOO_LONG);
        }
    }
    Ok(())
}

/// An index, negative from the end, as a position that may be outside on the right.
fn position(index: i64, len: usize) -> Option<usize> {
    let from_end = usize::try_from(index.unsigned_abs()).ok()?;
    if index < 0 {
        len.checked_sub(from_end)
    } else {
        Some(from_end)
    }
}

/// The positions that LRANGE and ZRANGE mean: both ends included, negative ones from the end, clipped.
pub(super) fn range(start: i64, stop: i64, len: usize) -> Range<usize> {
    let start = position(start, len).unwrap_or(if start < 0 { 0 } else { len }).min(len);
    let end = position(stop, len)
        .map_or(if stop < 0 { 0 } else { len }, |stop| stop.saturating_add(1))
        .min(len);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped() {
        let cases = [
            ((0, -1), 0..5),
            ((0, 0), 0..1),
            ((-3, -2), 2..4),
            ((-100, 100), 0..5),
            ((3, 1), 3..3),
            ((5, 9), 5..5),
            ((0, -6), 0..0),
            ((i64::MIN, i64::MAX), 0..5),
            ((i64::MAX, i64::MIN), 5..5),
        ];
        for ((start, stop), expected) in cases {
            assert_eq!(range(start, stop, 5), expected, "{start} {stop}");
        }
        assert_eq!(range(0, -1, 0), 0..0);
    }
}
