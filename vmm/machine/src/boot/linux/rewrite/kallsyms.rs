//! The kernel's own symbol table, which every distribution's kernel has in its image (CONFIG_KALLSYMS).
//!
//! scripts/kallsyms.c writes it as compressed names with a table of 256 tokens and markers at every 256th name, and
//! addresses relative to a base. The tables have no header, so they are found by their contents: the tokens of the ten
//! digits stand for themselves, `kallsyms_token_index` must be what the tokens' lengths say, and the markers must be
//! where the names' lengths put them. Each step verifies itself; a table that fits none of the layouts since Linux 5.10
//! is none.

use super::super::vmlinux::{Layout, Section};

/// What the ten digits' tokens look like; no name is compressed with them.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Names between two markers.
const STRIDE: usize = 256;

/// Most symbols: real kernels have 100,000 to 300,000.
const MAX_SYMBOLS: usize = 4 << 20;

/// Longest token and longest name; KSYM_NAME_LEN is 512.
const MAX_TOKEN: usize = 512;
const MAX_NAME: usize = 1024;

/// Tables are aligned to this, as `PTR` in scripts/kallsyms.c.
const ALIGN: usize = 8;

/// One symbol of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol {
    pub address: u64,
    pub name: String,
}

/// The symbols, by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    sorted: Vec<Symbol>,
}

impl Symbols {
    /// Finds and reads the table in `image`; `None` if there is none that can be read.
    #[must_use]
    pub fn find(image: &[u8], layout: &Layout) -> Option<Self> {
        layout
            .sections
            .iter()
            .filter(|section| !section.executable)
            .find_map(|section| Tables::find(&image[section.file.clone()])?.symbols(layout))
    }

    #[cfg(test)]
    pub(super) fn from_list(list: &[(u64, &str)]) -> Self {
        let symbol = |&(address, name): &(u64, &str)| Symbol {
            address,
            name: name.to_owned(),
        };
        let mut sorted: Vec<_> = list.iter().map(symbol).collect();
        sorted.sort();
        Symbols { sorted }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The address of a symbol by its exact name.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<u64> {
        self.named(|have| have == name).next().map(|symbol| symbol.address)
    }

    /// All symbols whose name is accepted.
    pub fn named(&self, accept: impl Fn(&str) -> bool) -> impl Iterator<Item = &Symbol> {
        self.sorted.iter().filter(move |symbol| accept(&symbol.name))
    }

    /// The last symbol at or below `address`, and among several the first by name.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&Symbol> {
        let behind = self.sorted.partition_point(|symbol| symbol.address <= address);
        let found = self.sorted.get(behind.checked_sub(1)?)?;
        let first = self.sorted.partition_point(|symbol| symbol.address < found.address);
        self.sorted.get(first)
    }

    /// The next address above `address` that has a symbol.
    #[must_use]
    pub fn next_above(&self, address: u64) -> Option<u64> {
        let behind = self.sorted.partition_point(|symbol| symbol.address <= address);
        self.sorted.get(behind).map(|symbol| symbol.address)
    }

    /// `name+0x12`, or the address where there is no symbol.
    #[must_use]
    pub fn describe(&self, address: u64) -> String {
        self.at(address).map_or_else(
            || format!("{address:#x}"),
            |symbol| format!("{}+{:#x}", symbol.name, address - symbol.address),
        )
    }
}

/// Where the tables lie in one section's bytes.
struct Tables<'a> {
    bytes: &'a [u8],
    tokens: Vec<&'a [u8]>,
    /// Behind `kallsyms_token_index`.
    end: usize,
    /// `kallsyms_names`.
    names: usize,
    count: usize,
}

