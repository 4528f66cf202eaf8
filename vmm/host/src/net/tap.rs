//! A TAP interface (Linux, Documentation/networking/tuntap.rst): frames without packet information or virtio header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::unistd::{Uid, User, read, write};

use super::NetError;

/// Where TAP interfaces come from.
const TUN_DEVICE: &str = "/dev/net/tun";

/// No checksum or segmentation offload: every frame is complete and at most an MTU long.
const NO_OFFLOAD: libc::c_ulong = 0;

mod ioctl {
    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);
}

/// An attached TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    pub(super) fn open(name: &str) -> Result<Tap, NetError> {
        let request = interface_request(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NetError::NoTun,
                Some(libc::EACCES | libc::EPERM) => NetError::TunPermission,
                _ => failed(name, "cannot open /dev/net/tun", error),
            })?;
        // SAFETY: TUNSETIFF reads one `ifreq`, which `request` is, and the descriptor is open.
        unsafe { ioctl::tunsetiff(file.as_raw_fd(), &request) }.map_err(|errno| match errno {
            Errno::EPERM | Errno::EACCES => NetError::NotPermitted {
                name: name.to_owned(),
                user: user_name(),
            },
            Errno::EBUSY => NetError::Busy(name.to_owned()),
            Errno::EINVAL => NetError::WrongKind(name.to_owned()),
            other => failed(name, "TUNSETIFF", other.into()),
        })?;
        let no_offload = i32::try_from(NO_OFFLOAD).expect("a small constant");
        // SAFETY: TUNSETOFFLOAD takes its argument by value and the descriptor is open.
        unsafe { ioctl::tunsetoffload(file.as_raw_fd(), no_offload) }
            .map_err(|errno| failed(name, "TUNSETOFFLOAD", errno.into()))?;
        Ok(Tap { file })
    }

    pub(super) fn send(&self, frame: &[u8]) -> Result<usize, Errno> {
        loop {
            match write(&self.file, frame) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    pub(super) fn recv(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match read(&self.file, buffer) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The request that names the interface and what it is to be.
fn interface_request(name: &str) -> Result<libc::ifreq, NetError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        && name != "."
        && name != "..";
    // `%d` would ask the kernel to choose a number, and both hosts are to find the name they were given.
    if !valid || name.contains('%') {
        return Err(NetError::Name(name.to_owned()));
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    Ok(libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: i16::try_from(flags).expect("IFF_TAP and IFF_NO_PI fit 16 bits"),
        },
    })
}

fn user_name() -> String {
    let uid = Uid::effective();
    User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

fn failed(name: &str, what: &'static str, source: io::Error) -> NetError {
    NetError::Tap {
        name: name.to_owned(),
        what,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        for good in ["tap0", "a", "fifteen-chars-x"] {
            assert!(interface_request(good).is_ok(), "{good}");
        }
        for bad in ["", "sixteen-charsxyz", "a/b", "a b", "tap%d", "..", "t\u{e4}p"] {
            assert!(matches!(interface_request(bad), Err(NetError::Name(_))), "{bad}");
        }
    }
}
