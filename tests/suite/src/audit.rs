//! `ftvm audit` as a user calls it: what it prints and how it ends. What it finds is tested beside its code.

use std::fs;
use std::path::Path;

use ftvm_lab::linux::{self, Settings};
use ftvm_lab::pair::ftvm;
use serde_json::Value;

fn audit(dir: &Path, image: &str) -> (i32, Value) {
    let (code, out, err) = ftvm(dir, &["audit", image, "--json"]);
    let object = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (code, object)
}

/// The kernel and the initrd of the Linux guest, in which one module is a bad one on purpose.
#[test]
fn the_linux_guest_is_audited() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        out: dir.path().to_owned(),
        run: None,
        disk_mib: None,
        sets: Vec::new(),
        locked: false,
    };
    linux::build(&settings).unwrap_or_else(|error| panic!("{error}"));
    let (code, kernel) = audit(dir.path(), "vmlinuz");
    assert_eq!(
        (code, &kernel["kind"], &kernel["refused"]),
        (0, &"kernel".into(), &Value::Null)
    );
    assert!(kernel["rewritten"].as_array().unwrap().len() > 80, "{kernel}");
    assert!(
        kernel["banner"].as_str().unwrap().starts_with("Linux version 6.1."),
        "{kernel}"
    );

    let (code, initrd) = audit(dir.path(), "initrd");
    assert_eq!((code, &initrd["kind"]), (3, &"initrd".into()));
    let findings = initrd["findings"].as_array().unwrap();
    let uncaught = findings.iter().filter(|finding| finding["verdict"] == "uncaught");
    let files: Vec<&str> = uncaught.map(|finding| finding["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["ftvm/refused/jitterentropy_rng.ko"]);
    let answered = findings.iter().filter(|finding| finding["verdict"] == "answered");
    let programs: Vec<&str> = answered.map(|finding| finding["file"].as_str().unwrap()).collect();
    assert!(programs.contains(&"ftvm/bin/rdtsc"), "{programs:?}");
    assert!(programs.contains(&"ftvm/bin/rdtscp"), "{programs:?}");

    let (code, out, err) = ftvm(dir.path(), &["audit", "initrd"]);
    assert_eq!((code, err.as_str()), (3, ""));
    assert!(
        out.contains("Uncaught: ") && out.contains("x RDTSC in ftvm/refused/jitterentropy_rng.ko"),
        "{out}"
    );
}

#[test]
fn what_cannot_be_audited_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("damaged"), b"070701damaged").unwrap();
    fs::write(dir.path().join("zeros"), [0; 8192]).unwrap();
    for (image, word) in [("absent", "absent: "), ("damaged", "damaged at byte 0")] {
        let (code, out, err) = ftvm(dir.path(), &["audit", image]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(word), "{err}");
    }
    let (code, report) = audit(dir.path(), "zeros");
    assert_eq!(
        (code, &report["kind"], &report["files"]),
        (0, &"disk".into(), &0.into())
    );
    assert_eq!(ftvm(dir.path(), &["audit"]).0, 2);
}
