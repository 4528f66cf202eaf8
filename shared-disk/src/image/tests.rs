use std::fs;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::direct::probed_alignment;
use super::*;

const BLOCK: Alignment = Alignment {
    memory: 4096,
    offset: 4096,
};

/// A file of `size` zero bytes in a folder of its own.
fn file(size: u64) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(size).unwrap();
    (folder, path)
}

/// The file opened with O_DIRECT, as if its device had 4096-byte sectors.
fn with_large_sectors(path: &Path) -> DiskImage {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .unwrap();
    DiskImage::examine(file, path.to_owned(), ImageAccess::ReadWrite, Some(BLOCK)).unwrap()
}

fn open(path: &Path, caching: Caching) -> DiskImage {
    DiskImage::open(path, ImageAccess::ReadWrite, caching).unwrap()
}

#[test]
fn what_is_written_is_on_the_disk_and_is_read_back() {
    let (_folder, path) = file(64 << 10);
    for caching in [Caching::Direct, Caching::Buffered] {
        let image = open(&path, caching);
        assert_eq!(image.size(), 64 << 10);
        let data: Vec<u8> = (0..=255).cycle().take(3 * 4096).collect();
        // One byte further, so that the memory cannot be aligned.
        let shifted: Vec<u8> = [&[0], &data[..]].concat();
        image.write_at(4096, &shifted[1..]).unwrap();
        image.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap()[4096..4 * 4096], data);
        let mut back = vec![0; data.len() + 1];
        image.read_at(4096, &mut back[1..]).unwrap();
        assert_eq!(back[1..], data);
        fs::write(&path, vec![0; 64 << 10]).unwrap();
    }
}

#[test]
fn only_direct_images_bypass_the_page_cache() {
    let (_folder, path) = file(4096);
    for (caching, expected) in [(Caching::Direct, true), (Caching::Buffered, false)] {
        let flags = nix::fcntl::fcntl(&open(&path, caching).file, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT), expected);
    }
}

#[test]
fn only_what_is_aligned_in_every_way_goes_without_a_bounce_buffer() {
    let (_folder, path) = file(16384);
    let image = with_large_sectors(&path);
    let mut memory = AlignedBuffer::new(8192, 4096);
    let bytes = memory.bytes();
    assert!(image.is_aligned(4096, bytes) && image.is_aligned(0, &bytes[..4096]));
    assert!(!image.is_aligned(512, bytes) && !image.is_aligned(0, &bytes[..512]));
    assert!(!image.is_aligned(0, &bytes[512..512 + 4096]));
}

#[test]
fn no_piece_outgrows_the_bounce_buffer() {
    let (_folder, path) = file(8192);
    let image = with_large_sectors(&path);
    for (offset, len) in [
        (0, 512),
        (512, BOUNCE_BYTES),
        (4096, 3 * BOUNCE_BYTES),
        (1536, 2 * BOUNCE_BYTES - 512),
    ] {
        let mut next = 0;
        for (at, part) in image.pieces(offset, len) {
            assert_eq!((part.start, at), (next, offset + widen(next)));
            assert!(
                range_len(&image.widened(at, part.len()).0) <= BOUNCE_BYTES,
                "{offset} {len}"
            );
            next = part.end;
        }
        assert_eq!(next, len);
    }
}

