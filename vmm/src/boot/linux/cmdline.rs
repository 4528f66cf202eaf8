//! The command line that makes Linux replayable, in front of the user's own (LINUX-FACTS).
//!
//! One processor, PIC and PIT, the ACPI PM timer as clock, no TSC, nothing random at boot, no page or task moved behind
//! the guest's back. A user's option that contradicts one of these is refused by name, because the last one wins.

/// What every guest gets, by what it is needed for.
const NEEDED: [&str; 18] = [
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

/// The whole command line.
///
/// # Errors
/// If an option of the user's contradicts a needed one; a sentence for the user.
pub fn complete(user: &str) -> Result<String, String> {
    let options = options(user);
    for option in &options {
        check(option)?;
    }
    let named = |default: &str| options.iter().any(|option| key(option) == key(default));
    let mut words: Vec<&str> = NEEDED.to_vec();
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

fn check(option: &str) -> Result<(), String> {
    let mut needed = NEEDED.into_iter().filter(|needed| key(needed) == key(option));
    if let Some(needed) = needed.find(|needed| *needed != option) {
        return Err(format!(
            "--cmdline: '{option}' contradicts '{needed}', which a guest needs to be replayable: leave it out"
        ));
    }
    match OPPOSITES.iter().find(|(opposite, _)| *opposite == key(option)) {
        Some((_, needed)) => Err(format!(
            "--cmdline: '{option}' contradicts '{needed}', which a guest needs to be replayable: leave it out"
        )),
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
        ] {
            let error = complete(text).unwrap_err();
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
}
