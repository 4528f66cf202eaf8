//! CPL3: entering it, leaving it, and the calls it can make.
//!
//! A call is `ud2` with a number in RAX: the one way to CPL0 that hardware and a software KVM treat alike, and IF needs
//! no change at CPL3, where the latter cannot change it. Code at CPL3 shares the address space with CPL0 and has its
//! ports (IOPL = 3), so that only HLT needs a call.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::{USER_CODE, USER_DATA};

use crate::cpu;
use crate::interrupts::{self, Frame};
use crate::segments::{Table, rsp0};

/// Bytes of stack at CPL3.
const STACK_SIZE: usize = 256 << 10;
/// RFLAGS at CPL3: IF, IOPL 3 and the bit that is always set.
const USER_FLAGS: u64 = 0x3202;
/// Bytes of `ud2`.
const UD2_SIZE: u64 = 2;

/// Calls are told from a `ud2` that means a bug by numbers which do not come up by accident.
const CALL_RETURN: u64 = 0x6674_766d_0000_0001;
const CALL_IDLE: u64 = 0x6674_766d_0000_0002;
const CALL_TRAP: u64 = 0x6674_766d_0000_0003;

static STACK: Table<[u8; STACK_SIZE]> = Table(UnsafeCell::new([0; STACK_SIZE]));
static TRAPS: AtomicU64 = AtomicU64::new(0);

/// Runs `code` at CPL3 with interrupts enabled, on a stack of its own, and returns what it returned. CPL0 only;
/// interrupts are afterwards as they were before.
pub fn run<R, F: FnOnce() -> R>(code: F) -> R {
    let mut job = Job {
        code: Some(code),
        result: None,
    };
    // SAFETY: the stack is used by nobody else, as CPL3 cannot call this function; `job` outlives the call, and
    // `Job::<R, F>::run` is the reader that the pointer to it is meant for.
    unsafe {
        enter(
            Job::<R, F>::run,
            (&raw mut job).cast(),
            STACK.0.get().addr() + STACK_SIZE,
            rsp0(),
        )
    };
    job.result.expect("CPL3 has returned")
}

/// A closure on its way to CPL3, and its result on the way back.
struct Job<R, F> {
    code: Option<F>,
    result: Option<R>,
}

impl<R, F: FnOnce() -> R> Job<R, F> {
    extern "C" fn run(job: *mut ()) {
        // SAFETY: `user::run` passes the only pointer to a job of this type.
        let job = unsafe { &mut *job.cast::<Self>() };
        job.result = job.code.take().map(|code| code());
    }
}

/// Saves what a call has to preserve; `*rsp0` is then both the stack for entries from CPL3 and the way back for `leave`.
#[unsafe(naked)]
unsafe extern "C" fn enter(code: extern "C" fn(*mut ()), argument: *mut (), stack: usize, rsp0: *mut u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "mov [rcx], rsp",
        "push {data}",
        "push rdx",
        "push {flags}",
        "push {user}",
        "lea rax, [rip + 2f]",
        "push rax",
        "iretq",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "xor ebp, ebp",
        "call rax",
        "mov rax, {leave}",
        "ud2",
        data = const USER_DATA,
        user = const USER_CODE,
        flags = const USER_FLAGS,
        leave = const CALL_RETURN,
    )
}

/// Goes back to the caller of `enter`.
#[unsafe(naked)]
unsafe extern "C" fn leave(rsp: u64) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Handles `#UD`; `false` if it is not a call.
pub(crate) fn call(frame: &mut Frame) -> bool {
    match frame.rax {
        CALL_RETURN if frame.from_user() => {
            // SAFETY: the frame came from CPL3, so `enter` has stored its stack pointer, and that stack is intact.
            unsafe { leave(rsp0().read_unaligned()) }
        }
        CALL_IDLE if frame.from_user() => {
            if !interrupts::take_woken() {
                cpu::halt();
                let _ = interrupts::take_woken();
            }
        }
        CALL_TRAP => {
            TRAPS.store(TRAPS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            frame.rdi = frame.rdi.rotate_left(1) ^ frame.rsi;
        }
        _ => return false,
    }
    frame.rip += UD2_SIZE;
    true
}

/// Halts until an interrupt comes, unless one has come since the last `idle` returned. CPL3 only.
pub fn idle() {
    // SAFETY: the call changes nothing but memory that interrupt handlers use.
    unsafe { asm!("ud2", in("rax") CALL_IDLE, options(nostack, preserves_flags)) };
}

/// Goes through the `#UD` handler and back, from any CPL; the handler computes `value.rotate_left(1) ^ key`.
#[must_use]
pub fn trap(mut value: u64, key: u64) -> u64 {
    // SAFETY: the call changes RDI and the counter of traps.
    unsafe { asm!("ud2", in("rax") CALL_TRAP, inout("rdi") value, in("rsi") key, options(nostack, preserves_flags)) };
    value
}

/// Traps taken so far.
#[must_use]
pub fn traps() -> u64 {
    TRAPS.load(Ordering::Relaxed)
}
