//! The command line: words `name=value`, separated by spaces.

use core::fmt::Display;
use core::str::FromStr;

use guest_abi::status;

use crate::{power, println};

/// The guest's command line.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine<'a>(&'a str);

impl<'a> CommandLine<'a> {
    /// Wraps the text of a command line.
    #[must_use]
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The words with their values, in order; a word without `=` has an empty value.
    pub fn words(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .split_ascii_whitespace()
            .map(|word| word.split_once('=').unwrap_or((word, "")))
    }

    /// The value of the last `name=value`, parsed; `default` if there is none. A value that does not parse ends the
    /// guest with [`status::USAGE`] and a line that names it.
    #[must_use]
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> T
    where
        T::Err: Display,
    {
        let Some((_, value)) = self.words().filter(|(found, _)| *found == name).last() else {
            return default;
        };
        value.parse().unwrap_or_else(|error| {
            println!("command line: {name}={value}: {error}");
            power::exit(status::USAGE)
        })
    }

    /// Ends the guest with [`status::USAGE`] if a word is none of `names`: a mistyped option must not look as if it
    /// worked.
    pub fn allow(&self, names: &[&str]) {
        if let Some((found, _)) = self.words().find(|(found, _)| !names.contains(found)) {
            println!("command line: {found} is not an option of this guest; options are {names:?}");
            power::exit(status::USAGE)
        }
    }
}
