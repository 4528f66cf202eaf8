//! The command line that makes Linux replayable, in front of the user's own (LINUX-FACTS).
//!
//! One processor, PIC and PIT, the ACPI PM timer as clock, no TSC, nothing random at boot, no page or task moved behind
//! the guest's back, no code at CPL 0 that was not rewritten: neither a module with RDTSC nor, by kexec, another kernel
//! (the sysctl, set so since Linux 5.8, cannot be taken back: kernel/kexec_core.c). A user's option that contradicts
//! one of these is refused by name, because the last one wins.

use std::collections::BTreeSet;

/// What every guest gets, by what it is needed for.
const NEEDED: [&str; 19] = [
    "nokaslr",
    "mitigations=off",
    "lpj=4000000",
    "clocksource=acpi_pm",
    "pmtmr=0x608",
    "tsc=unstable",
    "no_timer_check",
    "random.trust_cpu=off",
    "acpi=off",
    "noapic",
    "nolapic",
    "nosmp",
    "io_delay=none",
    "pci=conf1",
    "randomize_kstack_offset=off",
    "transparent_hugepage=never",
    "numa_balancing=disable",
    "random.trust_bootloader=on",
    "sysctl.kernel.kexec_load_disabled=1",
];

/// Modules that execute RDTSC, in Linux 6.1 (kvm_amd and kvm_intel need kvm): kept out wherever they lie.
const UNCAUGHT_MODULES: [&str; 6] = [
    "intel_powerclamp",
    "jitterentropy_rng",
    "kvm",
    "kvm_amd",
    "kvm_intel",
    "tcrypt",
];

/// What a guest gets unless the user names the same option.
const DEFAULTS: [&str; 3] = ["console=ttyS0", "panic=-1", "reboot=t"];

/// Options that undo a needed one under another name, and the needed one.
const OPPOSITES: [(&str, &str); 5] = [
    ("kaslr", "nokaslr"),
    ("apic", "noapic"),
    ("lapic", "nolapic"),
    ("maxcpus", "nosmp"),
    ("nr_cpus", "nosmp"),
];

/// A user's option that would undo one which a guest needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--cmdline: '{option}' contradicts '{needed}', which a guest needs to be replayable: leave it out")]
pub struct Contradiction {
    /// As the user wrote it.
    pub option: String,
    pub needed: String,
}

/// The whole command line, by which the kernel also refuses to load the modules `kept_out`.
///
/// # Errors
/// If an option of the user's contradicts a needed one.
pub fn complete(user: &str, kept_out: &BTreeSet<String>) -> Result<String, Contradiction> {
    let modules: BTreeSet<&str> = UNCAUGHT_MODULES
        .into_iter()
        .chain(kept_out.iter().map(String::as_str))
        .collect();
    let blacklist = format!("module_blacklist={}", Vec::from_iter(modules).join(","));
    let mut words: Vec<&str> = NEEDED.into_iter().chain([blacklist.as_str()]).collect();
    let options = options(user);
    for option in &options {
        check(option, &words)?;
    }
    let named = |default: &str| options.iter().any(|option| key(option) == key(default));
    words.extend(DEFAULTS.into_iter().filter(|default| !named(default)));
    if !user.trim().is_empty() {
        words.push(user.trim());
    }
    Ok(words.join(" "))
}

fn key(option: &str) -> String {
    // Linux takes dashes and underscores of a parameter's name for the same.
    option.split('=').next().unwrap_or_default().replace('-', "_")
}

fn check(option: &str, needed: &[&str]) -> Result<(), Contradiction> {
    let same = needed.iter().filter(|needed| key(needed) == key(option));
    let opposite = OPPOSITES.iter().filter(|(opposite, _)| *opposite == key(option));
    let undone = same
        .copied()
        .find(|needed| *needed != option)
        .or_else(|| opposite.map(|(_, needed)| *needed).next());
    match undone {
        Some(needed) => Err(Contradiction {
            option: option.to_owned(),
            needed: needed.to_owned(),
        }),
        None => Ok(()),
    }
}

/// The kernel's options in `text`: words, with spaces inside double quotes, up to `--` (what follows is for init).
fn options(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for letter in text.chars().chain([' ']) {
        match letter {
            '"' => quoted = !quoted,
            ' ' | '\t' | '\n' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    words.extend((!word.is_empty()).then_some(word.trim_end().to_owned()));
    if let Some(end) = words.iter().position(|word| word == "--") {
        words.truncate(end);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(user: &str) -> Result<String, Contradiction> {
        super::complete(user, &BTreeSet::new())
    }

    #[test]
    fn the_users_options_come_last_and_the_console_is_a_default() {
        let line = complete(" quiet root=/dev/vda ").unwrap();
        assert!(line.starts_with("nokaslr mitigations=off "), "{line}");
        assert!(
            line.ends_with(" console=ttyS0 panic=-1 reboot=t quiet root=/dev/vda"),
            "{line}"
        );
        let line = complete("console=hvc0 panic=5").unwrap();
        assert!(line.ends_with(" reboot=t console=hvc0 panic=5"), "{line}");
        assert!(complete("").unwrap().ends_with(" reboot=t"));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (text, named) in [
            ("clocksource=tsc", "clocksource=acpi_pm"),
            ("quiet \"tsc=reliable\"", "tsc=unstable"),
            ("kaslr", "nokaslr"),
            ("nr_cpus=2", "nosmp"),
            ("random.trust-cpu=on", "random.trust_cpu=off"),
            ("\"acpi=force", "acpi=off"),
            ("randomize_kstack_offset=on", "randomize_kstack_offset=off"),
            ("randomize-kstack-offset", "randomize_kstack_offset=off"),
            ("transparent_hugepage=always", "transparent_hugepage=never"),
            ("numa_balancing=enable", "numa_balancing=disable"),
            ("module_blacklist=floppy", "module_blacklist=intel_powerclamp,"),
            ("module-blacklist=", "module_blacklist=intel_powerclamp,"),
            (
                "sysctl.kernel.kexec_load_disabled=0",
                "sysctl.kernel.kexec_load_disabled=1",
            ),
        ] {
            let error = complete(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for text in [
            "clocksource=acpi_pm nosmp",
            "-- clocksource=tsc",
            "x=\"a clocksource=tsc\"",
        ] {
            assert!(complete(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_not_rewritten_is_kept_out() {
        let words = |line: String| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let usual = words(complete("").unwrap());
        let listed = "module_blacklist=intel_powerclamp,jitterentropy_rng,kvm,kvm_amd,kvm_intel,tcrypt";
        for word in [
            listed,
            "sysctl.kernel.kexec_load_disabled=1",
            "randomize_kstack_offset=off",
            "transparent_hugepage=never",
            "numa_balancing=disable",
        ] {
            assert!(usual.iter().any(|found| found == word), "{word}: {usual:?}");
        }
        let found = ["kvm", "a_module"].map(str::to_owned).into();
        let line = words(super::complete("quiet", &found).unwrap());
        let listed = "module_blacklist=a_module,intel_powerclamp,jitterentropy_rng,kvm,kvm_amd,kvm_intel,tcrypt";
        assert!(line.iter().any(|word| word == listed), "each once: {line:?}");
    }
}
