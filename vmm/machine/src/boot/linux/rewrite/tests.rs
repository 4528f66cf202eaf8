//! Each rewrite on hand-made kernels of a few instructions: what is found, what is left alone, what is refused.

use super::super::vmlinux::{Layout, Section};
use super::kallsyms::Symbols;
use super::{Patch, Purpose, RewriteError, cr4, gp, tsc};

const TEXT: u64 = 0xffff_ffff_8100_0000;
const DATA: u64 = 0xffff_ffff_8200_0000;

/// An image of `.text` and `.rodata`.
fn image(text: &[u8], data: &[u8]) -> (Vec<u8>, Layout) {
    let bytes = [text, data].concat();
    let section = |name: &str, virt, file, executable| Section {
        name: name.to_owned(),
        virt,
        file,
        executable,
    };
    let layout = Layout {
        entry: 0,
        segments: Vec::new(),
        sections: vec![
            section(".text", TEXT, 0..text.len(), true),
            section(".rodata", DATA, text.len()..bytes.len(), false),
        ],
    };
    (bytes, layout)
}

fn applied(mut bytes: Vec<u8>, patches: &[Patch]) -> Vec<u8> {
    for patch in patches {
        patch.apply(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn only_real_rdtscs_are_rewritten() {
    // mov $0x310f, %eax; lfence; rdtsc; rdtsc; ret; and the pair as data
    let text = [0xb8, 0x0f, 0x31, 0, 0, 0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x0f, 0x31, 0xc3];
    let (bytes, layout) = image(&text, &[0x0f, 0x31]);
    for symbols in [&[(TEXT, "read")][..], &[]] {
        let patches = tsc::patches(&bytes, &layout, &Symbols::from_list(symbols)).unwrap();
        let mut expected = bytes.clone();
        expected[8..12].copy_from_slice(&[0xe6, 0xee, 0xe6, 0xee]);
        assert_eq!(applied(bytes.clone(), &patches), expected);
    }
}

#[test]
fn a_doubtful_rdtsc_refuses_the_kernel() {
    let text = [0xb8, 0x0f, 0x31, 0, 0, 0x0f, 0x31, 0xc3];
    let (bytes, layout) = image(&text, &[]);
    // By this symbol an RDTSC begins inside the MOV.
    let symbols = Symbols::from_list(&[(TEXT + 1, "odd")]);
    let error = tsc::patches(&bytes, &layout, &symbols).unwrap_err();
    assert!(
        matches!(&error, RewriteError::Ambiguous { place } if place == "odd+0x0"),
        "{error}"
    );
    let (bytes, layout) = image(&[0xc3], &[0x0f, 0x31]);
    assert!(
        tsc::patches(&bytes, &layout, &Symbols::default()).is_err(),
        "none at all"
    );
}

/// `struct idt_data`
fn gate(vector: u8, handler: u64) -> Vec<u8> {
    let mut gate = vec![vector, 0, 0, 0, 0x10, 0, 0, 0, 0, 0x8e, 0, 0, 0, 0, 0, 0];
    gate.extend(handler.to_le_bytes());
    gate
}

#[test]
fn the_hook_goes_where_vector_13_leads() {
    let rooms: [(&[u8], usize); 3] = [
        (&[0x90, 0x90, 0x90, 0xfc], 0),
        (&[0x0f, 0x1f, 0x00, 0xfc], 0),
        (&[0xf3, 0x0f, 0x1e, 0xfa, 0x90, 0x90, 0x90, 0xfc], 4),
    ];
    for (room, at) in rooms {
        let text = [&[0xc3; 16], room].concat();
        let data = [gate(12, TEXT), gate(13, TEXT + 16), gate(14, TEXT)].concat();
        let (bytes, layout) = image(&text, &data);
        let symbols = Symbols::from_list(&[(TEXT + 16, "asm_exc_general_protection")]);
        let patch = gp::patch(&bytes, &layout, &symbols).unwrap();
        assert_eq!(patch.address, TEXT + 16 + at as u64);
        let done = applied(bytes, &[patch]);
        assert_eq!(done[16 + at..20 + at], [0xe6, 0xef, 0x90, 0xfc]);
    }
}

#[test]
fn a_gate_that_is_missing_double_or_leads_elsewhere_is_refused() {
    let refused = |text: &[u8], data: &[u8], symbol: u64| {
        let (bytes, layout) = image(text, data);
        let symbols = Symbols::from_list(&[(symbol, "asm_exc_general_protection")]);
        gp::patch(&bytes, &layout, &symbols).unwrap_err().to_string()
    };
    let text = [0x90; 32];
    let good = gate(13, TEXT + 16);
    assert!(refused(&text, &gate(14, TEXT), TEXT).contains("no interrupt gate"));
    assert!(refused(&text, &gate(13, DATA), TEXT).contains("no interrupt gate"));
    assert!(refused(&text, &[good.clone(), gate(13, TEXT)].concat(), TEXT).contains("2 different"));
    assert!(refused(&text, &good, TEXT).contains("asm_exc_general_protection+0x10, not to"));
    // CLAC itself: this kernel has been patched, or was built otherwise
    let clac = [&[0x90; 16][..], &[0x0f, 0x01, 0xca, 0xfc]].concat();
    assert!(refused(&clac, &good, TEXT + 16).contains("begins with 0f01cafc"));
}

/// call cpu_init's way: mov $mask, %edi; call cr4_clear_bits (at TEXT + 0x20)
fn kernel(startup: &[u8], mask: u8) -> (Vec<u8>, Layout, Symbols) {
    let mut text = vec![0x90; 0x60];
    text[0x20] = 0xc3;
    text[0x30..0x3a].copy_from_slice(&[0xbf, mask, 0, 0, 0, 0xe8, 0xe6, 0xff, 0xff, 0xff]);
    text[0x40..0x40 + startup.len()].copy_from_slice(startup);
    let (bytes, layout) = image(&text, &[]);
    let symbols = Symbols::from_list(&[
        (TEXT + 0x20, "cr4_clear_bits"),
        (TEXT + 0x30, "cpu_init"),
        (TEXT + 0x40, "secondary_startup_64"),
    ]);
    (bytes, layout, symbols)
}

/// mov %cr4,%rcx; and $0x40,%ecx; or $0xa0,%ecx; mov %rcx,%cr4
const BUILT: [u8; 15] = [
    0x0f, 0x20, 0xe1, 0x83, 0xe1, 0x40, 0x81, 0xc9, 0xa0, 0, 0, 0, 0x0f, 0x22, 0xe1,
];

/// mov $0x1020,%edx; or $0x40,%edx; mov %cr4,%rcx; and %edx,%ecx; bts $4,%ecx; mov %rcx,%cr4
const MASKED: [u8; 20] = [
    0xba, 0x20, 0x10, 0, 0, 0x83, 0xca, 0x40, 0x0f, 0x20, 0xe1, 0x21, 0xd1, 0x0f, 0xba, 0xe9, 0x04, 0x0f, 0x22, 0xe1,
];

#[test]
fn tsd_is_set_at_the_start_and_never_cleared() {
    for (startup, at, before, after) in [(&BUILT[..], 0x48, 0xa0, 0xa4), (&MASKED, 0x41, 0x20, 0x24)] {
        let (bytes, layout, symbols) = kernel(startup, 0xf);
        let patches = cr4::patches(&bytes, &layout, &symbols).unwrap();
        assert_eq!(
            patches.iter().map(|patch| patch.purpose).collect::<Vec<_>>(),
            [Purpose::Cr4Startup, Purpose::Cr4Clear]
        );
        assert_eq!((bytes[at], bytes[0x31]), (before, 0xf));
        let done = applied(bytes.clone(), &patches);
        assert_eq!((done[at], done[0x31]), (after, 0xb));
        let changed = bytes.iter().zip(&done).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 2);
    }
}

#[test]
fn a_kernel_that_sets_cr4_otherwise_is_refused() {
    let refused = |startup: &[u8], mask| {
        let (bytes, layout, symbols) = kernel(startup, mask);
        cr4::patches(&bytes, &layout, &symbols).unwrap_err().to_string()
    };
    assert!(refused(&BUILT, 0xb).contains("cpu_init"));
    assert!(refused(&BUILT[..12], 0xf).contains("does not write it"));
    assert!(refused(&BUILT[12..], 0xf).contains("neither a constant"));
    let (bytes, layout, _) = kernel(&BUILT, 0xf);
    let error = cr4::patches(&bytes, &layout, &Symbols::default()).unwrap_err();
    assert!(error.to_string().contains("no symbol is called"), "{error}");
}

#[test]
fn a_patch_checks_the_bytes_it_replaces() {
    let (bytes, layout) = image(&[0x0f, 0x31], &[]);
    let patch = &tsc::patches(&bytes, &layout, &Symbols::default()).unwrap()[0];
    let mut other = vec![0x0f, 0x30];
    let error = patch.apply(&mut other).unwrap_err().to_string();
    assert!(error.contains("0f31 was expected and 0f30 found"), "{error}");
    assert_eq!(other, [0x0f, 0x30]);
    assert!(patch.apply(&mut [0x0f]).is_err());
}
