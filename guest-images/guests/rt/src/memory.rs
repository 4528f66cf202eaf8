//! The functions that compiled Rust expects of a C library, and the guest's memory map.
//!
//! They move quadwords and then bytes with `rep`: one instruction for the software KVM's emulator, and free of SSE.

use core::arch::asm;
use core::cmp::Ordering;

use guest_abi::{BootInfo, IMAGE_LIMIT};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// RAM behind the image, handed out once, from below.
#[derive(Debug)]
pub struct FreeMemory {
    next: usize,
    end: usize,
}

impl FreeMemory {
    /// # Safety
    /// `info` is the checked boot information, and this is called once.
    pub(crate) unsafe fn new(info: &BootInfo) -> Self {
        let clamp = |address: u64| usize::try_from(address).unwrap_or(usize::MAX);
        Self {
            next: clamp(IMAGE_LIMIT),
            end: clamp(info.memory_bytes) & !(PAGE_SIZE - 1),
        }
    }

    /// Pages that are left.
    #[must_use]
    pub fn pages(&self) -> usize {
        (self.end - self.next) / PAGE_SIZE
    }

    /// The next `pages` pages as quadwords, with whatever they contain (zero, as the VMM starts guests). `None` if there
    /// are not as many.
    pub fn take(&mut self, pages: usize) -> Option<&'static mut [u64]> {
        if pages > self.pages() {
            return None;
        }
        let start = self.next as *mut u64;
        self.next += pages * PAGE_SIZE;
        // SAFETY: RAM from the image's limit to the end of memory is mapped one to one and belongs to nobody; each page is
        // handed out once.
        Some(unsafe { core::slice::from_raw_parts_mut(start, pages * PAGE_SIZE / size_of::<u64>()) })
    }
}

/// `memcpy` of the C library.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; DF is clear by the calling convention.
    unsafe {
        asm!("rep movsq", "mov ecx, {tail:e}", "rep movsb", tail = in(reg) len & 7, inout("rcx") len / 8 => _,
             inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// `memmove` of the C library.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: a copy upwards never overwrites what it has still to read here.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller vouches for both ranges; the copy runs downwards from their last bytes, and DF is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// `memset` of the C library.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    let pattern = u64::from(value.to_le_bytes()[0]) * 0x0101_0101_0101_0101;
    // SAFETY: the caller vouches for the range; DF is clear by the calling convention.
    unsafe {
        asm!("rep stosq", "mov ecx, {tail:e}", "rep stosb", tail = in(reg) len & 7, inout("rcx") len / 8 => _,
             inout("rdi") to => _, in("rax") pattern, options(nostack, preserves_flags));
    }
    to
}

/// `memcmp` of the C library.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at + 8 <= len {
        // SAFETY: the caller vouches for `len` bytes at both, and `at + 8` does not go beyond.
        let (x, y) = unsafe {
            (
                a.add(at).cast::<u64>().read_unaligned(),
                b.add(at).cast::<u64>().read_unaligned(),
            )
        };
        if x != y {
            return order(x.swap_bytes().cmp(&y.swap_bytes()));
        }
        at += 8;
    }
    while at < len {
        // SAFETY: as above, with one byte.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return order(x.cmp(&y));
        }
        at += 1;
    }
    0
}

/// `bcmp` of the C library.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the contract is the same.
    unsafe { memcmp(a, b, len) }
}

fn order(order: Ordering) -> i32 {
    match order {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}
