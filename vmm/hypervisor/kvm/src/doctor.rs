//! `ftvm doctor`: what this host can do, in a table that says why and what to do.

use std::fmt;
use std::fs;

use ftvm_schema::entry::Digest;
use serde::{Deserialize, Serialize};

use super::selftest::{Capabilities, CheckVerdict};
use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::profile::CpuProfile;

/// Columns of the rendered table, and where its lines are broken.
const NAME_WIDTH: usize = 18;
const VERDICT_WIDTH: usize = 8;
const TEXT_WIDTH: usize = 72;

/// What the user is told about this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The host's kernel release.
    pub kernel: String,
    /// The host's CPU model.
    pub cpu: String,
    /// Names the CPU that guests see here. Two hosts with the same fingerprint can run the same guests.
    pub profile_fingerprint: Option<String>,
    pub capabilities: Capabilities,
}

/// Tests this host thoroughly; takes seconds. Works without /dev/kvm too, and then says what to do.
#[must_use]
pub fn report() -> DoctorReport {
    let first_line = |path, fallback: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().next().map_or_else(|| fallback.to_owned(), str::to_owned)
    };
    DoctorReport {
        kernel: first_line("/proc/sys/kernel/osrelease", "unknown"),
        cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        profile_fingerprint: crate::profile::of_this_host(DeliveryMode::None)
            .ok()
            .map(|profile| fingerprint(&profile)),
        capabilities: Capabilities::thorough(),
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "kernel {}, {}", self.kernel, self.cpu)?;
        if let Some(fingerprint) = &self.profile_fingerprint {
            writeln!(
                formatter,
                "CPU profile {fingerprint} (a backup's host must show the same)"
            )?;
        }
        writeln!(formatter)?;
        for check in &self.capabilities.checks {
            write!(formatter, "{:NAME_WIDTH$} {:VERDICT_WIDTH$}", check.name, check.verdict)?;
            let remedy = if check.remedy.is_empty() {
                String::new()
            } else {
                format!("-> {}", check.remedy)
            };
            let lines = [check.reason.as_str(), &remedy];
            let mut lines = lines.into_iter().flat_map(wrap);
            writeln!(formatter, " {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(formatter, "{:1$} {line}", "", NAME_WIDTH + 1 + VERDICT_WIDTH)?;
            }
        }
        writeln!(formatter)?;
        formatter.write_str(self.conclusion())
    }
}

impl DoctorReport {
    fn conclusion(&self) -> &'static str {
        let limited = self
            .capabilities
            .checks
            .iter()
            .any(|check| check.verdict == CheckVerdict::Limited);
        match (self.capabilities.is_usable(), limited) {
            (true, false) => "Guests can be protected on this host.",
            (true, true) => "Guests can be protected on this host, with the limits above.",
            (false, _) => "Guests cannot be protected on this host.",
        }
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.trim().to_owned())
}

fn fingerprint(profile: &CpuProfile) -> String {
    let mut digest = Digest::default();
    for entry in &profile.cpuid {
        for word in [
            entry.leaf,
            entry.subleaf.unwrap_or(u32::MAX),
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ] {
            digest.fold(word.into());
        }
    }
    format!("{:016x}", digest.0)
}

/// Breaks a text at spaces into lines of at most [`TEXT_WIDTH`] characters; a longer word stays whole.
fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= TEXT_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::{Check, CheckName};
    use ftvm_hypervisor::profile::CpuidEntry;

    fn report_with(checks: Vec<Check>) -> DoctorReport {
        let capabilities = Capabilities {
            checks,
            delivery_modes: vec![DeliveryMode::None],
            host_pt_write_visible: true,
            out_rip: None,
            boots_linux: true,
        };
        let fingerprint = Some("0123456789abcdef".into());
        DoctorReport {
            kernel: "6.1.0".into(),
            cpu: "A CPU".into(),
            profile_fingerprint: fingerprint,
            capabilities,
        }
    }

    fn check(name: CheckName, verdict: CheckVerdict, reason: &str, remedy: &str) -> Check {
        Check {
            name,
            verdict,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    #[test]
    fn the_table_shows_reason_and_remedy() {
        let report = report_with(vec![
            check(CheckName::Kvm, CheckVerdict::Ok, "fine", ""),
            check(
                CheckName::KernelSpeed,
                CheckVerdict::Limited,
                "slow",
                "buy a faster one",
            ),
        ]);
        let expected = "kernel 6.1.0, A CPU\n\
            CPU profile 0123456789abcdef (a backup's host must show the same)\n\n\
            kvm                ok       fine\n\
            kernel code        limited  slow\n\
            \x20                           -> buy a faster one\n\n\
            Guests can be protected on this host, with the limits above.";
        assert_eq!(report.to_string(), expected);
        assert!(report.capabilities.is_usable());
    }

    #[test]
    fn a_failed_check_fails_the_host() {
        let report = report_with(vec![check(
            CheckName::DirtyLog,
            CheckVerdict::Failed,
            "missed page 0x7",
            "report it",
        )]);
        assert!(!report.capabilities.is_usable());
        assert!(report.to_string().ends_with("Guests cannot be protected on this host."));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["capabilities"]["checks"][0]["verdict"], "failed");
        assert_eq!(json["capabilities"]["checks"][0]["name"], "dirty-log");
        assert_eq!(serde_json::from_value::<DoctorReport>(json).unwrap(), report);
    }

    #[test]
    fn lines_break_at_spaces() {
        let long = "word ".repeat(30);
        assert!(wrap(&long).iter().all(|line| line.len() <= TEXT_WIDTH));
        assert_eq!(wrap(&long).join(" "), long.trim());
        assert_eq!(wrap(&"x".repeat(TEXT_WIDTH + 1)).len(), 1);
        assert!(wrap("").is_empty());
    }

    #[test]
    fn the_cpu_model_is_found_or_unknown() {
        assert_eq!(
            cpu_model("processor : 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n"),
            "AMD EPYC"
        );
        assert_eq!(cpu_model(""), "unknown CPU");
    }

    #[test]
    fn every_part_of_the_profile_is_in_its_fingerprint() {
        let profile = |entry| CpuProfile {
            cpuid: vec![entry],
            delivery: DeliveryMode::None,
        };
        let base = CpuidEntry {
            leaf: 1,
            ..CpuidEntry::default()
        };
        let changed = [
            CpuidEntry { leaf: 2, ..base },
            CpuidEntry {
                subleaf: Some(0),
                ..base
            },
            CpuidEntry { eax: 1, ..base },
            CpuidEntry { edx: 1, ..base },
        ];
        for entry in changed {
            assert_ne!(fingerprint(&profile(entry)), fingerprint(&profile(base)), "{entry:?}");
        }
    }
}
