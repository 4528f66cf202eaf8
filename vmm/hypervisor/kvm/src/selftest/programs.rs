//! Machine code of the tiny guests.
//!
//! Position-independent, integer-only at CPL0 and within what a software KVM emulates (KVM-FACTS, "Contract for
//! bare-metal guests"). Ports: 0x10 an event, 0x11 done, 0x12 in a trap, 0x20 in an interrupt, 0xee an exception that
//! nobody expected (its vector is on top of the stack). RAX is 0 at the start, R10 and R11 are lost.

use std::arch::global_asm;

/// Where the code is loaded.
pub const CODE: u64 = 0x1_0000;
/// Eight quadwords that handlers count in: 8 traps, 16 interrupts, 24 a running mix.
pub const COUNTERS: u64 = 0x2_0000;
/// Top of the stack that user code starts with.
const USER_STACK: u64 = 0x1_f000;

/// A program and its arguments' registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyProgram {
    /// Counts RCX down, then 0x11.
    Loop,
    /// Increments RBX for ever.
    Spin,
    /// Mixes the 64 KiB at RDI, RCX rounds, then 0x11; the result is in RBX, R8..R10 and memory.
    Mix,
    /// As `Mix`, through SSE registers too; only for CPL3. XMM results are in R12 and R13.
    MixSse,
    /// Adds RCX to pseudo-random quadwords at RDI + (x & RDX), RCX rounds, then 0x11.
    Scatter,
    /// Endless mixture of port and MMIO accesses, traps and HLT. R14 seed, R15 the 64 KiB to mix, RBP an MMIO address.
    Medley,
    /// 0x10, then `sti` and a store to RDI in its shadow, then [`Label::WindowAfterStore`], `cli`, 0x11; again.
    WindowSti,
    /// 0x10, then `popf` with IF set, then [`Label::WindowAfterPopf`], `cli`, 0x11; again.
    WindowPopf,
    /// Loads EAX from RDI, then 0x10; again.
    Watch,
    /// CPUID with leaf EBX, subleaf ECX, then 0x10.
    Cpuid,
    /// `in` from 0x10 with each size, `rep insb` of 4 to RDI, then 0x11 with EAX = the last `in`.
    PortReads,
    /// `or dword [RDI], 1`, an 8-byte store to RSI, `rep outsb` of 3 bytes at RDX to port 0x10, then 0x11.
    Fragments,
    /// RDMSR of ECX, then 0x10; WRMSR of the same, then 0x11. A #GP skips the instruction and counts as a trap.
    Msr,
    /// `hlt` with IF = 1, then 0x10; again.
    Halt,
    /// `ud2` without a usable IDT: a triple fault.
    TripleFault,
    /// `fld` from RDI: on MMIO, nothing that KVM can emulate.
    Unemulable,
    /// Loads EAX from RDI, 0x10; `ud2` for [`Label::RemapTrap`]; adds what it reads at RDI to RBX, RCX times; loads EAX
    /// again, 0x11.
    Remap,
}

/// A place inside a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Where guests start at CPL0: loads the task register and jumps to R11.
    StartKernel,
    /// Where guests start that run at CPL3: RFLAGS from R10, RIP from R11.
    StartUser,
    /// Handlers of vectors 0 to 47, 8 bytes apart, that report on port 0xee.
    Stubs,
    /// Handler that counts an interrupt and reports on port 0x20.
    Interrupt,
    /// Handler of `Medley`'s `ud2`.
    MedleyTrap,
    /// Handler of `Remap`'s `ud2`: writes RDX to the page table entry at RSI and invalidates RDI.
    RemapTrap,
    /// Handler that skips a two-byte instruction after #GP.
    SkipTwoBytes,
    /// Where the window opens in `WindowSti` and in `WindowPopf`.
    WindowAfterStore,
    WindowAfterPopf,
}

