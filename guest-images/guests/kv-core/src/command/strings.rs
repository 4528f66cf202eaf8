//! Strings.

use super::keys::{Unit, deadline};
use crate::engine::{Call, CommandError, parse_integer};
use crate::reply::Decimal;
use crate::resp::MAX_BULK;

type Result<T = ()> = core::result::Result<T, CommandError>;

impl Call<'_> {
    /// Sets a key and journals it in the one form that sets and their deadlines have in the log.
    fn set(&mut self, key: &[u8], value: &[u8], deadline: Option<u64>) {
        if deadline.is_some_and(|deadline| deadline <= self.engine.now) {
            if self.engine.store.remove(key) {
                self.journal(&[b"DEL", key]);
            }
            return;
        }
        self.engine.store.set(key, value.to_vec(), deadline);
        match deadline {
            Some(deadline) => {
                let deadline = Decimal::new(i64::try_from(deadline).unwrap_or(i64::MAX));
                self.journal(&[b"SET", key, value, b"PXAT", deadline.as_bytes()]);
            }
            None => self.journal(&[b"SET", key, value]),
        }
    }

    fn reply_value(&mut self, key: &[u8]) {
        self.reply.optional(self.engine.store.get(key));
    }
}

pub(super) fn get(call: &mut Call<'_>) -> Result {
    call.reply_value(call.argument(1));
    Ok(())
}

pub(super) fn strlen(call: &mut Call<'_>) -> Result {
    let len = call.engine.store.get(call.argument(1)).map_or(0, <[u8]>::len);
    call.reply.count(len);
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_>) -> Result {
    call.reply.array(call.arguments.len() - 1);
    for key in call.arguments.from(1) {
        call.reply_value(key);
        call.check_reply()?;
    }
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_>) -> Result {
    if call.arguments.len().is_multiple_of(2) {
        return Err(CommandError::Arity("mset"));
    }
    let mut pairs = call.arguments.from(1);
    while let (Some(key), Some(value)) = (pairs.next(), pairs.next()) {
        call.engine.store.set(key, value.to_vec(), None);
    }
    call.journal_request();
    call.reply.ok();
    Ok(())
}

/// When SET sets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Always,
    IfMissing,
    IfPresent,
}

/// What SET does about the deadline.
#[derive(Clone, Copy)]
enum Deadline {
    None,
    Keep,
    At(u64),
}

/// Options of SET.
struct SetOptions {
    condition: Condition,
    deadline: Option<Deadline>,
    get: bool,
}

impl SetOptions {
    fn parse(call: &Call<'_>) -> Result<Self> {
        let mut options = Self {
            condition: Condition::Always,
            deadline: None,
            get: false,
        };
        let mut at = 3;
        while let Some(word) = call.arguments.get(at) {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            if is("nx") && options.condition != Condition::IfPresent {
                options.condition = Condition::IfMissing;
            } else if is("xx") && options.condition != Condition::IfMissing {
                options.condition = Condition::IfPresent;
            } else if is("get") {
                options.get = true;
            } else if is("keepttl") && options.deadline.is_none() {
                options.deadline = Some(Deadline::Keep);
            } else if let Some((_, unit)) = Unit::OF_SET.into_iter().find(|&(name, _)| is(name))
                && options.deadline.is_none()
                && at + 1 < call.arguments.len()
            {
                at += 1;
                let amount = call.integer(at)?;
                if amount <= 0 {
                    return Err(CommandError::Deadline("set"));
                }
                options.deadline = Some(Deadline::At(deadline(call, amount, unit, "set")?));
            } else {
                return Err(CommandError::SYNTAX);
            }
            at += 1;
        }
        Ok(options)
    }
}

pub(super) fn set(call: &mut Call<'_>) -> Result {
    let (key, value) = (call.argument(1), call.argument(2));
    if call.arguments.len() == 3 {
        call.set(key, value, None);
        call.reply.ok();
        return Ok(());
    }
    let options = SetOptions::parse(call)?;
    if options.get {
        call.reply_value(key);
    }
    let entry = call.engine.store.entry(key);
    let wanted = match options.condition {
        Condition::Always => true,
        Condition::IfMissing => entry.is_none(),
        Condition::IfPresent => entry.is_some(),
    };
    let deadline = match options.deadline.unwrap_or(Deadline::None) {
        Deadline::None => None,
        Deadline::Keep => entry.and_then(|entry| entry.deadline()),
        Deadline::At(deadline) => Some(deadline),
    };
    if wanted {
        call.set(key, value, deadline);
    }
    match (options.get, wanted) {
        (true, _) => {}
        (false, true) => call.reply.ok(),
        (false, false) => call.reply.null(),
    }
    Ok(())
}

pub(super) fn setnx(call: &mut Call<'_>) -> Result {
    let (key, value) = (call.argument(1), call.argument(2));
    let missing = call.engine.store.entry(key).is_none();
    if missing {
        call.set(key, value, None);
    }
    call.reply.integer(i64::from(missing));
    Ok(())
}

fn set_with_deadline(call: &mut Call<'_>, unit: Unit, name: &'static str) -> Result {
    let amount = call.integer(2)?;
    if amount <= 0 {
        return Err(CommandError::Deadline(name));
    }
    let deadline = deadline(call, amount, unit, name)?;
    call.set(call.argument(1), call.argument(3), Some(deadline));
    call.reply.ok();
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_>) -> Result {
    set_with_deadline(call, Unit::Seconds, "setex")
}

pub(super) fn psetex(call: &mut Call<'_>) -> Result {
    set_with_deadline(call, Unit::Milliseconds, "psetex")
}

pub(super) fn getset(call: &mut Call<'_>) -> Result {
    let key = call.argument(1);
    call.reply_value(key);
    call.set(key, call.argument(2), None);
    Ok(())
}

pub(super) fn getdel(call: &mut Call<'_>) -> Result {
    let key = call.argument(1);
    call.reply_value(key);
    if call.engine.store.remove(key) {
        call.journal(&[b"DEL", key]);
    }
    Ok(())
}

pub(super) fn append(call: &mut Call<'_>) -> Result {
    let (key, tail) = (call.argument(1), call.argument(2));
    let len = call.engine.store.get(key).map_or(0, <[u8]>::len) + tail.len();
    if len > MAX_BULK {
        return Err(CommandError::TOO_LONG);
    }
    call.engine.store.update(key, |value| value.extend_from_slice(tail));
    call.journal_request();
    call.reply.count(len);
    Ok(())
}

fn add(call: &mut Call<'_>, amount: i64) -> Result {
    let key = call.argument(1);
    let before = call
        .engine
        .store
        .get(key)
        .map_or(Some(0), parse_integer)
        .ok_or(CommandError::NOT_INTEGER)?;
    let sum = before.checked_add(amount).ok_or(CommandError::OVERFLOW)?;
    let text = Decimal::new(sum);
    call.engine.store.update(key, |value| {
        value.clear();
        value.extend_from_slice(text.as_bytes());
    });
    call.journal_request();
    call.reply.integer(sum);
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_>) -> Result {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Result {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Result {
    add(call, call.integer(2)?)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Result {
    let amount = call.integer(2)?.checked_neg().ok_or(CommandError::OVERFLOW)?;
    add(call, amount)
}