#[test]
fn a_transfer_must_lie_on_the_disk_and_on_sectors() {
    let (_folder, path) = file(8192);
    for image in [
        open(&path, Caching::Direct),
        open(&path, Caching::Buffered),
        with_large_sectors(&path),
    ] {
        let mut data = vec![1; 8192];
        assert!(image.write_at(0, &data).is_ok() && image.read_at(0, &mut data).is_ok());
        assert!(image.write_at(7680, &data[..512]).is_ok() && image.read_at(8192, &mut []).is_ok());
        for (offset, len) in [
            (8192, 512),
            (7680, 1024),
            (0, 511),
            (0, 513),
            (511, 512),
            (u64::MAX - 511, 512),
        ] {
            let written = image.write_at(offset, &data[..len]);
            let read = image.read_at(offset, &mut data[..len]);
            assert!(
                matches!(written, Err(ImageError::Range { size: 8192, .. })),
                "{offset} {len}: {written:?}"
            );
            assert!(
                matches!(read, Err(ImageError::Range { size: 8192, .. })),
                "{offset} {len}: {read:?}"
            );
        }
    }
    assert_eq!(fs::read(&path).unwrap(), vec![1; 8192]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (_folder, path) = file(512);
    let image = DiskImage::open(&path, ImageAccess::ReadOnly, Caching::Buffered).unwrap();
    assert!(matches!(image.write_at(0, &[1; 512]), Err(ImageError::ReadOnly)));
    assert!(image.read_at(0, &mut [1; 512]).is_ok());
    assert!(image.flush().is_ok());
}

#[test]
fn what_is_no_disk_is_refused() {
    let (folder, path) = file(4096 + 512);
    let opened = |path: &Path, caching| DiskImage::open(path, ImageAccess::ReadOnly, caching);
    assert!(opened(&path, Caching::Buffered).is_ok());
    for size in [0, 1, 511, 513] {
        File::create(&path).unwrap().set_len(size).unwrap();
        let error = opened(&path, Caching::Buffered).unwrap_err();
        assert!(matches!(error, ImageError::Size { size: found, .. } if found == size));
        assert!(error.to_string().contains("truncate"), "{error}");
    }
    assert!(matches!(
        opened(folder.path(), Caching::Buffered),
        Err(ImageError::Kind { .. })
    ));
    assert!(matches!(
        opened(Path::new("/dev/null"), Caching::Buffered),
        Err(ImageError::Kind { .. })
    ));
    assert!(matches!(
        opened(&folder.path().join("none"), Caching::Direct),
        Err(ImageError::Open { .. })
    ));
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(
        matches!(opened(&fifo, Caching::Buffered), Err(ImageError::Kind { .. })),
        "and it does not hang"
    );
}

#[test]
fn a_file_system_without_direct_io_is_named() {
    let error = DiskImage::open("/proc/version", ImageAccess::ReadOnly, Caching::Direct).unwrap_err();
    assert!(matches!(error, ImageError::NoDirect { .. }));
    assert!(error.to_string().contains("may be opened buffered"), "{error}");
}

#[test]
fn an_image_that_ends_within_a_block_is_refused() {
    let (_folder, path) = file(4096 + 512);
    let examine = |alignment| {
        DiskImage::examine(
            File::open(&path).unwrap(),
            path.clone(),
            ImageAccess::ReadOnly,
            alignment,
        )
    };
    let error = examine(Some(BLOCK)).unwrap_err();
    assert!(matches!(
        error,
        ImageError::Alignment {
            size: 4608,
            alignment: 4096,
            ..
        }
    ));
    assert!(error.to_string().contains("pad"), "{error}");
    assert!(
        examine(Some(Alignment {
            memory: 4096,
            offset: 512
        }))
        .is_ok()
    );
}

#[test]
fn the_alignment_is_found_by_question_and_by_trial() {
    let (_folder, path) = file(1 << 20);
    let image = open(&path, Caching::Direct);
    let asked = image.alignment.offset.max(512);
    assert!((512..=4096).contains(&asked));
    assert_eq!(probed_alignment(&image.file).unwrap().offset, asked);
    assert_eq!(open(&path, Caching::Buffered).alignment, UNALIGNED);
}

#[test]
fn an_image_that_shrinks_is_an_io_error() {
    let (_folder, path) = file(16384);
    let image = open(&path, Caching::Direct);
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = image.read_at(0, &mut vec![0; 8192]).unwrap_err();
    assert!(
        matches!(&error, ImageError::Io { action: "read", cause, .. } if cause.kind() == io::ErrorKind::UnexpectedEof)
    );
    assert!(error.to_string().contains("disk"), "{error}");
}

#[test]
fn short_and_interrupted_transfers_go_on_at_the_last_aligned_place() {
    let (_folder, path) = file(8192);
    let image = DiskImage {
        alignment: Alignment {
            memory: 512,
            offset: 512,
        },
        ..open(&path, Caching::Buffered)
    };
    let eof = io::ErrorKind::UnexpectedEof;
    let run = |len: usize, answers: &[Result<usize, i32>]| {
        let mut answers = answers.iter();
        let mut places = Vec::new();
        let result = image.transfer(len, eof, |done| {
            places.push(done);
            answers
                .next()
                .expect("no more calls")
                .map_err(io::Error::from_raw_os_error)
        });
        assert_eq!(answers.len(), 0);
        (result.map_err(|error| error.kind()), places)
    };
    // EINTR is 4.
    assert_eq!(run(4096, &[Err(4), Ok(1536), Ok(2560)]), (Ok(()), vec![0, 0, 1536]));
    assert_eq!(run(4096, &[Ok(1600), Ok(2560)]), (Ok(()), vec![0, 1536]));
    assert_eq!(run(4096, &[Ok(511)]), (Err(eof), vec![0]));
    assert_eq!(run(4096, &[Ok(1024), Ok(0)]), (Err(eof), vec![0, 1024]));
    // EIO is 5.
    assert_eq!(run(4096, &[Ok(1024), Err(5)]).1, vec![0, 1024]);
    assert_eq!(run(0, &[]), (Ok(()), vec![]));
}

#[test]
fn requests_bring_their_data_or_what_the_host_said() {
    let (_folder, path) = file(8192);
    let image = open(&path, Caching::Direct);
    let perform = |op| image.perform(&DiskRequest { disk: 0, id: 0, op });
    let write = |offset| DiskOp::Write {
        offset,
        data: Arc::new(vec![9; 512]),
    };
    assert!(perform(write(512)).unwrap().is_empty());
    assert!(perform(DiskOp::Flush).unwrap().is_empty());
    assert_eq!(
        perform(DiskOp::Read { offset: 512, len: 1024 }).unwrap(),
        [[9; 512], [0; 512]].concat()
    );
    assert!(matches!(perform(write(8192)), Err(ImageError::Range { .. })));
    assert!(matches!(
        perform(DiskOp::Read { offset: 0, len: 8704 }),
        Err(ImageError::Range { .. })
    ));
    assert!(matches!(
        image.read_vec(0, REQUEST_BYTES + 512),
        Err(ImageError::Length { .. })
    ));
    assert!(matches!(
        image.read_vec(0, REQUEST_BYTES),
        Err(ImageError::Range { .. })
    ));
    assert_eq!(image.failures.load(Ordering::Relaxed), 2);
}

#[test]
fn neighbours_in_a_block_do_not_undo_each_other() {
    let (_folder, path) = file(4096);
    let image = with_large_sectors(&path);
    for round in 1..=40 {
        thread::scope(|scope| {
            for sector in 0..8 {
                let image = &image;
                scope.spawn(move || image.write_at(sector * SECTOR, &[round; 512]).unwrap());
            }
        });
        assert_eq!(fs::read(&path).unwrap(), vec![round; 4096], "round {round}");
    }
}

#[test]
fn long_transfers_go_piece_by_piece() {
    let size = 5 * BOUNCE_BYTES;
    let (_folder, path) = file(widen(size));
    for image in [open(&path, Caching::Direct), with_large_sectors(&path)] {
        let offset = 3 * 512;
        let data: Vec<u8> = (0..=250).cycle().take(3 * BOUNCE_BYTES + 512 + 1).collect();
        image.write_at(offset, &data[1..]).unwrap();
        let mut back = vec![0; data.len()];
        image.read_at(offset, &mut back[1..]).unwrap();
        assert!(back[1..] == data[1..]);
        let file = fs::read(&path).unwrap();
        assert!(file[1536..][..data.len() - 1] == data[1..]);
        assert!(
            file[..1536]
                .iter()
                .chain(&file[1536 + data.len() - 1..])
                .all(|byte| *byte == 0)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any sequence of transfers, from memory of any alignment, against an array.
    #[test]
    fn a_disk_is_an_array(
        transfers in proptest::collection::vec((any::<bool>(), 0..40u64, 1..20usize, 0..16usize, any::<u8>()), 1..30),
        mode in 0..3,
    ) {
        const SECTORS: u64 = 40;
        let (_folder, path) = file(SECTORS * SECTOR);
        let image = match mode {
            0 => open(&path, Caching::Direct),
            1 => open(&path, Caching::Buffered),
            _ => with_large_sectors(&path),
        };
        let mut array = vec![0; 40 * 512];
        for (is_write, sector, sectors, shift, fill) in transfers {
            let start = usize::try_from(sector).unwrap() * 512;
            let end = (start + sectors * 512).min(array.len());
            let mut memory: Vec<u8> = (0..shift + end - start).map(|at| fill.wrapping_add(at.to_le_bytes()[1])).collect();
            if is_write {
                image.write_at(sector * SECTOR, &memory[shift..]).unwrap();
                array[start..end].copy_from_slice(&memory[shift..]);
            } else {
                image.read_at(sector * SECTOR, &mut memory[shift..]).unwrap();
                prop_assert_eq!(&memory[shift..], &array[start..end]);
            }
        }
        image.flush().unwrap();
        prop_assert!(fs::read(&path).unwrap() == array);
    }
}

#[test]
fn one_opening_at_a_time_keeps_a_locked_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 512]).unwrap();
    let open = || DiskImage::open(&path, ImageAccess::ReadWrite, Caching::Buffered).unwrap();
    let first = open();
    first.lock().unwrap();
    let second = open();
    let error = second.lock().unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(first);
    second.lock().unwrap();
}
