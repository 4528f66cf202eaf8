//! The connection, the server, and the key space as a whole.

use alloc::string::String;
use core::fmt::Write;

use crate::engine::{Call, CommandError, Outcome};
use crate::reply::Text;
use crate::resp::MAX_BULK;

type Result<T = ()> = core::result::Result<T, CommandError>;

/// Longest name of a connection, in bytes.
const MAX_CLIENT_NAME: usize = 256;

pub(super) fn ping(call: &mut Call<'_>) -> Result {
    match call.arguments.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.argument(1)),
        _ => return Err(CommandError::Arity("ping")),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_>) -> Result {
    call.reply.bulk(call.argument(1));
    Ok(())
}

pub(super) fn select(call: &mut Call<'_>) -> Result {
    match call.integer(1) {
        Ok(0) => call.reply.ok(),
        Ok(_) => return Err(CommandError::Text("ERR DB index is out of range")),
        Err(_) => return Err(CommandError::Text("ERR invalid DB index")),
    }
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_>) -> Result {
    call.reply.ok();
    call.outcome = Outcome::Quit;
    Ok(())
}

/// Clients ask for descriptions of commands to help their users; there are none here.
pub(super) fn command(call: &mut Call<'_>) -> Result {
    if call.argument(1).eq_ignore_ascii_case(b"count") {
        call.reply.count(super::count());
    } else {
        call.reply.array(0);
    }
    Ok(())
}

pub(super) fn config(call: &mut Call<'_>) -> Result {
    match (call.argument(1).to_ascii_lowercase().as_slice(), call.arguments.len()) {
        (b"get", 3) => config_get(call),
        (b"resetstat", 2) => {
            let statistics = &mut call.engine.statistics;
            (
                statistics.commands,
                statistics.connections_received,
                statistics.expired_keys,
            ) = (0, 0, 0);
            call.reply.ok();
        }
        (b"set", 4) => {
            return Err(CommandError::Text(
                "ERR CONFIG SET: options are on the guest's command line",
            ));
        }
        _ => return Err(CommandError::Subcommand("CONFIG")),
    }
    Ok(())
}

