//! The global allocator of guests that need one: talc on the memory behind the image.

#![no_std]

use talc::DefaultBinning;
use talc::lock_api::{GuardSend, RawMutex};
use talc::source::Manual;
use talc::sync::TalcLock;

/// There is one CPU, and interrupt handlers do not allocate: nobody else can hold the lock.
struct NoLock;

#[allow(unsafe_code, reason = "the allocator's lock is an unsafe trait")]
// SAFETY: the program is the only one that takes the lock, and never twice.
unsafe impl RawMutex for NoLock {
    const INIT: Self = NoLock;
    type GuardMarker = GuardSend;

    fn lock(&self) {}

    fn try_lock(&self) -> bool {
        true
    }

    unsafe fn unlock(&self) {}
}

#[global_allocator]
static HEAP: TalcLock<NoLock, Manual, DefaultBinning> = TalcLock::new(Manual);

/// Gives memory to the allocator.
#[allow(unsafe_code, reason = "the allocator takes raw memory")]
pub fn init(memory: &'static mut [u64]) {
    // SAFETY: the slice is ours for ever, and nobody else has it.
    let claimed = unsafe { HEAP.lock().claim(memory.as_mut_ptr().cast(), size_of_val(memory)) };
    assert!(
        claimed.is_some(),
        "a heap of {} bytes is too small",
        size_of_val(memory)
    );
}
