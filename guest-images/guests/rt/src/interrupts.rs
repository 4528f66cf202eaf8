//! The IDT and what every interrupt and exception goes through.
//!
//! All gates are interrupt gates to CPL0: a handler runs with interrupts disabled, and takes as few instructions as it
//! can, because a software KVM emulates them one by one. `#UD` doubles as the system call (see [`crate::user`]); any
//! other exception is a bug of the guest or of the machine, and ends the guest.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use guest_abi::KERNEL_CODE;

use crate::pic::{self, EndOfInterrupt, FIRST_VECTOR};
use crate::segments::{self, Table, TablePointer};
use crate::{cpu, timer, user};

/// Vectors with a handler: 32 exceptions and 16 IRQs.
const VECTORS: usize = 48;
/// Last byte of the IDT.
const IDT_LIMIT: u16 = 48 * 16 - 1;
const _: () = assert!(IDT_LIMIT as usize == VECTORS * 16 - 1);
/// Bytes between two entry stubs in the assembly below.
const STUB_SIZE: usize = 16;
/// Present interrupt gate, DPL 0.
const INTERRUPT_GATE: u64 = 0x8e;

const INVALID_OPCODE: u64 = 6;
const PAGE_FAULT: u8 = 14;

/// The interrupted state, as the entry stubs leave it on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Whether CPL3 was interrupted.
    #[must_use]
    pub fn from_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// A handler of one IRQ; it runs at CPL0 with interrupts disabled.
pub type Handler = fn(&mut Frame);

static IDT: Table<[[u64; 2]; VECTORS]> = Table(UnsafeCell::new([[0; 2]; VECTORS]));
static HANDLERS: [AtomicPtr<()>; 16] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 16];
static EXPLICIT_END: AtomicBool = AtomicBool::new(true);
static WOKEN: AtomicBool = AtomicBool::new(false);

global_asm!(
    ".section .text.vectors, \"ax\"",
    ".balign 16",
    "guest_rt_vectors:",
    ".set vector, 0",
    ".rept 48",
    ".balign 16",
    // These exceptions push an error code themselves.
    ".if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp guest_rt_common",
    ".set vector, vector + 1",
    ".endr",
    "guest_rt_common:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {dispatch}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    #[link_name = "guest_rt_vectors"]
    static STUBS: u8;
}

pub(crate) fn init() {
    segments::init();
    let stubs = (&raw const STUBS).addr() as u64;
    // SAFETY: interrupts are still disabled, and nothing else refers to the IDT.
    let idt = unsafe { &mut *IDT.0.get() };
    for (gate, stub) in idt.iter_mut().zip((stubs..).step_by(STUB_SIZE)) {
        gate[0] = stub & 0xffff | u64::from(KERNEL_CODE) << 16 | INTERRUPT_GATE << 40 | (stub >> 16 & 0xffff) << 48;
        gate[1] = stub >> 32;
    }
    let pointer = TablePointer {
        limit: IDT_LIMIT,
        base: IDT.0.get().addr() as u64,
    };
    // SAFETY: every gate leads to a stub that saves and restores what it uses.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
    pic::init(EndOfInterrupt::Explicit);
}

pub(crate) fn set_end_of_interrupt(mode: EndOfInterrupt) {
    EXPLICIT_END.store(mode == EndOfInterrupt::Explicit, Ordering::Relaxed);
}

/// Sets the handler of an IRQ (0 to 15), beside the runtime's own for the tick. It does not unmask the IRQ.
pub fn set_handler(irq: u8, handler: Handler) {
    HANDLERS[usize::from(irq)].store(handler as *mut (), Ordering::Relaxed);
}

/// Whether an interrupt has come since the last call.
pub(crate) fn take_woken() -> bool {
    let woken = WOKEN.load(Ordering::Relaxed);
    WOKEN.store(false, Ordering::Relaxed);
    woken
}

extern "C" fn dispatch(frame: &mut Frame) {
    if frame.vector == INVALID_OPCODE && user::call(frame) {
        return;
    }
    // The stubs push nothing above 47.
    let vector = frame.vector.to_le_bytes()[0];
    if let Some(irq) = vector.checked_sub(FIRST_VECTOR) {
        return interrupt(irq, frame);
    }
    if vector == PAGE_FAULT {
        panic!("page fault at {:#x}: {frame:x?}", cpu::page_fault_address());
    }
    panic!("exception {vector}: {frame:x?}");
}

fn interrupt(irq: u8, frame: &mut Frame) {
    WOKEN.store(true, Ordering::Relaxed);
    if irq == timer::TICK_IRQ {
        timer::tick();
    }
    let handler = HANDLERS[usize::from(irq)].load(Ordering::Relaxed);
    if !handler.is_null() {
        // SAFETY: only `set_handler` stores here, and only pointers of this type.
        let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
        handler(frame);
    }
    if EXPLICIT_END.load(Ordering::Relaxed) {
        pic::end_of_interrupt(irq);
    }
}
