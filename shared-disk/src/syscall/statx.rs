//! What statx(2) says of direct I/O (`STATX_DIOALIGN`, since Linux 6.1).

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// What a file asks of a transfer that bypasses the page cache, in bytes. Both are 0 if it allows none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectIoAlignment {
    /// Of the memory's address.
    pub(crate) memory: u32,
    /// Of the offset in the file, and of the length.
    pub(crate) offset: u32,
}

/// What `file` asks of direct I/O; `None` if this kernel or file system does not say.
///
/// # Errors
/// What statx(2) answers.
pub(crate) fn direct_io_alignment(file: &File) -> io::Result<Option<DirectIoAlignment>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a constant, empty C string, which with AT_EMPTY_PATH stands for the descriptor, and that is
    // open as long as `file` is borrowed. The kernel writes one `struct statx` to `answer`, which outlives the call.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a `struct statx` consists of integers, for which any bytes are valid, and all of them were zeroed above.
    let answer = unsafe { answer.assume_init() };
    let is_told = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(is_told.then_some(DirectIoAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    }))
}
