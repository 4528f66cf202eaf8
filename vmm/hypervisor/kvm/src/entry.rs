//! Entry states and registers in KVM's form.

use ftvm_schema::entry::RegisterFile;
use ftvm_schema::entry::register::{RFLAGS, RIP, RSP};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use ftvm_hypervisor::UserFrame;
use ftvm_hypervisor::entry::{DescriptorTable, EntryState};

/// Selectors as Linux has them: kernel code and kernel data.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Selector of 64-bit user code.
const USER_CODE_64: u16 = 0x33;
/// RFLAGS.RF.
const RESUME_FLAG: u64 = 1 << 16;
/// A task state segment without I/O bitmap ends here (SDM volume 3, 8.7).
const TSS_LIMIT: u32 = 0x67;

/// IA32_APIC_BASE: global enable. While it is set, KVM shows CPUID.APIC whatever the table says.
const APIC_ENABLE: u64 = 1 << 11;

/// Changes what decides about mode and segments, and disables the local APIC, which guests do not have.
pub(crate) fn apply(entry: &EntryState, sregs: &mut kvm_sregs) {
    let null = kvm_segment {
        unusable: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    sregs.ss = data;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ldt) = (null, null, null, null, null);
    sregs.tr = kvm_segment {
        limit: TSS_LIMIT,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = table(entry.gdt);
    sregs.idt = table(entry.idt);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
    sregs.apic_base &= !APIC_ENABLE;
    (sregs.cr2, sregs.cr8, sregs.interrupt_bitmap) = (0, 0, [0; 4]);
}

/// Loads the flat user segments of `frame`, and with them CPL 3. 64-bit code has selector 0x33 in every Linux layout;
/// any other is the 32-bit one.
pub(super) fn enter_user_mode(sregs: &mut kvm_sregs, frame: &UserFrame) {
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let long = u8::from(frame.cs == USER_CODE_64);
    sregs.cs = kvm_segment {
        selector: frame.cs,
        type_: 11,
        l: long,
        db: 1 - long,
        ..flat
    };
    sregs.ss = kvm_segment {
        selector: frame.ss,
        type_: 3,
        db: 1,
        ..flat
    };
}

/// The registers after IRET has taken `frame`. RF is spent: the faulting instruction is behind us.
pub(super) fn with_frame(registers: &RegisterFile, frame: &UserFrame) -> RegisterFile {
    let mut registers = *registers;
    registers[RIP] = frame.rip;
    registers[RSP] = frame.rsp;
    registers[RFLAGS] = frame.rflags & !RESUME_FLAG;
    registers
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

/// KVM's registers in the order of a [`RegisterFile`].
pub(super) fn register_file(regs: &kvm_regs) -> RegisterFile {
    [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rip,
        regs.rflags,
    ]
}

/// The way back.
pub(super) fn kvm_registers(file: &RegisterFile) -> kvm_regs {
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    ] = *file;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_order_is_the_schemas() {
        let file: RegisterFile = std::array::from_fn(|index| index as u64 + 100);
        let regs = kvm_registers(&file);
        let by_name = [
            regs.rax,
            regs.rbx,
            regs.rsi,
            regs.rsp,
            regs.r8,
            regs.r15,
            regs.rip,
            regs.rflags,
        ];
        let index = |name| {
            ftvm_schema::entry::REGISTER_NAMES
                .iter()
                .position(|have| *have == name)
                .unwrap()
        };
        let expected = ["rax", "rbx", "rsi", "rsp", "r8", "r15", "rip", "rflags"].map(|name| file[index(name)]);
        assert_eq!(by_name, expected);
        assert_eq!(register_file(&regs), file);
    }

    #[test]
    fn entry_is_flat_64_bit_mode_without_an_apic() {
        let entry = EntryState::long_mode(0x20_0000, 0x8000, 0x1000, DescriptorTable { base: 0x500, limit: 31 }, 7);
        let mut sregs = kvm_sregs {
            apic_base: 0xfee0_0900,
            cr8: 9,
            ..kvm_sregs::default()
        };
        apply(&entry, &mut sregs);
        assert_eq!((sregs.apic_base, sregs.cr8), (0xfee0_0100, 0));
        assert_eq!(
            (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.type_),
            (0x10, 1, 0, 11)
        );
        assert_eq!(
            (sregs.ss.selector, sregs.ss.type_, sregs.ds.unusable, sregs.gs.selector),
            (0x18, 3, 1, 0)
        );
        assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.tr.s), (11, 0x67, 0));
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 31));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8005_0033, 0x620, 0xd01));
    }
}
