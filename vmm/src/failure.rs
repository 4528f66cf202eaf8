//! Why a command of `ftvm` failed, and with which code the process ends for it.

use std::error::Error;
use std::fmt;

use ftvm_roles::exit_code::ExitCode;

/// An error of any type, kept whole.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// An error that ends the process: what failed, down to its first cause, and the exit code.
///
/// Modules have error types of their own, with fields and sources; here they come together, and all that is left to do is
/// to tell the user. Shown, it is one sentence.
#[derive(Debug)]
pub struct Failure {
    code: ExitCode,
    cause: AnyError,
}

impl Failure {
    /// With [`ExitCode::Error`].
    #[must_use]
    pub fn new(cause: impl Into<AnyError>) -> Self {
        Failure::with(ExitCode::Error, cause)
    }

    /// With [`ExitCode::Usage`]: the command line asks for what cannot be, as far as can be said without looking at the world.
    #[must_use]
    pub fn usage(cause: impl Into<AnyError>) -> Self {
        Failure::with(ExitCode::Usage, cause)
    }

    /// With any code.
    #[must_use]
    pub fn with(code: ExitCode, cause: impl Into<AnyError>) -> Self {
        Failure {
            code,
            cause: cause.into(),
        }
    }

    /// What the process ends with.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        self.code
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(cause: E) -> Self {
        Failure::new(cause)
    }
}

impl fmt::Display for Failure {
    /// Most errors have their source's words in their own, where the sentence needs them; a source whose words are there is
    /// not said again, any other follows behind a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentence = self.cause.to_string();
        let mut source = self.cause.source();
        while let Some(error) = source {
            let words = error.to_string();
            if !sentence.contains(&words) {
                sentence.push_str(": ");
                sentence.push_str(&words);
            }
            source = error.source();
        }
        f.write_str(&sentence)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open x: {0}; is it mounted?")]
        Said(#[source] io::Error),
        #[error("cannot go on")]
        Unsaid(#[source] Box<Outer>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let said = || Outer::Said(io::Error::other("gone"));
        assert_eq!(Failure::from(said()).to_string(), "cannot open x: gone; is it mounted?");
        let failure = Failure::from(Outer::Unsaid(Box::new(said())));
        assert_eq!(failure.to_string(), "cannot go on: cannot open x: gone; is it mounted?");
        assert_eq!(failure.code(), ExitCode::Error);
    }

    #[test]
    fn the_cause_can_still_be_asked_for() {
        let failure = Failure::usage(Outer::Said(io::ErrorKind::NotFound.into()));
        let source = failure.cause.source().and_then(|source| source.downcast_ref());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::NotFound));
        assert_eq!(failure.code(), ExitCode::Usage);
    }
}
