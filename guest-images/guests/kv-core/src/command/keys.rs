//! Keys and their deadlines.

use crate::engine::{Call, CommandError};
use crate::reply::Decimal;

type Result<T = ()> = core::result::Result<T, CommandError>;

/// How a deadline is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// From now.
    Seconds,
    Milliseconds,
    /// Since 1970.
    UnixSeconds,
    UnixMilliseconds,
}

impl Unit {
    /// The options of SET.
    pub(super) const OF_SET: [(&'static str, Unit); 4] = [
        ("ex", Unit::Seconds),
        ("px", Unit::Milliseconds),
        ("exat", Unit::UnixSeconds),
        ("pxat", Unit::UnixMilliseconds),
    ];
}

/// The deadline in milliseconds since 1970; before 1970 it is 0, which is over as well.
pub(super) fn deadline(call: &Call<'_>, amount: i64, unit: Unit, command: &'static str) -> Result<u64> {
    let milliseconds = match unit {
        Unit::Seconds | Unit::UnixSeconds => amount.checked_mul(1000),
        Unit::Milliseconds | Unit::UnixMilliseconds => Some(amount),
    };
    let base = match unit {
        Unit::Seconds | Unit::Milliseconds => i64::try_from(call.engine.now).ok(),
        Unit::UnixSeconds | Unit::UnixMilliseconds => Some(0),
    };
    let deadline = milliseconds
        .zip(base)
        .and_then(|(milliseconds, base)| base.checked_add(milliseconds));
    let deadline = deadline.ok_or(CommandError::Deadline(command))?;
    Ok(u64::try_from(deadline).unwrap_or(0))
}

pub(super) fn del(call: &mut Call<'_>) -> Result {
    let keys = call.arguments.from(1);
    let removed = keys.filter(|key| call.engine.store.remove(key)).count();
    if removed > 0 {
        call.journal_request();
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn exists(call: &mut Call<'_>) -> Result {
    let found = call
        .arguments
        .from(1)
        .filter(|key| call.engine.store.entry(key).is_some())
        .count();
    call.reply.count(found);
    Ok(())
}

fn set_deadline(call: &mut Call<'_>, unit: Unit, name: &'static str) -> Result {
    let deadline = deadline(call, call.integer(2)?, unit, name)?;
    let key = call.argument(1);
    let found = if deadline <= call.engine.now {
        let found = call.engine.store.remove(key);
        if found {
            call.journal(&[b"DEL", key]);
        }
        found
    } else {
        let found = call.engine.store.set_deadline(key, Some(deadline));
        if found {
            let deadline = Decimal::new(i64::try_from(deadline).unwrap_or(i64::MAX));
            call.journal(&[b"PEXPIREAT", key, deadline.as_bytes()]);
        }
        found
    };
    call.reply.integer(i64::from(found));
    Ok(())
}

pub(super) fn expire(call: &mut Call<'_>) -> Result {
    set_deadline(call, Unit::Seconds, "expire")
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Result {
    set_deadline(call, Unit::Milliseconds, "pexpire")
}

pub(super) fn expireat(call: &mut Call<'_>) -> Result {
    set_deadline(call, Unit::UnixSeconds, "expireat")
}

pub(super) fn pexpireat(call: &mut Call<'_>) -> Result {
    set_deadline(call, Unit::UnixMilliseconds, "pexpireat")
}

pub(super) fn persist(call: &mut Call<'_>) -> Result {
    let key = call.argument(1);
    let volatile = call
        .engine
        .store
        .entry(key)
        .is_some_and(|entry| entry.deadline().is_some());
    if volatile {
        call.engine.store.set_deadline(key, None);
        call.journal_request();
    }
    call.reply.integer(i64::from(volatile));
    Ok(())
}

/// Milliseconds that a key has left: -1 for ever, -2 there is none.
fn time_left(call: &Call<'_>) -> i64 {
    match call.engine.store.entry(call.argument(1)).map(|entry| entry.deadline()) {
        None => -2,
        Some(None) => -1,
        Some(Some(deadline)) => i64::try_from(deadline.saturating_sub(call.engine.now)).unwrap_or(i64::MAX),
    }
}

pub(super) fn pttl(call: &mut Call<'_>) -> Result {
    let left = time_left(call);
    call.reply.integer(left);
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_>) -> Result {
    let left = time_left(call);
    call.reply.integer(if left < 0 {
        left
    } else {
        left.saturating_add(500) / 1000
    });
    Ok(())
}
