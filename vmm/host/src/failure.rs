//! Why a command of `ftvm` failed.

/// Why a command failed; the text is for the user.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

impl Failure {
    /// An error with exit code 1.
    #[must_use]
    pub fn new(text: impl std::fmt::Display) -> Self {
        Failure {
            code: 1,
            text: text.to_string(),
        }
    }
}

impl From<crate::entropy::EntropyError> for Failure {
    fn from(error: crate::entropy::EntropyError) -> Self {
        Failure::new(error)
    }
}
