use super::*;

const NO_LIMIT: u64 = u64::MAX;

fn archive(build: impl FnOnce(&mut Writer<Vec<u8>>) -> Result<(), Error>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    build(&mut writer).unwrap();
    writer.finish().unwrap()
}

fn one_file(path: &str, data: &[u8]) -> Vec<u8> {
    archive(|w| w.file(Path::new(path), 0o644, data.len() as u64, &mut &data[..]))
}

fn unpacked(bytes: &[u8]) -> Result<Vec<PathBuf>, Error> {
    unpack(&mut &bytes[..], tempfile::tempdir().unwrap().path(), NO_LIMIT)
}

#[test]
fn bytes_of_one_entry_are_pinned() {
    let expected = [
        "070701", "00000001", "000081ed", "00000000", "00000000", "00000001", "00000000", "00000003", "00000000",
        "00000000", "00000000", "00000000", "00000002", "00000000", "a\0", "abc\0",
    ]
    .concat();
    let bytes = archive(|w| w.file(Path::new("a"), 0o755, 3, &mut &b"abc"[..]));
    assert_eq!(&bytes[..expected.len()], expected.as_bytes());
    assert_eq!(bytes.len() % 4, 0);
    assert!(
        bytes.ends_with(b"TRAILER!!!\0\0\0\0"),
        "name and padding of the trailer"
    );
}

#[test]
fn every_padding_comes_back_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    for size in 0..9_usize {
        for name_len in 1..6_usize {
            let (name, data) = ("n".repeat(name_len), vec![7; size]);
            let files = unpack(&mut &one_file(&name, &data)[..], dir.path(), NO_LIMIT).unwrap();
            assert_eq!(files, [PathBuf::from(&name)]);
            assert_eq!(fs::read(dir.path().join(&name)).unwrap(), data);
        }
    }
}

#[test]
fn parents_are_added_once_and_before_their_files() {
    let bytes = archive(|w| {
        w.file(Path::new("a/b/c"), 0o644, 0, &mut io::empty())?;
        w.file(Path::new("a/b/d"), 0o644, 0, &mut io::empty())?;
        assert!(w.contains(Path::new("a/b/d")) && !w.contains(Path::new("a/b/e")));
        w.directory(Path::new("a"))
    });
    let names: Vec<_> = [&b"a\0"[..], b"a/b\0", b"a/b/c\0", b"a/b/d\0"]
        .iter()
        .map(|name| {
            bytes
                .windows(name.len())
                .enumerate()
                .filter(|(at, w)| w == name && at % 4 == 2)
                .count()
        })
        .collect();
    assert_eq!(names, [1, 1, 1, 1]);
}

#[test]
fn busybox_reads_what_is_written_here_and_the_reverse() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = archive(|w| {
        w.file(Path::new("dir/script"), 0o755, 5, &mut &b"hello"[..])?;
        w.symlink(Path::new("dir/link"), "script")
    });
    fs::write(here.path().join("in.cpio"), bytes).unwrap();
    let script = "busybox cpio -id < in.cpio && cat dir/link && echo dir/script | busybox cpio -o -H newc > out.cpio";
    let ran = std::process::Command::new("sh")
        .arg("-c")
        .arg(script)
        .current_dir(&here)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.stdout, b"hello");
    let mut packed = File::open(here.path().join("out.cpio")).unwrap();
    assert_eq!(
        unpack(&mut packed, there.path(), 5).unwrap(),
        [PathBuf::from("dir/script")]
    );
    assert_eq!(fs::read(there.path().join("dir/script")).unwrap(), b"hello");
}

#[test]
fn a_source_that_ends_early_is_an_error() {
    let error = Writer::new(Vec::new())
        .file(Path::new("f"), 0, 4, &mut &b"abc"[..])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("4 bytes were announced, but the data ended after 3"),
        "{error}"
    );
}

#[test]
fn a_file_of_four_gibibytes_is_refused() {
    let add = |size| Writer::new(io::sink()).file(Path::new("f"), 0, size, &mut io::repeat(0).take(1));
    assert!(matches!(
        add(1 << 32),
        Err(Error::TooLarge {
            size: 0x1_0000_0000,
            ..
        })
    ));
    assert!(
        matches!(add((1 << 32) - 1), Err(Error::Io { .. })),
        "this size fits; only the data is short"
    );
}

#[test]
fn no_input_is_an_empty_archive_and_a_torn_one_is_not() {
    assert_eq!(unpacked(b"").unwrap(), Vec::<PathBuf>::new());
    let whole = one_file("file", b"data");
    assert_eq!(unpacked(&whole).unwrap(), [PathBuf::from("file")]);
    let needed = whole.len() - 1;
    for end in 1..needed - 3 {
        assert!(
            unpacked(&whole[..end]).is_err(),
            "cut after {end} of {} bytes",
            whole.len()
        );
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["../f", "a/../../f", "/etc/f", "a/.."] {
        let error = unpacked(&one_file(path, b"x")).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{path}: {error}");
    }
    assert_eq!(unpacked(&one_file("a/..b", b"x")).unwrap(), [PathBuf::from("a/..b")]);
}

#[test]
fn links_and_devices_are_refused() {
    let error = unpacked(&archive(|w| w.symlink(Path::new("l"), "/etc/passwd")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("type 120000, not file or directory"), "{error}");
}

#[test]
fn the_limit_counts_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(|w| {
        w.file(Path::new("a"), 0o644, 3, &mut &b"abc"[..])?;
        w.file(Path::new("b"), 0o644, 3, &mut &b"abc"[..])
    });
    assert_eq!(unpack(&mut &bytes[..], dir.path(), 6).unwrap().len(), 2);
    assert!(matches!(
        unpack(&mut &bytes[..], dir.path(), 5),
        Err(Error::OverLimit { limit: 5, .. })
    ));
}

#[test]
fn damage_is_named() {
    let good = one_file("f", b"x");
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        unpacked(&bad).unwrap_err().to_string()
    };
    assert!(with(0, b"070707").contains("expected the magic 070701, found \"070707\""));
    assert!(with(6 + 8, b"+00081a4").contains("field 1 is not a hexadecimal number"));
    assert!(with(6 + 11 * 8, b"00001001").contains("1 to 4096 bytes, found 4097"));
    assert!(with(6 + 11 * 8, b"00000000").contains("found 0"));
    assert!(with(HEADER_LEN, b"\xff").contains("not UTF-8"));
}
