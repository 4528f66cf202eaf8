//! Hostile images: cut short, contradicting themselves, or expanding without end. Each is refused with a reason.

use std::io::Write as _;

use super::bzimage::{is_bzimage, parse};
use super::decompress::{Compression, DecompressError};
use super::vmlinux::Layout;
use super::{Linux, is_linux};

/// A 64-bit ELF executable with the given loadable segments: physical address, bytes in the file, bytes in memory.
fn elf(entry: u64, segments: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for value in [entry, 64, 0] {
        image.extend(value.to_le_bytes());
    }
    image.extend([0, 0, 0, 0, 64, 0, 56, 0]);
    image.extend(u16::try_from(segments.len()).unwrap().to_le_bytes());
    image.extend([64, 0, 0, 0, 0, 0]);
    for (phys, file, memory) in segments {
        image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for value in [
            0,
            0xffff_ffff_8000_0000_u64.wrapping_add(*phys),
            *phys,
            *file,
            *memory,
            0x1000,
        ] {
            image.extend(value.to_le_bytes());
        }
    }
    image
}

/// A bzImage of protocol 2.15 with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn refusal(image: &[u8]) -> String {
    Linux::parse(image).unwrap_err().to_string()
}

#[test]
fn a_bzimage_gives_its_vmlinux() {
    let inside = elf(0x10_0000, &[(0x10_0000, 64, 0x1000)]);
    for payload in [inside.clone(), gzip(&inside)] {
        let image = bzimage(&payload);
        assert!(is_linux(&image));
        let linux = Linux::parse(&image).unwrap();
        assert_eq!(linux.vmlinux(), inside);
        assert_eq!((linux.layout().begin(), linux.layout().end()), (0x10_0000, 0x10_1000));
    }
    assert!(!is_linux(&inside), "an ELF without Linux's sections is bare metal");
}

#[test]
fn every_cut_bzimage_is_refused() {
    let image = bzimage(&gzip(&elf(0x10_0000, &[(0x10_0000, 64, 0x1000)])));
    for length in 0..image.len() {
        let cut = &image[..length];
        assert!(!is_bzimage(cut) || parse(cut).is_err(), "cut at {length}");
        assert!(Linux::parse(cut).is_err(), "cut at {length}");
    }
    assert!(Linux::parse(&image).is_ok());
}

#[test]
fn headers_that_point_outside_or_are_too_old_are_refused() {
    let good = bzimage(b"\x7fELF");
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&image)
    };
    assert!(with(0x248, &[0xff; 4]).contains("beyond the image"));
    assert!(with(0x24c, &[5, 0, 0, 0]).contains("beyond the image"));
    assert!(with(0x206, &[7, 2]).contains("0x0208 or later is needed, found 0x0207"));
    assert!(with(0x400, b"????").contains("3f3f3f3f, which is none of"));
    assert!(with(0x24c, &[4, 0, 0, 0]).contains("not a vmlinux"));
}

#[test]
fn segments_must_fit_the_file_and_each_other() {
    let two = |first, second| Layout::parse(&elf(0x10_0000, &[first, second])).map_err(|e| e.to_string());
    let (low, high) = ((0x10_0000, 176, 0x1000), (0x10_1000, 176, 0x1000));
    assert!(two(low, high).is_ok());
    assert!(two(high, low).is_ok(), "any order");
    assert!(two(low, (0x10_0fff, 176, 0x1000)).unwrap_err().contains("overlap"));
    assert!(
        two(low, (0x10_1000, 177, 0x1000))
            .unwrap_err()
            .contains("beyond the file")
    );
    assert!(two(low, (0x10_1000, 176, 175)).unwrap_err().contains("175 in memory"));
    assert!(two(low, (u64::MAX - 1, 1, 2)).unwrap_err().contains("in memory"));
    let entry = |entry| Layout::parse(&elf(entry, &[(0x10_0000, 64, 0x1000)])).is_ok();
    assert_eq!(
        [0xf_ffff, 0x10_0000, 0x10_0fff, 0x10_1000].map(entry),
        [false, true, true, false]
    );
    let mut other = elf(0x10_0000, &[(0x10_0000, 64, 0x1000)]);
    other[18] = 40;
    assert!(Layout::parse(&other).unwrap_err().to_string().contains("x86-64"));
}

