//! A built-in guest is the same guest in QEMU, as the comparison of clones needs it.

use std::process::{Command, Stdio};

use ftvm_lab::nested::programs;

/// What `isa-debug-exit` makes of the exit status 0.
const ENDED_WELL: i32 = 1;

/// Without KVM: what is asked is the second way in, PVH, and where a PC has the ports of the boot contract.
#[test]
fn a_built_in_guest_boots_in_qemu_too() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("pulse.elf");
    std::fs::write(&image, guest_images::find("pulse").unwrap().image).unwrap();
    let ran = Command::new(programs::find("timeout").unwrap())
        .arg("120")
        .arg(programs::find("qemu-system-x86_64").unwrap())
        .args([
            "-M",
            "pc,accel=tcg",
            "-m",
            "64",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .args(["-append", "ticks=12", "-kernel"])
        .arg(&image)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(ENDED_WELL), "{said}{errors}");
    assert!(said.trim_end().ends_with("pulse 12"), "{said}");
}
