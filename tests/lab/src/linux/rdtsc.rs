//! The guest's programs `rdtsc` and `rdtscp`: read the time stamp counter as an ordinary process does, without asking CPUID.
//!
//! Each reads it eight times, prints every value in hexadecimal, and ends with 1 if one is not larger than that before.
//! Between two reads they refuse themselves the counter and allow it again (prctl(2), PR_SET_TSC), and sleep after both,
//! so that the kernel changes CR4.TSD wherever it can: at once, and when it switches to another task and back.

use super::executable;

/// The two instructions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Read {
    Rdtsc,
    Rdtscp,
}

#[rustfmt::skip]
const BEFORE: &[u8] = &[
    0x45, 0x31, 0xE4,                   //         xor r12d, r12d
    0x41, 0xBD, 0x08, 0x00, 0x00, 0x00, //         mov r13d, 8: so many reads
];
/// `next:` is here; `rdtsc` with a `nop`, as long as the other.
const RDTSC: [u8; 3] = [0x0F, 0x31, 0x90];
const RDTSCP: [u8; 3] = [0x0F, 0x01, 0xF9];
#[rustfmt::skip]
const AFTER: &[u8] = &[
    0x48, 0xC1, 0xE2, 0x20,             //         shl rdx, 32
    0x48, 0x09, 0xD0,                   //         or rax, rdx
    0x4C, 0x39, 0xE0,                   //         cmp rax, r12
    0x76, 0x7A,                         //         jbe wrong: it does not ascend
    0x49, 0x89, 0xC4,                   //         mov r12, rax
    0x48, 0x89, 0xE6,                   //         mov rsi, rsp
    0xBA, 0x0A, 0x00, 0x00, 0x00,       //         mov edx, 10
    0xB9, 0x11, 0x00, 0x00, 0x00,       //         mov ecx, 17
    0x48, 0xFF, 0xCE,                   // store:  dec rsi
    0x88, 0x16,                         //         mov [rsi], dl
    0xFF, 0xC9,                         //         dec ecx
    0x74, 0x16,                         //         jz print
    0x89, 0xC2,                         //         mov edx, eax
    0x48, 0xC1, 0xE8, 0x04,             //         shr rax, 4
    0x83, 0xE2, 0x0F,                   //         and edx, 15
    0x83, 0xC2, 0x30,                   //         add edx, 48
    0x83, 0xFA, 0x3A,                   //         cmp edx, 58
    0x72, 0xE6,                         //         jb store
    0x83, 0xC2, 0x27,                   //         add edx, 39: 'a' follows '9'
    0xEB, 0xE1,                         //         jmp store
    0xBA, 0x11, 0x00, 0x00, 0x00,       // print:  mov edx, 17
    0xBF, 0x01, 0x00, 0x00, 0x00,       //         mov edi, 1
    0x89, 0xF8,                         //         mov eax, edi (write)
    0x0F, 0x05,                         //         syscall
    0xBB, 0x02, 0x00, 0x00, 0x00,       //         mov ebx, 2 (PR_TSC_SIGSEGV), and then 1 (PR_TSC_ENABLE)
    0xBF, 0x1A, 0x00, 0x00, 0x00,       // mode:   mov edi, 26 (PR_SET_TSC)
    0x89, 0xDE,                         //         mov esi, ebx
    0xB8, 0x9D, 0x00, 0x00, 0x00,       //         mov eax, 157 (prctl)
    0x0F, 0x05,                         //         syscall
    0x85, 0xC0,                         //         test eax, eax
    0x75, 0x26,                         //         jnz wrong
    0x68, 0x40, 0x42, 0x0F, 0x00,       //         push 1000000: nanoseconds
    0x6A, 0x00,                         //         push 0
    0x48, 0x89, 0xE7,                   //         mov rdi, rsp
    0x31, 0xF6,                         //         xor esi, esi
    0xB8, 0x23, 0x00, 0x00, 0x00,       //         mov eax, 35 (nanosleep)
    0x0F, 0x05,                         //         syscall
    0x58,                               //         pop rax
    0x58,                               //         pop rax
    0xFF, 0xCB,                         //         dec ebx
    0x75, 0xD5,                         //         jnz mode
    0x41, 0xFF, 0xCD,                   //         dec r13d
    0x0F, 0x85, 0x7B, 0xFF, 0xFF, 0xFF, //         jnz next
    0x31, 0xFF,                         //         xor edi, edi
    0xEB, 0x05,                         //         jmp exit
    0xBF, 0x01, 0x00, 0x00, 0x00,       // wrong:  mov edi, 1
    0xB8, 0x3C, 0x00, 0x00, 0x00,       // exit:   mov eax, 60 (exit)
    0x0F, 0x05,                         //         syscall
];

/// The program.
pub(super) fn program(read: Read) -> Vec<u8> {
    let instruction = match read {
        Read::Rdtsc => RDTSC,
        Read::Rdtscp => RDTSCP,
    };
    executable::of(&[BEFORE, &instruction, AFTER].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// On this machine the counter is the processor's own.
    #[test]
    fn it_prints_ascending_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rdtsc");
        fs::write(&path, program(Read::Rdtsc)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let ran = Command::new(&path).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let text = String::from_utf8(ran.stdout).unwrap();
        let values: Vec<u64> = text
            .lines()
            .map(|line| u64::from_str_radix(line, 16).unwrap())
            .collect();
        assert_eq!(values.len(), 8, "{text}");
        assert!(values.is_sorted_by(|a, b| a < b), "{text}");
    }
}
