//! The second way in: PVH direct boot (Xen, `docs/misc/pvh.pandoc`), by which QEMU's `-kernel` starts a guest.
//!
//! So that the same image runs in another VMM, to be compared with. On QEMU's `pc` machine SeaBIOS puts the PM timer and the
//! power-off port where the boot contract has them, and `-device isa-debug-exit,iobase=0xf4,iosize=1` is the exit port. What
//! the contract promises beyond that is made here: long mode, page tables, GDT, boot information. Such a run is not recorded:
//! its seed is 0.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use guest_abi::{
    BootInfo, CMDLINE_MAX, CR0, CR4, EFER, GDT, IMAGE_BASE, KERNEL_CODE, KERNEL_DATA, PTE_LEAF_2M, PTE_TABLE, STACK_TOP,
};

use crate::segments::Table;
use crate::start;

/// EFER.LMA, which the CPU sets by itself.
const LMA: u64 = 0x400;
/// First four bytes of the start information (Xen, `public/arch-x86/hvm/start_info.h`).
const START_MAGIC: u32 = 0x336e_c578;
/// Type of a map entry that is RAM.
const RAM: u32 = 1;
/// More entries than any machine's map has.
const MAX_ENTRIES: usize = 128;

// The tables are constants, A and D preset. The 32-bit code stands beside them, and not among the code that is 64-bit.
global_asm!(
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18", // XEN_ELFNOTE_PHYS32_ENTRY
    ".asciz \"Xen\"",
    ".quad guest_rt_pvh",
    ".section .rodata.pvh, \"a\"",
    ".balign 4096",
    "guest_rt_pml4:",
    ".quad guest_rt_pdpt + {table}",
    ".fill 511, 8, 0",
    "guest_rt_pdpt:",
    ".set guest_rt_gib, 0",
    ".rept 4",
    ".quad guest_rt_directories + guest_rt_gib * 4096 + {table}",
    ".set guest_rt_gib, guest_rt_gib + 1",
    ".endr",
    ".fill 508, 8, 0",
    "guest_rt_directories:",
    ".set guest_rt_page, 0",
    ".rept 2048",
    ".quad guest_rt_page * 0x200000 + {leaf}",
    ".set guest_rt_page, guest_rt_page + 1",
    ".endr",
    "guest_rt_gdt_pointer:",
    ".short {gdt_limit}",
    ".long {gdt}",
    ".code32",
    "guest_rt_pvh:", // 32-bit, paging off, EBX = start information
    "cli",
    "lgdt [guest_rt_gdt_pointer]",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, offset guest_rt_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "xor edx, edx",
    "mov eax, {efer}",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    ".byte 0xea", // jmp far
    ".long guest_rt_pvh_64",
    ".short {code}",
    ".code64",
    ".section .text.pvh, \"ax\"",
    "guest_rt_pvh_64:",
    "mov eax, {data}",
    "mov ss, eax",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov esp, {stack}",
    "xor ebp, ebp",
    "cld",
    "mov edi, ebx",
    "call {run}",
    "ud2",
    ".text",
    table = const PTE_TABLE,
    leaf = const PTE_LEAF_2M,
    gdt = sym BOOT_GDT,
    gdt_limit = const size_of::<[u64; GDT.len()]>() - 1,
    cr4 = const CR4,
    efer = const EFER & !LMA,
    cr0 = const CR0,
    code = const KERNEL_CODE,
    data = const KERNEL_DATA,
    stack = const STACK_TOP,
    run = sym run,
);

static BOOT_GDT: [u64; GDT.len()] = GDT;

/// The start of `struct hvm_start_info`, version 1.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    map: u64,
    map_entries: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

static INFO: Table<BootInfo> = Table(UnsafeCell::new(BootInfo::new(0, 0, 0)));

extern "C" fn run(info: &'static StartInfo) -> ! {
    let memory = if info.magic == START_MAGIC && info.version >= 1 {
        memory(info)
    } else {
        0
    };
    let (cmdline_addr, cmdline_len) = cmdline(info);
    let boot = BootInfo {
        cmdline_addr,
        cmdline_len,
        ..BootInfo::new(memory, 0, 0)
    };
    // SAFETY: this is the first code that runs, once, and nothing else refers to it.
    let at = unsafe { &mut *INFO.0.get() };
    *at = boot;
    start::run(at)
}

/// End of the RAM that the image is in; 0 if the map does not say.
fn memory(info: &StartInfo) -> u64 {
    let Ok(entries) = usize::try_from(info.map_entries) else {
        return 0;
    };
    // SAFETY: the loader put a table of that many entries there (PVH), and the first 4 GiB are mapped one to one.
    let map = unsafe { core::slice::from_raw_parts(info.map as *const MapEntry, entries.min(MAX_ENTRIES)) };
    let ram = map.iter().filter(|entry| entry.kind == RAM);
    ram.map(|entry| (entry.address, entry.address.saturating_add(entry.size)))
        .find_map(|(begin, end)| (begin..end).contains(&IMAGE_BASE).then_some(end))
        .unwrap_or(0)
}

/// Address and length of the command line.
fn cmdline(info: &StartInfo) -> (u64, u64) {
    let (Ok(most), true) = (usize::try_from(CMDLINE_MAX), info.cmdline != 0) else {
        return (0, 0);
    };
    // SAFETY: the loader put a string there (PVH), and what follows it is mapped too.
    let text = unsafe { core::slice::from_raw_parts(info.cmdline as *const u8, most) };
    let len = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    (info.cmdline, len as u64)
}
