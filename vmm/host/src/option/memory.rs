//! `--memory SIZE`

use std::str::FromStr;

use super::OptionError;

/// A guest's RAM in bytes, as users write it: `256M`, `1G`, `524288K`, or a plain number; `size=` may stand in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let number = text.strip_prefix("size=").unwrap_or(text);
        let (digits, shift) = match number.as_bytes().last() {
            Some(b'K' | b'k') => (&number[..number.len() - 1], 10),
            Some(b'M' | b'm') => (&number[..number.len() - 1], 20),
            Some(b'G' | b'g') => (&number[..number.len() - 1], 30),
            _ => (number, 0),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        bytes
            .map(MemorySize)
            .ok_or_else(|| OptionError::MemorySize(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_have_units_and_are_bounded() {
        for (text, bytes) in [("256M", 256 << 20), ("size=1G", 1 << 30), ("4096", 4096), ("8k", 8192)] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }
        for text in ["", "M", "1T", "-1", "99999999999999999G"] {
            let error = OptionError::MemorySize(text.to_owned());
            assert_eq!(text.parse::<MemorySize>(), Err(error));
        }
    }
}
