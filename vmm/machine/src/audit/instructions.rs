//! Instructions whose result differs between two runs, and what becomes of each in a guest.
//!
//! What CPUID hides is not trapped by every processor: a program that executes RDRAND without asking gets random bits on
//! kvm-amd (APM volume 3), and a replay diverges. CR4.TSD traps RDTSC and RDTSCP in user mode whatever CPUID says.

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
pub enum Verdict {
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
pub fn judge(mnemonic: Mnemonic, owner: Owner) -> Option<(Verdict, &'static str)> {
    use Mnemonic as M;
    let alternatives = "hidden in CPUID, so the kernel's alternatives and static keys leave it out";
    Some(match (mnemonic, owner) {
        (M::Rdtsc, Owner::Kernel) => (Verdict::Answered, "rewritten at load"),
        (M::Rdtsc, Owner::Module) => (
            Verdict::Uncaught,
            "a module's RDTSC is NOT caught: ftvm keeps it out where it is in the initrd, else do not load it",
        ),
        (M::Rdtscp, Owner::Module) => (Verdict::Hidden, "a module's RDTSCP is NOT caught, but CPUID hides it"),
        (M::Rdtsc | M::Rdtscp, Owner::Program) => (Verdict::Answered, "trapped by CR4.TSD and answered"),
        (M::Rdpmc, Owner::Program) => (Verdict::Harmless, "CR4.PCE is clear, so it faults every time"),
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
        ) => (Verdict::Harmless, "CR4.OSXSAVE stays clear, so it faults every time"),
        (M::Rdpid, _) => (
            Verdict::Harmless,
            "IA32_TSC_AUX is never written, so it reads 0 or faults",
        ),
        (M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpmc | M::Rdpru, Owner::Kernel) => (Verdict::Harmless, alternatives),
        (M::Xbegin | M::Tpause | M::Umwait | M::Mwait | M::Mwaitx, Owner::Kernel) => (Verdict::Harmless, alternatives),
        (M::Rdrand | M::Rdseed | M::Rdpru | M::Rdpmc | M::Xbegin | M::Tpause | M::Umwait | M::Mwait | M::Mwaitx, _) => {
            (
                Verdict::Hidden,
                "hidden in CPUID; a replay diverges if it is executed without asking CPUID first",
            )
        }
        _ => return None,
    })
}
