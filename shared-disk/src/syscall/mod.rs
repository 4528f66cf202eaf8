//! The two system calls for which no safe wrapper exists, and all the unsafe code of this crate.
#![allow(
    unsafe_code,
    reason = "ioctl(SG_IO) and statx(STATX_DIOALIGN) have no safe wrapper in std or nix"
)]

pub(crate) mod sg;
pub(crate) mod statx;
