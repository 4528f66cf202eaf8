//! The SG_IO ioctl (Linux, `include/scsi/sg.h`, version 3 of its interface): one SCSI command, executed before it returns.
#![allow(unsafe_code, reason = "the ioctl; nothing else of this crate is unsafe")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Longest sense data asked for: fixed format has 18 bytes, descriptor format 8 and what follows.
const SENSE: usize = 64;

/// The ioctl's number.
const SG_IO: libc::c_ulong = 0x2285;

/// The data that travel with a command.
pub(super) enum Data<'a> {
    None,
    /// To the device.
    Out(&'a [u8]),
    /// From the device. What it does not fill is left as it is.
    In(&'a mut [u8]),
}

/// What came back.
pub(super) struct Reply {
    pub(super) status: u8,
    pub(super) host: u16,
    pub(super) sense: Vec<u8>,
    /// Bytes that travelled.
    pub(super) transferred: usize,
}

/// `struct sg_io_hdr`.
#[repr(C)]
struct Header {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// Executes `cdb` (at most 16 bytes); the kernel gives it up after `timeout_ms`.
///
/// # Errors
/// The kernel refuses to pass the command on; what the device says is in the reply.
pub(super) fn execute(device: &File, cdb: &[u8], data: Data<'_>, timeout_ms: u32) -> io::Result<Reply> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SG_DXFER_NONE, SG_DXFER_TO_DEV, SG_DXFER_FROM_DEV. The kernel only reads what goes to the device.
    let (direction, pointer, length) = match data {
        Data::None => (-1, ptr::null_mut(), 0),
        Data::Out(bytes) => (-2, bytes.as_ptr().cast_mut().cast(), bytes.len()),
        Data::In(bytes) => (-3, bytes.as_mut_ptr().cast(), bytes.len()),
    };
    let mut sense = [0_u8; SENSE];
    let mut header = Header {
        interface_id: libc::c_int::from(b'S'),
        dxfer_direction: direction,
        cmd_len: u8::try_from(cdb.len()).map_err(too_long)?,
        mx_sb_len: u8::try_from(SENSE).map_err(too_long)?,
        iovec_count: 0,
        dxfer_len: u32::try_from(length).map_err(too_long)?,
        dxferp: pointer,
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: timeout_ms,
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `header` is the structure that this ioctl takes; the three buffers it points to outlive the call, have the
    // lengths it says, and the kernel writes only to the sense buffer and to data that come from the device.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SG_IO, &raw mut header) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let left = usize::try_from(header.resid).unwrap_or(0);
    Ok(Reply {
        status: header.status,
        host: header.host_status,
        sense: sense[..usize::from(header.sb_len_wr).min(SENSE)].to_vec(),
        transferred: length.saturating_sub(left),
    })
}
