//! The guest's program `power-off STATUS`: ends the machine with a status, through ftvm's port 0xF4.
//!
//! Debian's cloud kernel has no `/dev/port`, so no script can write to a port; a process may, after ioperm(2). These
//! few instructions are written out here, as those of `rdtsc`, because everything else in the guest comes as a binary
//! package: a compiler for the sake of one `out` would be one more tool to install, pin and keep reproducible.

use super::executable;

/// `STATUS` is decimal, the first argument: at `[rsp + 16]` when a process starts (System V ABI, AMD64, 3.4.1).
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x48, 0x8B, 0x74, 0x24, 0x10,   //       mov rsi, [rsp + 16]
    0x31, 0xDB,                     //       xor ebx, ebx
    0x0F, 0xB6, 0x06,               // next: movzx eax, byte [rsi]
    0x83, 0xE8, 0x30,               //       sub eax, '0'
    0x83, 0xF8, 0x09,               //       cmp eax, 9
    0x77, 0x0A,                     //       ja port
    0x6B, 0xDB, 0x0A,               //       imul ebx, ebx, 10
    0x01, 0xC3,                     //       add ebx, eax
    0x48, 0xFF, 0xC6,               //       inc rsi
    0xEB, 0xEB,                     //       jmp next
    0xB8, 0xAD, 0x00, 0x00, 0x00,   // port: mov eax, 173 (ioperm)
    0xBF, 0xF4, 0x00, 0x00, 0x00,   //       mov edi, 0xF4
    0xBE, 0x01, 0x00, 0x00, 0x00,   //       mov esi, 1
    0xBA, 0x01, 0x00, 0x00, 0x00,   //       mov edx, 1
    0x0F, 0x05,                     //       syscall
    0x85, 0xC0,                     //       test eax, eax
    0x75, 0x04,                     //       jnz exit
    0x89, 0xD8,                     //       mov eax, ebx
    0xE6, 0xF4,                     //       out 0xF4, al
    0xB8, 0x3C, 0x00, 0x00, 0x00,   // exit: mov eax, 60 (exit)
    0xBF, 0x01, 0x00, 0x00, 0x00,   //       mov edi, 1: the machine still runs
    0x0F, 0x05,                     //       syscall
];

/// The program.
pub(super) fn program() -> Vec<u8> {
    executable::of(CODE)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// The port itself is tested in the guest; `setpriv` takes the right to it away from a tester who is root.
    #[test]
    fn without_the_right_to_the_port_it_ends_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("power-off");
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let ordinary_user = status.contains("CapEff:\t0000000000000000");
        let mut command = if ordinary_user {
            Command::new(&path)
        } else {
            let mut without = Command::new("setpriv");
            without
                .args(["--inh-caps=-all", "--bounding-set=-sys_rawio", "--"])
                .arg(&path);
            without
        };
        let ran = command.arg("12").status();
        assert_eq!(ran.unwrap().code(), Some(1));
    }
}
