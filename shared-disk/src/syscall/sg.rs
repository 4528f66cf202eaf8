//! The SG_IO ioctl (Linux, `include/scsi/sg.h`, version 3 of its interface): one SCSI command, executed before it
//! returns.

use std::ffi::{c_int, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Bytes of sense data asked for: more than the 18 of the fixed format, and enough for the header and first descriptors
/// of the other one.
const SENSE_BYTES: usize = 64;

/// The ioctl's number.
const SG_IO: c_ulong = 0x2285;

/// `SG_DXFER_NONE`, `SG_DXFER_TO_DEV` and `SG_DXFER_FROM_DEV`.
const NO_DATA: c_int = -1;
const TO_DEVICE: c_int = -2;
const FROM_DEVICE: c_int = -3;

/// The data that travel with a command.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    None,
    /// To the device.
    Out(&'a [u8]),
    /// From the device. What it does not fill is left as it is.
    In(&'a mut [u8]),
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SgReply {
    /// The device's status byte.
    pub(crate) status: u8,
    /// The kernel's `DID_…` code: 0 if the command reached the device.
    pub(crate) host: u16,
    /// What the device says of the status, at most 64 bytes; empty if it says nothing.
    pub(crate) sense: Vec<u8>,
    /// Bytes of the payload that travelled.
    pub(crate) transferred: usize,
}

/// `struct sg_io_hdr`.
#[repr(C)]
struct SgIoHeader {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: c_int,
    duration: u32,
    info: u32,
}

/// Executes `cdb` (at most 255 bytes) on `device`. After `timeout_ms` the kernel begins to give the command up.
///
/// # Errors
/// The kernel refuses to pass the command on. What the device says of it is in the reply.
pub(crate) fn execute(device: &File, cdb: &[u8], payload: &mut Payload<'_>, timeout_ms: u32) -> io::Result<SgReply> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (direction, pointer, length) = match payload {
        Payload::None => (NO_DATA, ptr::null_mut(), 0),
        // The field is not const, but the kernel only reads what goes to the device.
        Payload::Out(bytes) => (TO_DEVICE, bytes.as_ptr().cast_mut().cast(), bytes.len()),
        Payload::In(bytes) => (FROM_DEVICE, bytes.as_mut_ptr().cast(), bytes.len()),
    };
    let mut sense = [0_u8; SENSE_BYTES];
    let mut header = SgIoHeader {
        interface_id: c_int::from(b'S'),
        dxfer_direction: direction,
        cmd_len: u8::try_from(cdb.len()).map_err(too_long)?,
        mx_sb_len: u8::try_from(SENSE_BYTES).map_err(too_long)?,
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
    // SAFETY: `header` is the structure that this ioctl takes; the three buffers it points to outlive the call, have
    // the lengths it says, and the kernel writes only to the sense buffer and to data that come from the device.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SG_IO, &raw mut header) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let left = usize::try_from(header.resid).unwrap_or(0);
    Ok(SgReply {
        status: header.status,
        host: header.host_status,
        sense: sense[..usize::from(header.sb_len_wr).min(SENSE_BYTES)].to_vec(),
        transferred: length.saturating_sub(left),
    })
}
