//! Kernel modules of an initrd that must stay out: they read the time stamp counter, and nothing rewrites a module.
//!
//! A distribution's initrd holds some that are never loaded, so their presence is no reason to refuse a guest. They are
//! named, and the kernel's own `module_blacklist=` then refuses to load them (kernel/module/main.c), whoever asks.

use std::collections::BTreeSet;

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};

use super::instructions::{Consequence, Owner};
use super::{cpio, expanded_module, scan};

/// Longest name of a module (include/linux/moduleparam.h, MODULE_NAME_LEN, less the final zero).
const MAX_NAME: usize = 55;

/// What a search for modules that must stay out has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncaught {
    /// Modules that read the time stamp counter, by the names that the kernel knows them by.
    pub names: BTreeSet<String>,
    /// What could not be searched, and why; sentences for the user.
    pub unsearched: Vec<String>,
}

/// Searches the modules in `initrd`, plain and compressed.
#[must_use]
pub fn uncaught(initrd: &[u8]) -> Uncaught {
    let mut found = Uncaught::default();
    let ended = cpio::files(initrd, &mut |file, content| {
        match expanded_module(file, content) {
            Ok(module) if reads_tsc(&module) => match name(file, &module) {
                Some(name) => found.names.extend([name]),
                None => found
                    .unsearched
                    .push(format!("module {file} has a name that no module can have")),
            },
            Ok(_) => {}
            Err(error) => found.unsearched.push(error.to_string()),
        };
    });
    found.unsearched.extend(ended.err().map(|error| error.to_string()));
    found
}

fn reads_tsc(file: &[u8]) -> bool {
    // Decoding is slow, and most modules have not even the two bytes.
    file.starts_with(b"\x7fELF")
        && file.windows(2).any(|window| window == [0x0f, 0x31])
        && scan::elf("", file, None).is_some_and(|findings| {
            let uncaught =
                |finding: &scan::Finding| (finding.owner, finding.verdict) == (Owner::Module, Consequence::Uncaught);
            findings.iter().any(uncaught)
        })
}

/// As the kernel compares it with the list: `name=` of the module's information, else as its file is called.
fn name(file: &str, module: &[u8]) -> Option<String> {
    let stem = || Some(file.rsplit('/').next()?.split(".ko").next()?.replace('-', "_"));
    let name = own_name(module).or_else(stem)?;
    let fits = (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
    fits.then_some(name)
}

fn own_name(module: &[u8]) -> Option<String> {
    let header = FileHeader64::<LittleEndian>::parse(module).ok()?;
    let endian = header.endian().ok()?;
    let (_, section) = header
        .sections(endian, module)
        .ok()?
        .section_by_name(endian, b".modinfo")?;
    let entries = section.data(endian, module).ok()?.split(|byte| *byte == 0);
    let name = entries.into_iter().find_map(|entry| entry.strip_prefix(b"name="))?;
    String::from_utf8(name.to_vec()).ok()
}
