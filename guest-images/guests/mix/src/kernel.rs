//! Work in all general registers with port writes in its midst, and the same work as plain Rust.
//!
//! A port write is an exit at which all fifteen registers hold values that matter: whatever a replay does to one
//! of them at an exit or in an interrupt shows in the state afterwards.

use core::arch::naked_asm;

/// All general registers but RSP: RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15.
pub type State = [u64; 15];

/// Rotation of each register in a lap.
const ROTATE: [u32; 15] = [7, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 3];

macro_rules! step {
    ($a:literal, $b:literal, $c:literal, $rotate:literal) => {
        concat!(
            "add ", $a, ", ", $b, "\nrol ", $a, ", ", $rotate, "\nxor ", $a, ", ", $c
        )
    };
}

/// How often the registers are mixed; both numbers are at least 1.
#[derive(Clone, Copy)]
pub struct Laps {
    /// Port writes.
    pub exits: u64,
    /// Mixings of all registers before each port write: a stretch for interrupts to hit.
    pub between: u64,
}

/// Mixes the registers; each `Laps::exits` writes AL to port 0x80, which nobody listens to.
#[allow(unsafe_code, reason = "only assembly decides what is in which register")]
pub fn with_ports(state: &mut State, laps: Laps) {
    // SAFETY: the routine reads and writes the state and its own stack frame only, and keeps the calling convention.
    unsafe { with_ports_asm(state, laps.exits, laps.between) }
}

#[allow(unsafe_code, reason = "only assembly decides what is in which register")]
#[unsafe(naked)]
unsafe extern "C" fn with_ports_asm(state: &mut State, exits: u64, between: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rdx",
        "push rsi",
        "push rdx",
        // On the stack from here: laps left until the next exit, exits left, laps between exits, the state's address.
        "mov rax, [rdi]",
        "mov rbx, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov rbp, [rdi + 48]",
        "mov r8, [rdi + 56]",
        "mov r9, [rdi + 64]",
        "mov r10, [rdi + 72]",
        "mov r11, [rdi + 80]",
        "mov r12, [rdi + 88]",
        "mov r13, [rdi + 96]",
        "mov r14, [rdi + 104]",
        "mov r15, [rdi + 112]",
        "mov rdi, [rdi + 40]",
        "2:",
        step!("rax", "rbx", "rcx", "7"),
        step!("rbx", "rcx", "rdx", "13"),
        step!("rcx", "rdx", "rsi", "17"),
        step!("rdx", "rsi", "rdi", "19"),
        step!("rsi", "rdi", "rbp", "23"),
        step!("rdi", "rbp", "r8", "29"),
        step!("rbp", "r8", "r9", "31"),
        step!("r8", "r9", "r10", "37"),
        step!("r9", "r10", "r11", "41"),
        step!("r10", "r11", "r12", "43"),
        step!("r11", "r12", "r13", "47"),
        step!("r12", "r13", "r14", "53"),
        step!("r13", "r14", "r15", "59"),
        step!("r14", "r15", "rax", "61"),
        step!("r15", "rax", "rbx", "3"),
        "dec qword ptr [rsp]",
        "jnz 2b",
        "out 0x80, al",
        "push qword ptr [rsp + 16]",
        "pop qword ptr [rsp]",
        "dec qword ptr [rsp + 8]",
        "jnz 2b",
        "push rdi",
        "mov rdi, [rsp + 32]",
        "pop qword ptr [rdi + 40]",
        "mov [rdi], rax",
        "mov [rdi + 8], rbx",
        "mov [rdi + 16], rcx",
        "mov [rdi + 24], rdx",
        "mov [rdi + 32], rsi",
        "mov [rdi + 48], rbp",
        "mov [rdi + 56], r8",
        "mov [rdi + 64], r9",
        "mov [rdi + 72], r10",
        "mov [rdi + 80], r11",
        "mov [rdi + 88], r12",
        "mov [rdi + 96], r13",
        "mov [rdi + 104], r14",
        "mov [rdi + 112], r15",
        "add rsp, 32",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// What [`with_ports`] does to the state.
pub fn expected(state: &mut State, laps: Laps) {
    for _ in 0..laps.exits * laps.between {
        for at in 0..state.len() {
            let (next, after) = (state[(at + 1) % state.len()], state[(at + 2) % state.len()]);
            state[at] = state[at].wrapping_add(next).rotate_left(ROTATE[at]) ^ after;
        }
    }
}
