//! The commands: their names, numbers of arguments, and what they do.
//!
//! A command checks everything before it changes anything, and journals what it changed.

mod keys;
mod server;
mod strings;

use crate::engine::{Call, CommandError};

/// What a command may do to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// Nothing.
    Read,
    /// Change it so that it takes no more memory.
    Write,
    /// Make it take more memory.
    Grow,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Name in lower case.
    pub name: &'static str,
    /// Arguments with the name; negative: at least as many.
    pub arity: i8,
    /// What it may do to the store.
    pub flag: Flag,
    pub(crate) run: fn(&mut Call<'_>) -> Result<(), CommandError>,
}

const fn command(
    name: &'static str,
    arity: i8,
    flag: Flag,
    run: fn(&mut Call<'_>) -> Result<(), CommandError>,
) -> Command {
    Command { name, arity, flag, run }
}

use Flag::{Grow, Read, Write};

/// All commands, by name.
static COMMANDS: [Command; 42] = [
    command("append", 3, Grow, strings::append),
    command("bgrewriteaof", 1, Read, server::bgrewriteaof),
    command("bgsave", -1, Read, server::save),
    command("client", -2, Read, server::client),
    command("command", -1, Read, server::command),
    command("config", -2, Read, server::config),
    command("dbsize", 1, Read, server::dbsize),
    command("decr", 2, Grow, strings::decr),
    command("decrby", 3, Grow, strings::decrby),
    command("del", -2, Write, keys::del),
    command("echo", 2, Read, server::echo),
    command("exists", -2, Read, keys::exists),
    command("expire", 3, Write, keys::expire),
    command("expireat", 3, Write, keys::expireat),
    command("flushall", -1, Write, server::flushall),
    command("flushdb", -1, Write, server::flushall),
    command("get", 2, Read, strings::get),
    command("getdel", 2, Write, strings::getdel),
    command("getset", 3, Grow, strings::getset),
    command("incr", 2, Grow, strings::incr),
    command("incrby", 3, Grow, strings::incrby),
    command("info", -1, Read, server::info),
    command("mget", -2, Read, strings::mget),
    command("mset", -3, Grow, strings::mset),
    command("persist", 2, Write, keys::persist),
    command("pexpire", 3, Write, keys::pexpire),
    command("pexpireat", 3, Write, keys::pexpireat),
    command("ping", -1, Read, server::ping),
    command("psetex", 4, Grow, strings::psetex),
    command("pttl", 2, Read, keys::pttl),
    command("quit", -1, Read, server::quit),
    command("save", 1, Read, server::save),
    command("select", 2, Read, server::select),
    command("set", -3, Grow, strings::set),
    command("setex", 4, Grow, strings::setex),
    command("setnx", 3, Grow, strings::setnx),
    command("shutdown", -1, Read, server::shutdown),
    command("strlen", 2, Read, strings::strlen),
    command("time", 1, Read, server::time),
    command("touch", -2, Read, keys::exists),
    command("ttl", 2, Read, keys::ttl),
    command("unlink", -2, Write, keys::del),
];

/// Longest name of a command.
const MAX_NAME: usize = 16;

/// The command of that name, in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let mut lower = [0; MAX_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let at = COMMANDS
        .binary_search_by(|command| command.name.as_bytes().cmp(lower))
        .ok()?;
    Some(&COMMANDS[at])
}

/// How many commands there are.
pub(crate) fn count() -> usize {
    COMMANDS.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_any_case() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        for command in &COMMANDS {
            assert!(command.name.len() <= MAX_NAME);
            assert_eq!(
                find(command.name.to_uppercase().as_bytes()).map(|found| found.name),
                Some(command.name)
            );
        }
        for name in ["", "gett", "ge", "a name that is far too long for any command"] {
            assert!(find(name.as_bytes()).is_none(), "{name}");
        }
    }
}
