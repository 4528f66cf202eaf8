//! What ioctls answer, as errors of the seam.

use std::io;

use ftvm_hypervisor::CpuError;

/// The error of `call`, made with kvm-ioctls.
pub(crate) fn kvm_error(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Call {
        call,
        source: error.into(),
    }
}

/// What an ioctl has returned; its error is the thread's last.
pub(crate) fn checked(result: i32, call: &'static str) -> Result<(), CpuError> {
    match result {
        0.. => Ok(()),
        _ => Err(CpuError::Call {
            call,
            source: io::Error::last_os_error(),
        }),
    }
}