global_asm!(
    ".pushsection .rodata.ftvm_tiny, \"a\"",
    ".code64",
    "ftvm_tiny_begin:",
    "ftvm_tiny_stubs:",
    ".set ftvm_tiny_vector, 0",
    ".rept 48",
    ".balign 8",
    ".byte 0x6a, ftvm_tiny_vector", // push vector
    "jmp ftvm_tiny_unexpected",
    ".set ftvm_tiny_vector, ftvm_tiny_vector + 1",
    ".endr",
    "ftvm_tiny_unexpected:",
    "out 0xee, al",
    "hlt",
    "jmp ftvm_tiny_unexpected",
    "ftvm_tiny_start_kernel:",
    "mov eax, 0x40",
    "ltr ax",
    "xor eax, eax",
    "jmp r11",
    "ftvm_tiny_start_user:",
    "mov eax, 0x40",
    "ltr ax",
    "xor eax, eax",
    "push 0x2b",
    "push {user_stack}",
    "push r10",
    "push 0x33",
    "push r11",
    "iretq",
    "ftvm_tiny_interrupt:",
    "push rax",
    "inc qword ptr [0x20010]",
    "mov rax, [0x20010]",
    "xor [0x20018], rax",
    "rol qword ptr [0x20018], 1",
    "out 0x20, al",
    "pop rax",
    "iretq",
    "ftvm_tiny_skip:",
    "add qword ptr [rsp + 8], 2", // behind the error code
    "inc qword ptr [0x20008]",
    "add rsp, 8",
    "iretq",
    "ftvm_tiny_loop:",
    "dec rcx",
    "jnz ftvm_tiny_loop",
    "out 0x11, al",
    "ftvm_tiny_spin:",
    "inc rbx",
    "jmp ftvm_tiny_spin",
    "ftvm_tiny_mix:",
    "movabs r8, 6364136223846793005",
    "movabs r9, 1442695040888963407",
    "2: imul rax, r8",
    "add rax, r9",
    "mov rdx, rax",
    "shr rdx, 33",
    "and edx, 0x1fff",
    "xor [rdi + rdx * 8], rax",
    "add rbx, [rdi + rdx * 8]",
    "rol rbx, 7",
    "push rax",
    "adc r10, rbx",
    "pop r11",
    "dec rcx",
    "jnz 2b",
    "out 0x11, al",
    "ftvm_tiny_mix_sse:",
    "movabs r8, 6364136223846793005",
    "movabs r9, 1442695040888963407",
    "pxor xmm0, xmm0",
    "pxor xmm15, xmm15",
    "2: imul rax, r8",
    "add rax, r9",
    "movq xmm1, rax",
    "paddq xmm0, xmm1",
    "pshufd xmm2, xmm0, 0x1b",
    "pxor xmm15, xmm2",
    "mov rdx, rax",
    "shr rdx, 33",
    "and edx, 0x1fff",
    "xor [rdi + rdx * 8], rax",
    "add rbx, [rdi + rdx * 8]",
    "rol rbx, 7",
    "dec rcx",
    "jnz 2b",
    "movq r12, xmm0",
    "movq r13, xmm15",
    "out 0x11, al",
    "ftvm_tiny_scatter:",
    "movabs r8, 6364136223846793005",
    "movabs r9, 1442695040888963407",
    "2: imul rax, r8",
    "add rax, r9",
    "mov r10, rax",
    "shr r10, 30",
    "and r10, rdx",
    "and r10, -8",
    "add [rdi + r10], rcx",
    "dec rcx",
    "jnz 2b",
    "out 0x11, al",
    "ftvm_tiny_medley:",
    "movabs r8, 6364136223846793005",
    "movabs r9, 1442695040888963407",
    "2: imul r14, r8",
    "add r14, r9",
    "mov rcx, r14",
    "shr rcx, 58",
    "inc rcx",
    "3: imul r14, r8",
    "add r14, r9",
    "mov rdx, r14",
    "shr rdx, 33",
    "and edx, 0x1fff",
    "xor [r15 + rdx * 8], r14",
    "add rbx, [r15 + rdx * 8]",
    "dec rcx",
    "jnz 3b",
    "mov rdx, r14",
    "shr rdx, 40",
    "and edx, 7",
    "cmp edx, 1",
    "jb 4f",
    "je 5f",
    "cmp edx, 3",
    "jb 6f",
    "je 7f",
    "cmp edx, 5",
    "jb 8f",
    "je 9f",
    "mov eax, ebx", // 6 and 7: a 32-bit port
    "mov edx, 0x18",
    "out dx, eax",
    "jmp 2b",
    "4: out 0x10, al",
    "jmp 2b",
    "5: in al, 0x10",
    "add rbx, rax",
    "jmp 2b",
    "6: mov [rbp], ebx",
    "jmp 2b",
    "7: mov eax, [rbp]",
    "add rbx, rax",
    "jmp 2b",
    "8: ud2",
    "jmp 2b",
    "9: or dword ptr [rbp + 8], 1", // a read and a write
    "jmp 2b",
    "ftvm_tiny_medley_trap:",
    "add qword ptr [rsp], 2",
    "push rax",
    "push rcx",
    "mov ecx, 20",
    "2: mov rax, [0x20018]",
    "add rax, rcx",
    "rol rax, 3",
    "mov [0x20018], rax",
    "dec ecx",
    "jnz 2b",
    "inc qword ptr [0x20008]",
    "out 0x12, al",
    "test dword ptr [0x20008], 3",
    "jnz 3f",
    "sti",
    "hlt",
    "cli",
    "3: pop rcx",
    "pop rax",
    "iretq",
    "ftvm_tiny_window_sti:",
    "out 0x10, al",
    "sti",
    "mov [rdi], al",
    "ftvm_tiny_window_after_store:",
    "inc rbx",
    "nop",
    "cli",
    "out 0x11, al",
    "jmp ftvm_tiny_window_sti",
    "ftvm_tiny_window_popf:",
    "out 0x10, al",
    "push 0x202",
    "popfq",
    "ftvm_tiny_window_after_popf:",
    "inc rbx",
    "nop",
    "cli",
    "out 0x11, al",
    "jmp ftvm_tiny_window_popf",
    "ftvm_tiny_watch:",
    "mov eax, [rdi]",
    "out 0x10, al",
    "jmp ftvm_tiny_watch",
    "ftvm_tiny_cpuid:",
    "mov eax, ebx",
    "cpuid",
    "out 0x10, al",
    "ftvm_tiny_port_reads:",
    "in al, 0x10",
    "in ax, 0x10",
    "in eax, 0x10",
    "mov edx, 0x10",
    "mov ecx, 4",
    "rep insb",
    "out 0x11, eax",
    "ftvm_tiny_fragments:",
    "or dword ptr [rdi], 1",
    "movabs rax, 0x1122334455667788",
    "mov [rsi], rax",
    "mov rsi, rdx",
    "mov edx, 0x10",
    "mov ecx, 3",
    "rep outsb",
    "out 0x11, al",
    "ftvm_tiny_msr:",
    "rdmsr",
    "out 0x10, al",
    "wrmsr",
    "out 0x11, al",
    "ftvm_tiny_halt:",
    "sti",
    "2: hlt",
    "inc rbx",
    "out 0x10, al",
    "jmp 2b",
    "ftvm_tiny_triple_fault:",
    "sub rsp, 16",
    "mov qword ptr [rsp], 0",
    "mov qword ptr [rsp + 8], 0",
    "lidt [rsp]",
    "ud2",
    "ftvm_tiny_unemulable:",
    "fld dword ptr [rdi]",
    "ftvm_tiny_remap:",
    "mov eax, [rdi]",
    "out 0x10, al",
    "ud2",
    "2: add rbx, [rdi]",
    "dec rcx",
    "jnz 2b",
    "mov eax, [rdi]",
    "out 0x11, al",
    "ftvm_tiny_remap_trap:",
    "mov [rsi], rdx",
    "invlpg [rdi]",
    "add qword ptr [rsp], 2",
    "iretq",
    "ftvm_tiny_end:",
    ".popsection",
    user_stack = const USER_STACK,
);

