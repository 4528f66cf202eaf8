//! Instructions whose result differs between two runs, and what becomes of each in a guest.
//!
//! What CPUID hides is not trapped by every processor: a program that executes RDRAND without asking gets random bits
//! on kvm-amd (APM volume 3), and a replay diverges. CR4.TSD traps RDTSC and RDTSCP in user mode whatever CPUID says.

use iced_x86::Mnemonic;
use serde::Serialize;

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// The kernel's image, which is rewritten at load.
    Kernel,
    /// A kernel module: runs at CPL 0 and is not rewritten.
    Module,
    /// A program or library.
    Program,
}

/// What becomes of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consequence {
    /// Replaced at load, or trapped and answered.
    Answered,
    /// Faults the same way every time, or is patched out by the kernel's alternatives.
    Harmless,
    /// Executed only by code that does not ask CPUID first; then a replay diverges.
    Hidden,
    /// Not caught: a replay diverges when it is executed.
    Uncaught,
}

/// The kinds that are looked for, each with its verdict and why.
#[must_use]
pub fn judge(mnemonic: Mnemonic, owner: Owner) -> Option<(Consequence, &'static str)> {
    use Mnemonic as M;
    let alternatives = "hidden in CPUID, so the kernel's alternatives and static keys leave it out";
    Some(match (mnemonic, owner) {
        (M::Rdtsc, Owner::Kernel) => (Consequence::Answered, "rewritten at load"),
        (M::Rdtsc, Owner::Module) => (
            Consequence::Uncaught,
            "a module's RDTSC is NOT caught: ftvm keeps it out where it is in the initrd, else do not load it",
        ),
        (M::Rdtscp, Owner::Module) => (
            Consequence::Hidden,
            "a module's RDTSCP is NOT caught, but CPUID hides it",
        ),
        (M::Rdtsc | M::Rdtscp, Owner::Program) => (Consequence::Answered, "trapped by CR4.TSD and answered"),
        (M::Rdpmc, Owner::Program) => (Consequence::Harmless, "CR4.PCE is clear, so it faults every time"),
        (
            M::Xgetbv
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaves
            | M::Xsaves64,
            _,
        ) => (
            Consequence::Harmless,
            "CR4.OSXSAVE stays clear, so it faults every time",
        ),
        (M::Rdpid, _) => (
            Consequence::Harmless,
            "IA32_TSC_AUX is never written, so it reads 0 or faults",
        ),
        (M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpmc | M::Rdpru, Owner::Kernel) => {
            (Consequence::Harmless, alternatives)
        }
        (M::Xbegin | M::Tpause | M::Umwait | M::Mwait | M::Mwaitx, Owner::Kernel) => {
            (Consequence::Harmless, alternatives)
        }
        (M::Rdrand | M::Rdseed | M::Rdpru | M::Rdpmc | M::Xbegin | M::Tpause | M::Umwait | M::Mwait | M::Mwaitx, _) => {
            (
                Consequence::Hidden,
                "hidden in CPUID; a replay diverges if it is executed without asking CPUID first",
            )
        }
        _ => return None,
    })
}
