//! The texts that users see, word for word: a change here is a change of what they read.

use std::io;

use ftvm_devices::{ApplyError, ConfigError, RestoreError};
use ftvm_hypervisor::Exit;
use ftvm_schema::entry::{Digest, ExitSeq, OutputSeq, Position};
use ftvm_schema::record::CodecError;
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::audit::{AuditError, CpioError};
use crate::boot::linux::cmdline::Contradiction;
use crate::boot::linux::decompress::{Compression, DecompressError};
use crate::boot::linux::rewrite::RewriteError;
use crate::boot::linux::vmlinux::LayoutError;
use crate::boot::linux::{HeaderError, LinuxError, RoomError};
use crate::boot::{BootError, ElfError, ImageRole, ReadError};
use crate::config::MachineConfigError;
use crate::machine::pages::PagesError;
use crate::machine::{BootRecordError, HistoryError, HistoryPoint, MachineError, StateError};

fn at(exit: u64, k: u32) -> Position {
    let exit = ExitSeq(exit);
    Position { exit, k }
}

fn no_ram() -> GuestMemoryError {
    GuestMemoryError::InvalidGuestAddress(GuestAddress(0x1000))
}

#[test]
fn why_a_machine_cannot_go_on_reads_as_it_always_did() {
    let source = ApplyError::NoSuchRequest { disk: 1, id: 7 };
    let point = |k, digest| HistoryPoint {
        at: at(4, k),
        digest: Digest(digest),
        outputs: OutputSeq(2),
    };
    let (made, stands) = (Box::new(point(0, 0xab)), Box::new(point(1, 0xcd)));
    let exit = Exit::PortWrite {
        port: 0x80,
        size: 1,
        count: 1,
    };
    let texts = [
        MachineError::OutInParts { exit }.to_string(),
        MachineError::Apply { at: at(5, 2), source }.to_string(),
        MachineError::from(HistoryError::ClockBackwards { floor: 9, found: 8 }).to_string(),
        HistoryError::CheckpointElsewhere { made, stands }.to_string(),
        HistoryError::CheckpointAtExit { exit: Exit::Hlt }.to_string(),
        MachineError::from(MachineConfigError::Version { found: 2 }).to_string(),
        MachineConfigError::Memory { found: 1 }.to_string(),
        MachineConfigError::Cmdline { found: 2048 }.to_string(),
        MachineError::from(ConfigError::DiskSize { disk: 0, sectors: 0 }).to_string(),
        MachineError::Oversized { bytes: 7 }.to_string(),
    ];
    let expected = [
        "finishing a one-byte OUT gave another exit, PortWrite { port: 80, size: 1, count: 1 }",
        "input at exit 5.2: request 7 of disk 1 is not outstanding, so it cannot complete",
        "the clock would run backwards: at least 9 ns expected, 8 found",
        "a checkpoint for exit 4.0 (digest 00000000000000ab, 2 outputs) meets a machine at exit 4.1 (digest \
         00000000000000cd, 2 outputs)",
        "a checkpoint stands where the guest makes a further exit, Hlt",
        "machine configuration version 3 expected, 2 found",
        "memory must be a multiple of 2 MiB from 16 MiB to 3072 MiB, found 1 bytes",
        "the kernel command line has 2048 bytes, at most 2047 fit",
        "disk 0: 0 sectors of 512 bytes; there must be 1 to 18014398509481984",
        "7 bytes of RAM do not fit",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn what_is_wrong_with_a_record_reads_as_it_always_did() {
    let codec = || CodecError::Trailing {
        type_name: "record",
        used: 3,
        trailing: 1,
    };
    let (pages, expected, found) = (2, 8192, 1);
    let texts = [
        StateError::from(codec()),
        StateError::Version { found: 2 },
        PagesError::NoSuchPage { number: 9, count: 4 }.into(),
        PagesError::Order { before: 3, after: 3 }.into(),
        PagesError::Length { pages, expected, found }.into(),
        StateError::ram(7, no_ram()),
        RestoreError::OtherPlatform.into(),
        BootRecordError::Missing.into(),
        BootRecordError::from(codec()).into(),
        BootRecordError::Version { found: 2 }.into(),
        BootRecordError::from(PagesError::NoSuchPage { number: 9, count: 4 }).into(),
    ]
    .map(|error| MachineError::from(error).to_string());
    let expected = [
        "state record: expected a record of 3 bytes, found 1 more after it",
        "state record: version 3 expected, 2 found",
        "state record: page 9 is named, but the guest has 4 pages",
        "state record: page 3 is named behind page 3; they must ascend",
        "state record: 2 pages come with 1 bytes, 8192 are needed",
        "state record: page 7: Guest memory error: invalid guest address 4096",
        "state record: device state belongs to a machine with other devices; start both sides with the same configuration",
        "state record: this side has no boot record to reset to",
        "state record: boot record: expected a record of 3 bytes, found 1 more after it",
        "state record: boot record: version 3 expected, 2 found",
        "state record: boot record: page 9 is named, but the guest has 4 pages",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_a_guest_cannot_be_booted_reads_as_it_always_did() {
    let name = || "k".to_owned();
    let role = ImageRole::Initrd;
    let read = |source| BootError::Read {
        role,
        path: name(),
        source,
    };
    let (field, found) = ("machine", 3);
    let header = ElfError::Header {
        field,
        expected: 62,
        found,
    };
    let (option, needed) = ("kaslr".to_owned(), "nokaslr".to_owned());
    let texts = [
        BootError::UnknownGuest {
            name: name(),
            known: vec!["kv", "pong"],
        }
        .to_string(),
        read(io::Error::from_raw_os_error(2).into()).to_string(),
        read(ReadError::NotAFile).to_string(),
        read(ReadError::Empty).to_string(),
        read(ReadError::TooBig).to_string(),
        BootError::Image {
            name: name(),
            source: header,
        }
        .to_string(),
        BootError::Linux {
            name: name(),
            source: RoomError::Initrd { size: 5 }.into(),
        }
        .to_string(),
        BootError::Different {
            role,
            name: name(),
            expected: "aa".to_owned(),
            found: "bb".to_owned(),
        }
        .to_string(),
        BootError::Kind {
            name: name(),
            expected: "a Linux guest with initrd".to_owned(),
            found: "a BareMetal guest without initrd".to_owned(),
        }
        .to_string(),
        BootError::NoInitrd { name: name() }.to_string(),
        BootError::Memory {
            name: name(),
            memory: 16 << 20,
            source: no_ram(),
        }
        .to_string(),
        Contradiction { option, needed }.to_string(),
    ];
    let expected = [
        "no built-in guest is called 'k'; there are: kv, pong",
        "initrd image k: No such file or directory (os error 2)",
        "initrd image k: a regular file is expected",
        "initrd image k: the file is empty",
        "initrd image k: more than the 536870912 bytes that are read",
        "kernel image k: no bootable 64-bit ELF: the ELF header's machine must be 62, found 3",
        "kernel image k: no room for an initrd of 5 bytes above the kernel",
        "initrd image k has SHA-256 bb, but aa was recorded: give the same image with --initrd",
        "kernel image k: a Linux guest with initrd was configured, found a BareMetal guest without initrd",
        "kernel image k is no Linux kernel, which an initrd is for: leave out --initrd",
        "kernel image k does not fit 16 MiB of memory: Guest memory error: invalid guest address 4096",
        "--cmdline: 'kaslr' contradicts 'nokaslr', which a guest needs to be replayable: leave it out",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_a_linux_kernel_is_refused_reads_as_it_always_did() {
    let (phys, size, memory) = (0x10_0000, 176, 175);
    let name = ".text".to_owned();
    let magic = "00".to_owned();
    let (first, second) = (0x10_0000, 0x10_0fff);
    let (needed, had) = (65, 64);
    let texts = [
        LinuxError::from(HeaderError::Short { len: 3 }),
        HeaderError::Version { version: 0x207 }.into(),
        HeaderError::Payload {
            begin: 5,
            length: 6,
            len: 7,
        }
        .into(),
        HeaderError::Compression { magic }.into(),
        LayoutError::Entry { entry: 16 }.into(),
        LayoutError::SegmentCut { phys }.into(),
        LayoutError::SegmentSize { phys, size, memory }.into(),
        LayoutError::Overlap { first, second }.into(),
        LayoutError::Empty.into(),
        LayoutError::SectionCut { name }.into(),
        RoomError::BelowOneMib { begin: 0x1000 }.into(),
        RoomError::Memory { needed, memory: had }.into(),
        RoomError::Write(no_ram()).into(),
        RewriteError::NoSymbols.into(),
    ]
    .map(|error| error.to_string());
    let expected = [
        "not a bzImage that can be booted: the image ends after 3 bytes, inside its header",
        "not a bzImage that can be booted: boot protocol 0x0208 or later is needed, found 0x0207",
        "not a bzImage that can be booted: its payload of 6 bytes at 5 reaches beyond the image's 7 bytes",
        "not a bzImage that can be booted: its payload begins with 00, which is none of gzip, xz, lzma, bzip2, LZ4, lzop and \
         zstd",
        "not a vmlinux that can be booted: its entry point 0x10 is in no segment",
        "not a vmlinux that can be booted: the segment at 0x100000 reaches beyond the file",
        "not a vmlinux that can be booted: the segment at 0x100000 has 176 bytes in the file and 175 in memory",
        "not a vmlinux that can be booted: the segments at 0x100000 and 0x100fff overlap",
        "not a vmlinux that can be booted: it has no segment to load",
        "not a vmlinux that can be booted: section .text reaches beyond the file",
        "its first segment lies at 0x1000, below 1 MiB",
        "kernel and initrd reach up to 65 MiB, but the guest has 64 MiB: give it more with --memory",
        "Guest memory error: invalid guest address 4096",
        "it has no symbol table that can be read; a kernel with CONFIG_KALLSYMS and section headers is needed",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn why_an_image_cannot_be_audited_reads_as_it_always_did() {
    let initrd = |source| AuditError::Initrd {
        path: "i".to_owned(),
        source,
    };
    let format = Compression::Gzip;
    let damaged = DecompressError::Damaged {
        format,
        source: "corrupt deflate stream".into(),
    };
    let texts = [
        initrd(CpioError::Damaged { at: 12 }),
        initrd(CpioError::Unknown { left: 7 }),
        initrd(CpioError::OtherContent { format }),
        initrd(damaged.into()),
        initrd(DecompressError::TooBig { format, limit: 2 << 30 }.into()),
        AuditError::TooBig {
            path: "i".to_owned(),
            size: 9,
        },
    ]
    .map(|error| error.to_string());
    let expected = [
        "i: the cpio archive is damaged at byte 12",
        "i: 7 bytes before its end, the initrd has neither a cpio archive nor a known compression",
        "i: the Gzip stream in the initrd holds something else than cpio archives",
        "i: the Gzip stream is damaged: corrupt deflate stream",
        "i: the Gzip stream expands to more than 2048 MiB",
        "i has 9 bytes, at most 8589934592 are read",
    ];
    assert_eq!(texts, expected);
}