fn up(at: usize) -> usize {
    at.next_multiple_of(ALIGN)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl<'a> Tables<'a> {
    fn find(bytes: &'a [u8]) -> Option<Self> {
        let mut from = 0;
        while let Some(found) = bytes[from..].windows(DIGITS.len()).position(|window| window == DIGITS) {
            let digits = from + found;
            from = digits + 1;
            if let Some(tables) = Self::around(bytes, digits) {
                return Some(tables);
            }
        }
        None
    }

    /// The tables if the token of '0' is at `digits`.
    fn around(bytes: &'a [u8], digits: usize) -> Option<Self> {
        let mut start = digits;
        for _ in 0..b'0' {
            let end = start.checked_sub(1)?;
            let length = bytes[..end].iter().rev().take(MAX_TOKEN).position(|byte| *byte == 0);
            // The first token is preceded by whatever stands before the table, at a multiple of the alignment.
            start = end - length?;
        }
        let (mut tokens, mut at) = (Vec::with_capacity(STRIDE), start);
        for _ in 0..256 {
            let length = bytes.get(at..)?.iter().take(MAX_TOKEN).position(|byte| *byte == 0)?;
            tokens.push(&bytes[at..at + length]);
            at += length + 1;
        }
        let index = up(at);
        let mut offset = 0;
        for (number, token) in tokens.iter().enumerate() {
            let entry = bytes.get(index + 2 * number..index + 2 * number + 2)?;
            if usize::from(u16::from_le_bytes(entry.try_into().ok()?)) != offset {
                return None;
            }
            offset += token.len() + 1;
        }
        let end = index + 2 * tokens.len();
        let (names, count) = names_before(bytes, start)?;
        Some(Tables {
            bytes,
            tokens,
            end,
            names,
            count,
        })
    }

    fn symbols(&self, layout: &Layout) -> Option<Symbols> {
        let names = self.names()?;
        let text = layout.section(".text")?;
        // Since Linux 6.4 the addresses stand behind the tokens, before that in front of the names.
        let behind = up(self.end);
        let base_behind = up(behind + 4 * self.count);
        let base_before = self.names.checked_sub(2 * ALIGN);
        let before = base_before.and_then(|base| base.checked_sub(up(4 * self.count)));
        [(Some(behind), Some(base_behind)), (before, base_before)]
            .into_iter()
            .find_map(|(offsets, base)| self.addressed(&names, offsets?, long(self.bytes, base?)?, text))
    }

    fn addressed(&self, names: &[String], offsets: usize, base: u64, text: &Section) -> Option<Symbols> {
        let mut sorted = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let offset = word(self.bytes, offsets + 4 * index)?;
            // CONFIG_KALLSYMS_ABSOLUTE_PERCPU: a negative offset counts from the base, another is an address in itself.
            let signed = i64::from(offset.cast_signed());
            let relative = base.wrapping_sub(1).wrapping_sub_signed(signed);
            sorted.push(Symbol {
                address: if signed < 0 { relative } else { u64::from(offset) },
                name: name.clone(),
            });
        }
        let fits = |sorted: &[Symbol]| {
            sorted
                .iter()
                .any(|s| s.name == "_stext" && text.offset(s.address).is_some())
        };
        if !fits(&sorted) {
            // Without it (since Linux 6.15): every offset counts from the base.
            for (index, symbol) in sorted.iter_mut().enumerate() {
                symbol.address = base.wrapping_add(u64::from(word(self.bytes, offsets + 4 * index)?));
            }
        }
        if !fits(&sorted) {
            return None;
        }
        sorted.sort();
        Some(Symbols { sorted })
    }

    /// All names, without the letter of their type in front.
    fn names(&self) -> Option<Vec<String>> {
        let (mut names, mut at) = (Vec::with_capacity(self.count), self.names);
        for _ in 0..self.count {
            let (length, begin) = name_length(self.bytes, at)?;
            let mut name = Vec::new();
            for code in self.bytes.get(begin..begin + length)? {
                name.extend_from_slice(self.tokens[usize::from(*code)]);
                if name.len() > MAX_NAME {
                    return None;
                }
            }
            names.push(String::from_utf8_lossy(name.get(1..)?).into_owned());
            at = begin + length;
        }
        Some(names)
    }
}

/// The number of codes of the name at `at`, and where they begin. Since Linux 6.1 a length above 127 has two bytes.
fn name_length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*bytes.get(at)?);
    if low < 0x80 {
        return Some((low, at + 1));
    }
    let high = usize::from(*bytes.get(at + 1)?);
    Some((low & 0x7f | high << 7, at + 2))
}

/// `kallsyms_names` and `kallsyms_num_syms` in front of it, of the tables that end where the tokens begin: names,
/// markers, and in 6.1's later versions `kallsyms_seqs_of_names` with three bytes for each symbol.
fn names_before(bytes: &[u8], tokens: usize) -> Option<(usize, usize)> {
    if !tokens.is_multiple_of(ALIGN) {
        return None;
    }
    (ALIGN..tokens).step_by(ALIGN).rev().find_map(|names| {
        let count = size(word(bytes, names - ALIGN)?);
        if !(STRIDE..MAX_SYMBOLS).contains(&count) || word(bytes, names - ALIGN + 4) != Some(0) {
            return None;
        }
        [0, up(3 * count)]
            .into_iter()
            .filter_map(|sequences| tokens.checked_sub(sequences + up(4 * count.div_ceil(STRIDE))))
            .any(|markers| markers > names && marks_fit(bytes, names, markers, count))
            .then_some((names, count))
    })
}

/// Whether walking the names meets every marker, and ends where the markers begin.
fn marks_fit(bytes: &[u8], names: usize, markers: usize, symbols: usize) -> bool {
    let mut at = names;
    for index in 0..symbols {
        if index % STRIDE == 0 && word(bytes, markers + index / STRIDE * 4).map(size) != Some(at - names) {
            return false;
        }
        let Some((length, begin)) = name_length(bytes, at) else {
            return false;
        };
        at = begin + length;
        if length == 0 || at > markers {
            return false;
        }
    }
    up(at) == markers
}