unsafe extern "C" {
    static ftvm_tiny_begin: u8;
    static ftvm_tiny_end: u8;
    static ftvm_tiny_stubs: u8;
    static ftvm_tiny_start_kernel: u8;
    static ftvm_tiny_start_user: u8;
    static ftvm_tiny_interrupt: u8;
    static ftvm_tiny_skip: u8;
    static ftvm_tiny_loop: u8;
    static ftvm_tiny_spin: u8;
    static ftvm_tiny_mix: u8;
    static ftvm_tiny_mix_sse: u8;
    static ftvm_tiny_scatter: u8;
    static ftvm_tiny_medley: u8;
    static ftvm_tiny_medley_trap: u8;
    static ftvm_tiny_window_sti: u8;
    static ftvm_tiny_window_after_store: u8;
    static ftvm_tiny_window_popf: u8;
    static ftvm_tiny_window_after_popf: u8;
    static ftvm_tiny_watch: u8;
    static ftvm_tiny_cpuid: u8;
    static ftvm_tiny_port_reads: u8;
    static ftvm_tiny_fragments: u8;
    static ftvm_tiny_msr: u8;
    static ftvm_tiny_halt: u8;
    static ftvm_tiny_triple_fault: u8;
    static ftvm_tiny_unemulable: u8;
    static ftvm_tiny_remap: u8;
    static ftvm_tiny_remap_trap: u8;
}

