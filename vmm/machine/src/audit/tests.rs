//! Hand-made programs, modules, archives and disks, whole and damaged.

use std::io::Write as _;

use super::instructions::{Consequence, Owner};
use super::modules::{Uncaught, uncaught};
use super::{AuditReport, BLOCK, ImageKind, audit, scan};

const RDTSC: &[u8] = &[0x0f, 0x31];
const RDTSCP: &[u8] = &[0x0f, 0x01, 0xf9];
const RDRAND: &[u8] = &[0x0f, 0xc7, 0xf0];
const RDSEED: &[u8] = &[0x0f, 0xc7, 0xf8];
const RDPID: &[u8] = &[0xf3, 0x0f, 0xc7, 0xf8];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x30];
const RDPMC: &[u8] = &[0x0f, 0x33];
const XBEGIN: &[u8] = &[0xc7, 0xf8, 0, 0, 0, 0];
const CLEAN: &[u8] = &[0x90, 0xc3];

/// File types of ELF.
const MODULE: u16 = 1;
const PROGRAM: u16 = 2;

/// An ELF64 file with `code` in a section `.text`, and `information` in `.modinfo`.
fn elf(kind: u16, code: &[u8], information: &[u8]) -> Vec<u8> {
    let names = b"\0.text\0.modinfo\0.shstrtab\0";
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [kind, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1_u32.to_le_bytes());
    let contents = [code, information, names];
    let table = 64 + contents.iter().map(|content| content.len()).sum::<usize>() as u64;
    for long in [0, 0, table] {
        image.extend(long.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 0, 64, 4, 3] {
        image.extend(half.to_le_bytes());
    }
    contents.iter().for_each(|content| image.extend(*content));
    image.extend([0; 64]);
    let mut offset = 64;
    // Name, type (PROGBITS or STRTAB), flags (EXECINSTR and ALLOC).
    for ((name, kind, flags), content) in [(1_u32, 1_u32, 6_u64), (7, 1, 2), (16, 3, 0)].into_iter().zip(contents) {
        image.extend(name.to_le_bytes());
        image.extend(kind.to_le_bytes());
        for long in [flags, 0, offset, content.len() as u64, 0, 1, 0] {
            image.extend(long.to_le_bytes());
        }
        offset += content.len() as u64;
    }
    image
}

/// A cpio archive of regular files.
fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files.iter().copied().chain([("TRAILER!!!", &b""[..])]) {
        let mut fields = [0; 13];
        (fields[1], fields[6], fields[11]) = (0o100_644, content.len(), name.len() + 1);
        archive.extend(b"070701");
        fields
            .iter()
            .for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend([name.as_bytes(), b"\0"].concat());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn audited(bytes: &[u8]) -> Result<AuditReport, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    audit(file.path()).map_err(|e| e.to_string())
}

#[test]
fn each_instruction_has_its_verdict() {
    use Consequence::{Answered, Harmless, Hidden, Uncaught};
    for (code, name, in_module, in_program, in_kernel) in [
        (RDTSC, "RDTSC", Uncaught, Answered, Answered),
        (RDTSCP, "RDTSCP", Hidden, Answered, Harmless),
        (RDRAND, "RDRAND", Hidden, Hidden, Harmless),
        (RDSEED, "RDSEED", Hidden, Hidden, Harmless),
        (RDPID, "RDPID", Harmless, Harmless, Harmless),
        (XSAVEOPT, "XSAVEOPT", Harmless, Harmless, Harmless),
        (RDPMC, "RDPMC", Hidden, Harmless, Harmless),
        (XBEGIN, "XBEGIN", Hidden, Hidden, Harmless),
    ] {
        let code = [CLEAN, code, CLEAN, code].concat();
        for (kind, owner, verdict) in [
            (MODULE, None, in_module),
            (PROGRAM, None, in_program),
            (PROGRAM, Some(Owner::Kernel), in_kernel),
        ] {
            let findings = scan::elf("x", &elf(kind, &code, b""), owner).unwrap();
            let [finding] = &findings[..] else {
                panic!("{name}: {findings:?}")
            };
            let found = (
                finding.instruction.as_str(),
                finding.count,
                finding.first,
                finding.verdict,
            );
            assert_eq!(found, (name, 2, 2, verdict), "{name} in {:?}", finding.owner);
        }
    }
    // The same bytes as data of an instruction: mov $0x310f, %eax.
    let data = elf(MODULE, &[0xb8, 0x0f, 0x31, 0, 0], RDTSC);
    assert_eq!(scan::elf("x", &data, None), Some(Vec::new()));
}

#[test]
fn an_initrd_tells_what_it_holds_and_whether_it_is_clean() {
    let module = elf(MODULE, RDTSC, b"license=GPL\0name=a_b\0");
    let program = elf(PROGRAM, &[RDTSC, RDRAND, RDPID, XSAVEOPT].concat(), b"");
    let files: [(&str, &[u8]); 3] = [
        ("init", b"#!/bin/sh"),
        ("bin/program", &program),
        ("a.ko.gz", &gzip(&module)),
    ];
    for initrd in [
        cpio(&files),
        gzip(&cpio(&files)),
        [cpio(&[]), vec![0; 512], gzip(&cpio(&files))].concat(),
    ] {
        let report = audited(&initrd).unwrap();
        assert_eq!(
            (report.kind, report.files, report.is_clean()),
            (ImageKind::Initrd, 2, false)
        );
        let json = serde_json::to_value(&report).unwrap();
        let found = json["findings"].as_array().unwrap().iter().map(|finding| {
            let text = |field: &str| finding[field].as_str().unwrap().to_owned();
            (text("file"), text("owner"), text("instruction"), text("verdict"))
        });
        let expected = [
            ("bin/program", "program", "RDPID", "harmless"),
            ("bin/program", "program", "RDRAND", "hidden"),
            ("bin/program", "program", "RDTSC", "answered"),
            ("bin/program", "program", "XSAVEOPT", "harmless"),
            ("a.ko.gz", "module", "RDTSC", "uncaught"),
        ];
        let expected = expected.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(
            (&json["kind"], &json["refused"]),
            (&"initrd".into(), &serde_json::Value::Null)
        );
        let text = report.to_string();
        assert!(text.contains("Uncaught: 1 x RDTSC in a.ko.gz"), "{text}");
    }
    let clean = audited(&cpio(&[("init", CLEAN), ("a.ko", &elf(MODULE, CLEAN, b""))])).unwrap();
    assert_eq!((clean.files, clean.findings.len(), clean.is_clean()), (1, 0, true));
    assert_eq!(
        audited(&program).map(|report| (report.kind, report.is_clean())),
        Ok((ImageKind::Elf, true))
    );
    assert_eq!(
        audited(&module).map(|report| (report.kind, report.is_clean())),
        Ok((ImageKind::Elf, false))
    );
}

#[test]
fn a_disk_is_searched_at_block_starts() {
    let mut disk = vec![0; 3 * BLOCK];
    let module = elf(MODULE, RDTSC, b"");
    disk[2 * BLOCK..2 * BLOCK + module.len()].copy_from_slice(&module);
    // This one is no file's beginning.
    disk[BLOCK + 8..BLOCK + 8 + module.len()].copy_from_slice(&module);
    let report = audited(&disk).unwrap();
    assert_eq!(
        (report.kind, report.files, report.is_clean()),
        (ImageKind::Disk, 1, false)
    );
    assert_eq!(report.findings[0].file, "ELF file at byte 0x2000");
    assert!(
        report.to_string().contains("note: ELF files are looked for"),
        "{report}"
    );
}

#[test]
fn a_damaged_image_is_said_and_never_a_panic() {
    let module = elf(MODULE, RDTSC, b"name=a\0");
    let initrd = cpio(&[("a.ko", &module), ("b.ko", &module)]);
    // A cut anywhere but in the zeros behind the trailer's name.
    for length in 6..initrd.len() - 3 {
        let error = audited(&initrd[..length]).unwrap_err();
        assert!(error.contains("damaged at byte"), "{length}: {error}");
        let found = uncaught(&initrd[..length]);
        assert_eq!(found.unsearched.len(), 1, "{length}: {found:?}");
        assert_eq!(
            found.names.is_empty(),
            length < 110 + 6 + module.len(),
            "{length}: {found:?}"
        );
    }
    let error = audited(&gzip(&module)).unwrap_err();
    assert!(error.contains("something else than cpio archives"), "{error}");
    let error = audited(&[cpio(&[]), b"garbage".to_vec()].concat()).unwrap_err();
    assert!(
        error.contains("neither a cpio archive nor a known compression"),
        "{error}"
    );
    let packed = gzip(&module);
    let report = audited(&cpio(&[("a.ko.gz", &packed[..packed.len() / 2])])).unwrap();
    assert!(
        report.caveats[0].starts_with("a.ko.gz: the Gzip stream is damaged"),
        "{report}"
    );
    // Each byte of the headers in turn.
    for at in (16..64).chain(module.len() - 256..module.len()) {
        let mut damaged = module.clone();
        damaged[at] ^= 0xff;
        let _ = scan::elf("x", &damaged, None);
        let _ = uncaught(&cpio(&[("a.ko", &damaged)]));
    }
}

#[test]
fn modules_to_keep_out_have_the_kernel_s_names() {
    let names = |files: &[(&str, &[u8])]| uncaught(&cpio(files)).names.into_iter().collect::<Vec<_>>();
    let own = elf(MODULE, RDTSC, b"license=GPL\0name=own_name\0alias=name=x\0");
    let nameless = elf(MODULE, RDTSC, b"");
    assert_eq!(
        names(&[("lib/file.ko", &own), ("copy.ko.gz", &gzip(&own))]),
        ["own_name"]
    );
    assert_eq!(
        names(&[("lib/kvm-intel.ko", &nameless), ("b.ko.gz", &gzip(&nameless))]),
        ["b", "kvm_intel"]
    );
    assert_eq!(
        uncaught(&cpio(&[
            ("program", &elf(PROGRAM, RDTSC, b"")),
            ("clean.ko", &elf(MODULE, CLEAN, RDTSC)),
            ("text.ko", b"\x0f\x31"),
        ])),
        Uncaught::default()
    );
    for name in ["a b", "a,b", "a\"b", &"a".repeat(56), ""] {
        let found = uncaught(&cpio(&[(
            "x.ko",
            &elf(MODULE, RDTSC, format!("name={name}\0").as_bytes()),
        )]));
        assert!(found.names.is_empty(), "{found:?}");
        assert_eq!(
            found.unsearched,
            ["module x.ko has a name that no module can have"],
            "{name}"
        );
    }
    assert_eq!(
        names(&[(
            "x.ko",
            &elf(MODULE, RDTSC, format!("name={}\0", "a".repeat(55)).as_bytes())
        )])
        .len(),
        1
    );
}