fn config_get(call: &mut Call<'_>) {
    let settings = *call.engine.settings();
    let number = |value: usize| alloc::format!("{value}");
    let fsync = settings.append_fsync.map_or("no", |policy| policy.name());
    let options: [(&str, String); 9] = [
        ("appendfsync", fsync.into()),
        (
            "appendonly",
            if settings.append_fsync.is_some() { "yes" } else { "no" }.into(),
        ),
        ("databases", number(1)),
        ("maxclients", number(settings.max_clients)),
        ("maxmemory", number(settings.max_memory)),
        ("port", number(settings.port.into())),
        ("proto-max-bulk-len", number(MAX_BULK)),
        ("save", String::new()),
        ("timeout", number(0)),
    ];
    let wanted = call.argument(2);
    let found = options
        .iter()
        .find(|(name, _)| wanted.eq_ignore_ascii_case(name.as_bytes()));
    call.reply.array(if found.is_some() { 2 } else { 0 });
    if let Some((name, value)) = found {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
}

pub(super) fn client(call: &mut Call<'_>) -> Result {
    match (call.argument(1).to_ascii_lowercase().as_slice(), call.arguments.len()) {
        (b"setname", 3) => {
            let name = call.argument(2);
            if name.len() > MAX_CLIENT_NAME || !name.iter().all(u8::is_ascii_graphic) {
                return Err(CommandError::Text(
                    "ERR Client names cannot contain spaces, newlines or special characters, or be longer than 256 bytes",
                ));
            }
            call.client.name = name.to_vec();
            call.reply.ok();
        }
        (b"getname", 2) => match call.client.name.as_slice() {
            [] => call.reply.null(),
            name => call.reply.bulk(name),
        },
        (b"id", 2) => call.reply.integer(i64::try_from(call.client.id).unwrap_or(i64::MAX)),
        (b"list" | b"info", 2) => {
            let mut line = alloc::format!("id={} name=", call.client.id).into_bytes();
            line.extend_from_slice(&call.client.name);
            line.extend_from_slice(b" db=0 resp=2\n");
            call.reply.bulk(&line);
        }
        (b"setinfo", 4) | (b"no-evict" | b"no-touch", 3) => call.reply.ok(),
        _ => return Err(CommandError::Subcommand("CLIENT")),
    }
    Ok(())
}

pub(super) fn dbsize(call: &mut Call<'_>) -> Result {
    let keys = call.engine.store.len();
    call.reply.count(keys);
    Ok(())
}

/// The guest's own time, which is the log's on every replay.
pub(super) fn time(call: &mut Call<'_>) -> Result {
    let now = call.engine.now;
    call.reply.array(2);
    call.reply.bulk(alloc::format!("{}", now / 1000).as_bytes());
    call.reply.bulk(alloc::format!("{}", now % 1000 * 1000).as_bytes());
    Ok(())
}

pub(super) fn flushall(call: &mut Call<'_>) -> Result {
    let mode = call.argument(1);
    let known = mode.eq_ignore_ascii_case(b"async") || mode.eq_ignore_ascii_case(b"sync");
    if call.arguments.len() > 2 || (call.arguments.len() == 2 && !known) {
        return Err(CommandError::SYNTAX);
    }
    if !call.engine.store.is_empty() {
        call.engine.store.clear();
        call.journal(&[b"FLUSHALL"]);
    }
    call.reply.ok();
    Ok(())
}

/// SAVE and BGSAVE: what has been written is on the disk when the reply comes.
pub(super) fn save(call: &mut Call<'_>) -> Result {
    require_log(call)?;
    call.reply.ok();
    call.outcome = Outcome::Save;
    Ok(())
}

pub(super) fn bgrewriteaof(call: &mut Call<'_>) -> Result {
    require_log(call)?;
    call.reply.simple("Background append only file rewriting started");
    call.outcome = Outcome::Rewrite;
    Ok(())
}

fn require_log(call: &Call<'_>) -> Result {
    match call.engine.settings.append_fsync {
        Some(_) => Ok(()),
        None => Err(CommandError::Text("ERR this server has no disk to save to")),
    }
}

pub(super) fn shutdown(call: &mut Call<'_>) -> Result {
    let mode = call.argument(1);
    let known = ["", "save", "nosave"]
        .iter()
        .any(|known| mode.eq_ignore_ascii_case(known.as_bytes()));
    if call.arguments.len() > 2 || !known {
        return Err(CommandError::SYNTAX);
    }
    call.outcome = Outcome::Shutdown;
    Ok(())
}

pub(super) fn info(call: &mut Call<'_>) -> Result {
    let mut text = alloc::vec::Vec::new();
    // Formatting into memory cannot fail.
    let _ = write_info(call, &mut Text(&mut text));
    call.reply.bulk(&text);
    Ok(())
}

fn write_info(call: &Call<'_>, text: &mut Text<'_>) -> core::fmt::Result {
    let (engine, settings, statistics) = (&call.engine, call.engine.settings(), &call.engine.statistics);
    let store = engine.store();
    write!(
        text,
        "# Server\r\nserver_name:ftvm-kv\r\nredis_version:5.0.0\r\nredis_mode:standalone\r\narch_bits:64\r\n"
    )?;
    write!(text, "tcp_port:{}\r\n", settings.port)?;
    write!(
        text,
        "uptime_in_seconds:{}\r\n\r\n",
        (engine.now - engine.started) / 1000
    )?;
    write!(
        text,
        "# Clients\r\nconnected_clients:{}\r\n",
        statistics.connected_clients
    )?;
    write!(text, "maxclients:{}\r\n\r\n", settings.max_clients)?;
    write!(
        text,
        "# Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\n",
        store.used(),
        settings.max_memory
    )?;
    write!(text, "maxmemory_policy:noeviction\r\n\r\n")?;
    let fsync = settings.append_fsync;
    write!(text, "# Persistence\r\naof_enabled:{}\r\n", u8::from(fsync.is_some()))?;
    write!(text, "appendfsync:{}\r\n", fsync.map_or("no", |policy| policy.name()))?;
    write!(text, "aof_commands:{}\r\n\r\n", engine.journalled())?;
    write!(
        text,
        "# Stats\r\ntotal_connections_received:{}\r\n",
        statistics.connections_received
    )?;
    write!(text, "rejected_connections:{}\r\n", statistics.connections_rejected)?;
    write!(text, "total_commands_processed:{}\r\n", statistics.commands)?;
    write!(text, "expired_keys:{}\r\n\r\n", statistics.expired_keys)?;
    write!(
        text,
        "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n# Keyspace\r\n"
    )?;
    if !store.is_empty() {
        write!(
            text,
            "db0:keys={},expires={},avg_ttl=0\r\n",
            store.len(),
            store.volatile_keys()
        )?;
    }
    Ok(())
}
