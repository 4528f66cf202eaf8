//! Writes the inputs that each target begins with into `FOLDER/TARGET`: small ones that reach behind the first checks.
//! They are made by the code that writes what the targets read, so that they follow it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ftvm_fuzz::platform;
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::scripted::{Script, ScriptedCpu};
use ftvm_machine::config::{GuestKind, MachineConfig};
use ftvm_machine::machine::{Machine, allocate_memory};
use ftvm_schema::entry::{Digest, EndReason, OutputSeq};
use ftvm_schema::record;
// The instrumentation that everything here is built with calls into the fuzzer.
use libfuzzer_sys as _;

/// Where kernels are linked to.
const TEXT: u64 = 0xffff_ffff_8100_0000;

type Seeds = Vec<(String, Vec<u8>)>;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("usage: seeds FOLDER");
    for (target, seeds) in all() {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

fn all() -> Vec<(&'static str, Seeds)> {
    let plain = |seeds: &[(&str, &[u8])]| -> Seeds {
        seeds
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect()
    };
    vec![
        ("frames", frames()),
        (
            "heartbeat",
            golden()
                .filter(|(name, ..)| name == "heartbeat")
                .map(|(name, _, payload)| (name, [&[0; 9], &payload[..]].concat()))
                .collect(),
        ),
        ("log_file", log_files()),
        ("chunks", plain(&[("two-records", &[8, 1, 7, 24, 3, 1, 2, 3])])),
        ("state_record", state_records()),
        (
            "machine_config",
            vec![(
                "all-devices".into(),
                record::to_bytes(&config()).expect("a configuration has bytes"),
            )],
        ),
        ("virtio_chains", virtio_chains()),
        (
            "pci",
            plain(&[(
                "probe",
                &[
                    0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 1, 1, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 1, 0x10,
                ],
            )]),
        ),
        (
            "ports",
            plain(&[(
                "timer",
                &[
                    0, 5, 1, 0, 0x34, 0, 2, 1, 0, 0x10, 0, 2, 1, 0, 0, 11, 0, 0, 1, 0, 0, 2, 0, 0, 0,
                ],
            )]),
        ),
        ("elf", vec![("guest".into(), elf(&[(0x20_0000, b"\xf4")], &[]))]),
        ("linux_image", linux_images()),
        ("kallsyms", vec![("table".into(), kernel_image())]),
        ("initrd", initrds()),
        (
            "audit_elf",
            vec![("program".into(), elf(&[], &[(".text", true, b"\x0f\x31\x0f\xa2\xc3")]))],
        ),
        (
            "decompress",
            compressed(b"what is compressed, and compressed again, and again, and again"),
        ),
        ("generation_record", plain(&[("running", b"ftvm-generation 1\ngeneration 3\nowner 00000000000000000000000000000abc\nstate running\nhost alpha\npid 7\ntime 1795435200 x\n")])),
        ("disk_mark", plain(&[("current", b"ftvm-mark 1\nheld current\ngeneration 3\nowner 00000000000000000000000000000abc\nhost alpha\ntime 7\n")])),
        ("lun_cell", plain(&[("register", b"FTVMSLOT\x05\0\x07\0guest")])),
        ("etcd_answer", plain(&[
            ("value", br#"{"header":{"cluster_id":"1","revision":"5"},"kvs":[{"key":"Zm9v","mod_revision":"4","value":"YmFy"}]}"#),
            ("refusal", br#"{"error":"etcdserver: no leader","code":14}"#),
        ])),
        ("scsi_answer", plain(&[
            ("capacity", &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0]),
            ("keys", &[0, 0, 0, 1, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
            ("sense", &[2, 0, 0, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0]),
        ])),
        ("control_request", plain(&[
            ("status", br#"{"request":"status"}"#),
            ("power-off", br#"{"request":"power-off"}"#),
        ])),
        (
            "options",
            plain(&[
                ("disk", b"path=/a/b,private=on,mark=/c"),
                ("net", b"dgram=/x,remote=/y,mac=52:54:00:12:34:56"),
                ("memory", b"size=256M"),
                ("console", b"file=/a,sync"),
                ("etcd", b"etcd:http://10.0.0.1:2379,http://[::1]:2379"),
                ("scsi", b"scsi:/dev/sda"),
                ("cmdline", b"quiet clocksource=tsc module_blacklist=a,b \"x y\""),
            ]),
        ),
    ]
}

/// The lines of the codec's golden bytes: name, kind and payload of a frame.
fn golden() -> impl Iterator<Item = (String, u8, Vec<u8>)> {
    let lines = include_str!("../../../../logging-channel/src/codec/golden.txt").lines();
    lines.filter_map(|line| {
        let (name, hex) = line.split_once(": ")?;
        let digit = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes = (0..hex.len()).step_by(2).map(digit).collect::<Option<Vec<u8>>>()?;
        Some((name.replace(' ', "-"), *bytes.get(3)?, bytes.get(24..)?.to_vec()))
    })
}

/// As the targets `frames` and `log_file` take their tapes apart.
fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len())
        .expect("golden frames are short")
        .to_le_bytes();
    [&[kind][..], &len, payload].concat()
}

fn frames() -> Seeds {
    golden()
        .map(|(name, kind, payload)| (name, [&[200][..], &framed(kind, &payload)].concat()))
        .collect()
}

fn log_files() -> Seeds {
    use logging_channel::file::{FileHeader, LogWriter, RecordingEnd, Verify};
    let header = FileHeader {
        version: logging_channel::message::PROTOCOL_VERSION,
        created_unix_ns: 1,
        verify: Verify::Marks,
        program: "seeds".to_owned(),
        args: String::new(),
        config: vec![1, 2, 3],
        state: Some(vec![4; 9]),
    };
    let path = std::env::temp_dir().join(format!("ftvm-fuzz-seed-{}.ftlog", std::process::id()));
    let writer = LogWriter::create(&path, &header, logging_channel::file::Existing::Replace).expect("a file");
    let ending = RecordingEnd {
        exits: 0,
        outputs: OutputSeq::default(),
        digest: Digest::default(),
        memory_hash: None,
        reason: EndReason::Limit,
        text: String::new(),
    };
    writer.finish(ending).expect("a file");
    let bytes = fs::read(&path).expect("the file was written");
    let _ = fs::remove_file(path);
    // The same for the target that seals frames itself: their kinds by place in its list.
    let mut tape = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some(head) = rest.get(..24) {
        let len = usize::from(u16::from_le_bytes([head[5], head[6]]));
        let kind = match head[3] {
            0x21 => 0,
            0x05 => 1,
            0x07 => 2,
            _ => 4,
        };
        tape.extend(framed(kind, &rest[24..24 + len]));
        if kind == 1 {
            for (_, _, payload) in golden().filter(|(name, kind, _)| *kind == 7 && name.starts_with("entry")) {
                tape.extend(framed(2, &payload));
            }
        }
        rest = &rest[24 + len..];
    }
    vec![("written".into(), bytes), ("tape".into(), tape)]
}

fn config() -> MachineConfig {
    let mut config = ftvm_machine::testing::config(GuestKind::BareMetal);
    config.platform = platform();
    config
}

fn state_records() -> Seeds {
    let config = config();
    let memory = allocate_memory(config.memory).expect("RAM for a test");
    let cpu = ScriptedCpu::new(&memory, Arc::new(Script::random(1, 40)), DeliveryMode::None);
    let mut machine = Machine::new(&config, memory, cpu).expect("a valid configuration");
    let checkpoint = machine.checkpoint().expect("a new machine stands at an exit").0;
    vec![
        ("fresh".into(), machine.save().expect("a new machine can be saved")),
        ("checkpoint".into(), checkpoint),
    ]
}

fn virtio_chains() -> Seeds {
    // A read of a sector: head, data and status of a request to the first disk, offered and notified; then its end.
    let descriptor = |index: u8, address: u32, len: u16, flags: u8, next: u8| {
        let mut step = vec![0, 2, 0, 0, index, 1];
        step.extend(address.to_le_bytes());
        step.push(1);
        step.extend(len.to_le_bytes());
        step.extend([flags, next]);
        step
    };
    let mut read = descriptor(0, 0x1000, 16, 1, 1);
    read.extend(descriptor(1, 0x2000, 512, 3, 2));
    read.extend(descriptor(2, 0x3000, 1, 2, 0));
    read.extend([0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    read.extend([10, 3, 0, 0, 0xAA]);
    vec![("disk-read".into(), read)]
}

/// A 64-bit ELF executable with segments at physical addresses, and sections.
fn elf(segments: &[(u64, &[u8])], sections: &[(&str, bool, &[u8])]) -> Vec<u8> {
    let programs = 64;
    let table = programs + 56 * segments.len();
    // The first section is none, the last one has the names.
    let mut data = table
        + if sections.is_empty() {
            0
        } else {
            64 * (sections.len() + 2)
        };
    let mut body = Vec::new();
    let mut headers = Vec::new();
    for (address, bytes) in segments {
        headers.extend(1u32.to_le_bytes());
        headers.extend(5u32.to_le_bytes());
        for word in [
            data as u64,
            *address,
            *address,
            bytes.len() as u64,
            bytes.len() as u64,
            8,
        ] {
            headers.extend(word.to_le_bytes());
        }
        body.extend(*bytes);
        data += bytes.len();
    }
    if !sections.is_empty() {
        headers.extend([0; 64]);
        let mut names = vec![0];
        let mut put = |name: usize, kind: u32, flags: u64, address: u64, bytes: &[u8]| {
            headers.extend(u32::try_from(name).expect("few names").to_le_bytes());
            headers.extend(kind.to_le_bytes());
            for word in [flags, address, data as u64, bytes.len() as u64, 0, 8, 0] {
                headers.extend(word.to_le_bytes());
            }
            headers.resize(headers.len().next_multiple_of(8), 0);
            body.extend(bytes);
            data += bytes.len();
        };
        for (index, (name, code, bytes)) in sections.iter().enumerate() {
            let flags = if *code { 6 } else { 2 };
            put(names.len(), 1, flags, TEXT + 0x1000 * index as u64, bytes);
            names.extend(name.bytes().chain([0]));
        }
        let at = names.len();
        names.extend(b".shstrtab\0");
        put(at, 3, 0, 0, &names);
    }
    let count = if sections.is_empty() { 0 } else { sections.len() + 2 };
    let half = |number: usize| u16::try_from(number).expect("a small file").to_le_bytes();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([half(2), half(62)].concat());
    file.extend(1u32.to_le_bytes());
    let entry = segments.first().map_or(0, |(address, _)| *address);
    for word in [entry, programs as u64, if count > 0 { table as u64 } else { 0 }] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    let last = count.saturating_sub(1);
    file.extend(
        [
            half(64),
            half(56),
            half(segments.len()),
            half(64),
            half(count),
            half(last),
        ]
        .concat(),
    );
    [file, headers, body].concat()
}

fn linux_images() -> Seeds {
    let vmlinux = elf(
        &[(0x100_0000, b"\xf4Linux version 6.1.0\n")],
        &[
            (".text", true, b"\x0f\x31\xc3"),
            (".init.text", true, b"\xc3"),
            ("__ksymtab", false, b"Linux version "),
            (".rodata", false, &kallsyms()),
        ],
    );
    let bzimage = |payload: &[u8]| {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x201] = 0x6a;
        image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        let len = u32::try_from(payload.len()).expect("a small payload");
        image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        image.extend(payload);
        image
    };
    let mut seeds = vec![("bzimage-plain".to_owned(), bzimage(&vmlinux))];
    seeds.push(("bzimage-gzip".to_owned(), bzimage(&gzip(&vmlinux))));
    seeds.push(("vmlinux".to_owned(), vmlinux));
    seeds
}

/// Names in the smallest table that is taken for one: a marker's worth.
const NAMES: usize = 256;

/// A table as tapes/kallsyms.c writes it, in the order before Linux 6.4; all symbols are at the kernel's base.
fn kallsyms() -> Vec<u8> {
    let align = |table: &mut Vec<u8>| table.resize(table.len().next_multiple_of(8), 0);
    let mut table = vec![0; 4 * NAMES];
    table.extend(TEXT.to_le_bytes());
    table.extend((NAMES as u64).to_le_bytes());
    table.extend(b"\x07T_stext");
    for _ in 1..NAMES {
        table.extend(b"\x02Tx");
    }
    align(&mut table);
    table.extend([0; 8]);
    let (mut index, mut tokens) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        index.extend(u16::try_from(tokens.len()).expect("256 short tokens").to_le_bytes());
        tokens.extend([if token.is_ascii_graphic() { token } else { b'_' }, 0]);
    }
    table.extend(tokens);
    align(&mut table);
    table.extend(index);
    table
}

/// As the target `kallsyms` takes an image apart: where the code ends, the code, the table.
fn kernel_image() -> Vec<u8> {
    let mut image = vec![64, 0];
    image.extend(b"\x0f\x31\xc3");
    image.resize(64, 0x90);
    image.extend(kallsyms());
    image
}

fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files.iter().chain([&("TRAILER!!!", &b""[..])]) {
        archive.extend(b"070701");
        for number in [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            archive.extend(format!("{number:08x}").bytes());
        }
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn initrds() -> Seeds {
    let module = elf(
        &[],
        &[(".text", true, b"\x0f\x31\xc3"), (".modinfo", false, b"name=clock\0")],
    );
    let archive = cpio(&[("kernel/clock.ko", &module), ("init", b"#!/bin/sh\n")]);
    let both = [archive.clone(), gzip(&archive)].concat();
    vec![("plain".into(), archive), ("plain-and-gzip".into(), both)]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("memory takes everything")
}

/// `hello hello hello hello` by programs whose formats have no compressor among the dependencies.
const STREAMS: [(&str, &str); 4] = [
    (
        "xz",
        "fd377a585a000004e6d6b446020021011c00000010cf58cce00016000b5d00341949ee8de9560ab5e00000008943dbea0334e4d0000127178982\
         90791fb6f37d010000000004595a",
    ),
    ("lzma", "5d00008000ffffffffffffffff00341949ee8de9560bd5c5a3ffff78a40000"),
    (
        "bzip2",
        "425a683931415926535902f8b0bd000003910040000244a00030cd00548696719b38a3c5dc914e142400be2c2f40",
    ),
    ("zstd", "28b52ffd04686500003068656c6c6f200100994b11175eae0d"),
];

fn compressed(bytes: &[u8]) -> Seeds {
    let mut seeds = vec![("gzip".to_owned(), gzip(bytes))];
    let block = lz4_flex::block::compress(bytes);
    let len = u32::try_from(block.len()).expect("a short block").to_le_bytes();
    seeds.push(("lz4".to_owned(), [&[0x02, 0x21, 0x4c, 0x18][..], &len, &block].concat()));
    // lzop: a stored block of three bytes behind the shortest header.
    let mut lzop = b"\x89LZO\0\r\n\x1a\n\x10\x30\x20\xa0\x09\x40\x01\x05".to_vec();
    lzop.extend([0; 16]);
    lzop.extend([0; 5]);
    lzop.extend([0, 0, 0, 3, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 0]);
    seeds.push(("lzop".to_owned(), lzop));
    for (name, hex) in STREAMS {
        let digits = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
        seeds.push((
            name.to_owned(),
            digits.collect::<Result<_, _>>().expect("hexadecimal digits"),
        ));
    }
    seeds
}
