//! Host entropy for the guest: the one source of randomness that becomes an input.

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Most bytes handed out at once: what a virtio-rng driver asks for is a page at most, and the bytes travel in the log.
pub const MAX_ENTROPY: usize = 4096;

/// The kernel has no entropy to give (a sandbox that forbids getrandom(2)).
#[derive(Debug, thiserror::Error)]
#[error("cannot read host entropy: {0}")]
pub struct EntropyError(#[from] rand::rand_core::OsError);

/// Reads `len` bytes, at most [`MAX_ENTROPY`], from getrandom(2).
///
/// # Errors
/// [`EntropyError`].
pub fn host_entropy(len: u32) -> Result<Vec<u8>, EntropyError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(MAX_ENTROPY);
    let mut bytes = vec![0; len];
    OsRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes)
}

/// 64 random bits from the host.
///
/// # Errors
/// If the host has none to give.
pub fn random_u64() -> Result<u64, EntropyError> {
    Ok(OsRng.try_next_u64()?)
}

/// 128 random bits from the host, never 0.
///
/// # Errors
/// If the host has none to give.
pub fn random_u128() -> Result<u128, EntropyError> {
    Ok(u128::from(random_u64()?) << 64 | u128::from(random_u64()?) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_bounded_and_differs() {
        assert_eq!(host_entropy(0).expect("entropy").len(), 0);
        assert_eq!(host_entropy(4096).expect("entropy").len(), 4096);
        assert_eq!(host_entropy(u32::MAX).expect("entropy").len(), MAX_ENTROPY);
        assert_ne!(host_entropy(32).expect("entropy"), host_entropy(32).expect("entropy"));
    }
}