impl TinyProgram {
    /// Guest address of the first instruction.
    #[must_use]
    #[inline(never)]
    pub fn address(self) -> u64 {
        guest_address(match self {
            TinyProgram::Loop => &raw const ftvm_tiny_loop,
            TinyProgram::Spin => &raw const ftvm_tiny_spin,
            TinyProgram::Mix => &raw const ftvm_tiny_mix,
            TinyProgram::MixSse => &raw const ftvm_tiny_mix_sse,
            TinyProgram::Scatter => &raw const ftvm_tiny_scatter,
            TinyProgram::Medley => &raw const ftvm_tiny_medley,
            TinyProgram::WindowSti => &raw const ftvm_tiny_window_sti,
            TinyProgram::WindowPopf => &raw const ftvm_tiny_window_popf,
            TinyProgram::Watch => &raw const ftvm_tiny_watch,
            TinyProgram::Cpuid => &raw const ftvm_tiny_cpuid,
            TinyProgram::PortReads => &raw const ftvm_tiny_port_reads,
            TinyProgram::Fragments => &raw const ftvm_tiny_fragments,
            TinyProgram::Msr => &raw const ftvm_tiny_msr,
            TinyProgram::Halt => &raw const ftvm_tiny_halt,
            TinyProgram::TripleFault => &raw const ftvm_tiny_triple_fault,
            TinyProgram::Unemulable => &raw const ftvm_tiny_unemulable,
            TinyProgram::Remap => &raw const ftvm_tiny_remap,
        })
    }
}

impl Label {
    /// Its guest address.
    #[must_use]
    #[inline(never)]
    pub fn address(self) -> u64 {
        guest_address(match self {
            Label::StartKernel => &raw const ftvm_tiny_start_kernel,
            Label::StartUser => &raw const ftvm_tiny_start_user,
            Label::Stubs => &raw const ftvm_tiny_stubs,
            Label::Interrupt => &raw const ftvm_tiny_interrupt,
            Label::MedleyTrap => &raw const ftvm_tiny_medley_trap,
            Label::RemapTrap => &raw const ftvm_tiny_remap_trap,
            Label::SkipTwoBytes => &raw const ftvm_tiny_skip,
            Label::WindowAfterStore => &raw const ftvm_tiny_window_after_store,
            Label::WindowAfterPopf => &raw const ftvm_tiny_window_after_popf,
        })
    }
}

#[inline(never)]
fn guest_address(symbol: *const u8) -> u64 {
    CODE + (symbol.addr() - (&raw const ftvm_tiny_begin).addr()) as u64
}

/// The code, to be loaded at [`CODE`].
///
/// Never inlined, like all that names its symbols: an object file with nothing but `global_asm!` in it is left out of a
/// program that links this library.
#[must_use]
#[inline(never)]
pub fn code() -> &'static [u8] {
    let begin = &raw const ftvm_tiny_begin;
    let len = (&raw const ftvm_tiny_end).addr() - begin.addr();
    // SAFETY: both symbols bound one piece of this program's read-only data.
    unsafe { std::slice::from_raw_parts(begin, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_where_the_labels_say() {
        assert!(code().len() < 0x8000, "stacks begin behind the code");
        let at = |address: u64| &code()[usize::try_from(address - CODE).unwrap()..];
        assert_eq!(at(Label::Stubs.address() + 8 * 47)[..2], [0x6a, 47]);
        assert_eq!(
            at(TinyProgram::WindowSti.address())[..5],
            [0xe6, 0x10, 0xfb, 0x88, 0x07]
        );
        assert_eq!(Label::WindowAfterStore.address(), TinyProgram::WindowSti.address() + 5);
        assert_eq!(
            at(Label::Interrupt.address())[1..9],
            [0x48, 0xff, 0x04, 0x25, 0x10, 0x00, 0x02, 0x00]
        );
        assert_eq!(at(TinyProgram::Loop.address())[..5], [0x48, 0xff, 0xc9, 0x75, 0xfb]);
    }
}