#[test]
fn expansion_stops_at_the_bound() {
    let zeros = vec![0; 1 << 20];
    let bomb = gzip(&zeros);
    assert_eq!(Compression::Gzip.expand(&bomb, 1 << 20).unwrap().len(), 1 << 20);
    let error = Compression::Gzip.expand(&bomb, (1 << 20) - 1).unwrap_err();
    assert!(matches!(error, DecompressError::TooBig { .. }), "{error}");
    let block = lz4_flex::block::compress(&zeros);
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for _ in 0..2 {
        frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        frame.extend(&block);
    }
    frame.extend([0, 0, 0x20, 0]); // the kernel's size, which the build appends
    assert_eq!(Compression::Lz4.expand(&frame, 2 << 20).unwrap().len(), 2 << 20);
    let error = Compression::Lz4.expand(&frame, (2 << 20) - 1).unwrap_err();
    assert!(matches!(error, DecompressError::TooBig { .. }), "{error}");
}

#[test]
fn damaged_streams_of_every_format_are_refused() {
    let heads: [(&[u8], Compression); 7] = [
        (&[0x1f, 0x8b, 8, 0], Compression::Gzip),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
        (&[0x5d, 0, 0, 0x80, 0], Compression::Lzma),
        (b"BZh9", Compression::Bzip2),
        (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
        (b"\x89LZO\0\r\n\x1a\n", Compression::Lzo),
        (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    ];
    for (head, format) in heads {
        assert_eq!(Compression::detect(head), Some(format));
        for tail in [&[][..], &[0; 64], &[0xff; 64], &[1; 4096]] {
            let stream = [head, tail].concat();
            let result = format.expand(&stream, 1 << 20);
            // An lzop file of zeros is an empty one; everything else is damaged.
            assert!(
                result.is_err() || result.unwrap().is_empty(),
                "{format:?} with {} bytes",
                tail.len()
            );
        }
    }
    assert_eq!(Compression::detect(b"plain"), None);
}

/// What the tools that distributions use write; `xz --x86 --lzma2` as scripts/xz_wrap.sh of Linux.
#[test]
fn real_streams_of_every_format_expand() {
    let expected = b"ftvm ftvm ftvm ftvm ftvm ftvm ftvm ftvm ftvm ftvm\n";
    for (format, stream) in SAMPLES {
        let bytes: Vec<u8> = (0..stream.len() / 2)
            .map(|index| u8::from_str_radix(&stream[2 * index..2 * index + 2], 16).unwrap())
            .collect();
        assert_eq!(Compression::detect(&bytes), Some(format));
        assert_eq!(format.expand(&bytes, 50).unwrap(), expected, "{format:?}");
        assert!(format.expand(&bytes, 49).is_err(), "{format:?}");
        assert!(format.expand(&bytes[..bytes.len() / 2], 50).is_err(), "{format:?} cut");
    }
}

const SAMPLES: [(Compression, &str); 7] = [
    (
        Compression::Gzip,
        "1f8b08000000000000034b2b29cb55482381e00200910ba16232000000",
    ),
    (
        Compression::Xz,
        "fd377a585a0000016922de3602010400210110008b216f49e00031000d5d00331d0b251dc0d7368cbae8000000000000910ba162000125324c34a2009042990d010000000001595a",
    ),
    (
        Compression::Lzma,
        "5d00008000ffffffffffffffff00331d0b251dc0d7368d105ccfffffd7d30000",
    ),
    (
        Compression::Bzip2,
        "425a6839314159265359b1c98d21000009d1800010400001020500200030c002953469d4c8cd4f26a7c5dc914e14242c72634840",
    ),
    (Compression::Lz4, "02214c180f0000005f6674766d20050015506674766d0a"),
    (Compression::Zstd, "28b52ffd0468650000306674766d200a0100c12c5a5e0c8d8e"),
    (
        Compression::Lzo,
        "894c5a4f000d0a1a0a103020a00940010500000001000081a400000000000000000028f40276000000320000001ee10c128d026674766d203a10000e6d206674766d206674766d206674766d0a11000000000000",
    ),
];
