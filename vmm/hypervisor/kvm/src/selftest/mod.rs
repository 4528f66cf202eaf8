//! What this host's KVM can do, tried out rather than assumed.
//!
//! Two KVMs with the same version number may differ in what matters here (KVM-FACTS): whether interrupt windows open at
//! the same instruction every time, whether page tables written by the host are seen, whether CPL0 code runs natively.
//! Tiny guests find out. The start-up form takes about a second on a slow host and is kept per boot; the thorough form is for
//! `ftvm doctor`.

pub mod bench;
mod cache;
pub mod checks;
pub mod guest;
pub mod programs;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PageTableRefresh;
use crate::system::System;
use bench::Bench;
use checks::{Finding, OutRip, RAM};
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::{CpuError, DeliveryMode};
use guest::Privilege;

/// Something about this host that matters to a protected guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckName {
    /// /dev/kvm opens and has the API that is needed.
    Kvm,
    /// Accesses that take several exits are completed one by one.
    Fragments,
    /// Exits, interrupts and memory replay exactly.
    ExitReplay,
    /// A vCPU saved anywhere runs on from there in another VM.
    SaveRestore,
    /// The dirty log names every page that was written.
    DirtyLog,
    /// Interrupt windows open at the same instruction every time.
    InterruptWindow,
    /// Page tables written by the host are seen by the guest.
    HostPageTables,
    /// Guests see the CPUID table that they were given.
    Cpuid,
    /// CPL0 code runs natively, so that Linux can boot.
    KernelSpeed,
}

impl fmt::Display for CheckName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            CheckName::Kvm => "kvm",
            CheckName::Fragments => "exit fragments",
            CheckName::ExitReplay => "exit replay",
            CheckName::SaveRestore => "save and restore",
            CheckName::DirtyLog => "dirty log",
            CheckName::InterruptWindow => "interrupt window",
            CheckName::HostPageTables => "host page tables",
            CheckName::Cpuid => "cpuid",
            CheckName::KernelSpeed => "kernel code",
        })
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Guests can be protected here, with the limit that the reason states.
    Limited,
    /// Guests cannot be protected here.
    Failed,
    /// Not tried, because something before it failed or it takes too long at start-up.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Limited => "limited",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        })
    }
}

/// One check with its reason, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: CheckName,
    pub verdict: Verdict,
    pub reason: String,
    /// Empty where there is nothing to do.
    pub remedy: String,
}

/// What this host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub checks: Vec<Check>,
    /// How interrupts that find the guest not ready can be delivered here, best first; `None` works everywhere.
    pub delivery_modes: Vec<DeliveryMode>,
    /// Whether an MMU reset is enough for the vCPU to see page tables that the host has written.
    pub host_pt_write_visible: bool,
    /// Where RIP stands at an OUT exit, if it could be tried.
    pub out_rip: Option<OutRip>,
    /// Whether Linux guests can run here natively.
    pub boots_linux: bool,
}

/// How hard to try.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Windows of each kind and mode.
    windows: u32,
    restores: u32,
    harvests: u32,
    /// Exits of each privilege level that are replayed; 0 skips the check.
    replayed_exits: u32,
}

const STARTUP: Effort = Effort {
    windows: 48,
    restores: 2,
    harvests: 2,
    replayed_exits: 0,
};
const THOROUGH: Effort = Effort {
    windows: 300,
    restores: 12,
    harvests: 12,
    replayed_exits: 5_000,
};

impl Capabilities {
    /// What this host can do, from the last test since it booted, or tested now.
    #[must_use]
    pub fn at_startup() -> Self {
        if let Some(known) = cache::load() {
            return known;
        }
        let found = Self::test(STARTUP);
        cache::store(&found);
        found
    }

    /// Tests everything thoroughly: a few seconds on hardware, half a minute on a slow host.
    #[must_use]
    pub fn thorough() -> Self {
        Self::test(THOROUGH)
    }

    /// Whether guests can be protected here: nothing failed.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Failed)
    }

    /// Whether Linux guests can run here.
    ///
    /// # Errors
    /// Why they cannot, and what to do.
    pub fn check_linux(&self) -> Result<(), String> {
        if self.boots_linux {
            return Ok(());
        }
        let failed = |check: &&Check| check.verdict == Verdict::Failed || check.name == CheckName::KernelSpeed;
        Err(match self.checks.iter().find(failed) {
            Some(check) => format!("{}. {}", check.reason, check.remedy),
            None => "this host has not been tested for Linux guests".to_owned(),
        })
    }

    /// The best way of delivery that this host and one with `theirs` both have.
    #[must_use]
    pub fn common_delivery(&self, theirs: &[DeliveryMode]) -> DeliveryMode {
        self.delivery_modes
            .iter()
            .copied()
            .find(|mode| theirs.contains(mode))
            .unwrap_or(DeliveryMode::None)
    }

    /// The best way of delivery here.
    #[must_use]
    pub fn best_delivery(&self) -> DeliveryMode {
        self.delivery_modes.first().copied().unwrap_or(DeliveryMode::None)
    }

    /// How restores should make page tables visible.
    #[must_use]
    pub fn page_table_refresh(&self) -> PageTableRefresh {
        if self.host_pt_write_visible {
            PageTableRefresh::MmuReset
        } else {
            PageTableRefresh::ReplaceSlots
        }
    }

    fn without_kvm(error: &CpuError) -> Self {
        let mut capabilities = Capabilities {
            checks: Vec::new(),
            delivery_modes: vec![DeliveryMode::None],
            host_pt_write_visible: false,
            out_rip: None,
            boots_linux: false,
        };
        let remedy = "use a host with KVM, or try ftvm in the nested host: QEMU emulates a machine with AMD-V, no /dev/kvm needed";
        capabilities.note(CheckName::Kvm, Verdict::Failed, error.to_string(), remedy);
        capabilities
    }

    fn test(effort: Effort) -> Self {
        let prepared = System::open().and_then(|system| {
            let profile = crate::profile::of_system(&system, DeliveryMode::None)?;
            Ok((Bench::new(RAM, &profile)?, profile))
        });
        let (mut bench, profile) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Self::without_kvm(&error),
        };
        let mut found = Capabilities {
            checks: Vec::new(),
            delivery_modes: Vec::new(),
            host_pt_write_visible: false,
            out_rip: checks::out_rip(&mut bench).ok(),
            boots_linux: false,
        };
        found.note(
            CheckName::Kvm,
            Verdict::Ok,
            "/dev/kvm has everything that is needed".into(),
            "",
        );
        let fatal = "report this host's kernel and CPU; guests cannot be protected here";
        found.must_hold(CheckName::Fragments, checks::fragments(&mut bench), "exact", fatal);
        found.exit_replay(&profile, effort);
        let restored = checks::save_restore(&mut bench, &profile, effort.restores);
        found.must_hold(
            CheckName::SaveRestore,
            restored,
            "a vCPU runs on exactly where it was saved",
            fatal,
        );
        let logged = checks::dirty_log(&mut bench, effort.harvests);
        found.must_hold(CheckName::DirtyLog, logged, "no written page was missed", fatal);
        found.interrupt_window(&mut bench, effort);
        found.host_page_tables(&mut bench);
        found.cpuid(&mut bench, &profile);
        found.kernel_speed(&mut bench);
        found
    }

    fn note(&mut self, name: CheckName, verdict: Verdict, reason: String, remedy: &str) {
        self.checks.push(Check {
            name,
            verdict,
            reason,
            remedy: remedy.to_owned(),
        });
    }

    fn must_hold(&mut self, name: CheckName, found: Result<Finding, CpuError>, fine: &str, remedy: &str) {
        match found {
            Ok(None) => self.note(name, Verdict::Ok, fine.to_owned(), ""),
            Ok(Some(finding)) => self.note(name, Verdict::Failed, finding, remedy),
            Err(error) => self.note(name, Verdict::Failed, error.to_string(), remedy),
        }
    }

    fn exit_replay(&mut self, profile: &CpuProfile, effort: Effort) {
        let exits = effort.replayed_exits;
        if exits == 0 {
            return self.note(
                CheckName::ExitReplay,
                Verdict::Skipped,
                "only in `ftvm doctor`".into(),
                "",
            );
        }
        let replayed = [Privilege::Kernel, Privilege::User]
            .into_iter()
            .map(|privilege| checks::exit_replay(profile, privilege, exits, 1))
            .find(|found| !matches!(found, Ok(None)))
            .unwrap_or(Ok(None));
        let fine = format!("{exits} exits with interrupts replayed exactly, in kernel and user mode");
        self.must_hold(
            CheckName::ExitReplay,
            replayed,
            &fine,
            "report this host's kernel and CPU",
        );
    }

    fn interrupt_window(&mut self, bench: &mut Bench, effort: Effort) {
        let mut finding = String::new();
        for mode in [DeliveryMode::Window, DeliveryMode::WindowStiStep] {
            match checks::window(bench, mode, effort.windows) {
                Ok(None) => self.delivery_modes.push(mode),
                Ok(Some(found)) => finding = found,
                Err(error) => finding = error.to_string(),
            }
        }
        bench.cpu.set_delivery_mode(DeliveryMode::None);
        self.delivery_modes.push(DeliveryMode::None);
        let (verdict, reason) = match self.best_delivery() {
            DeliveryMode::Window => (Verdict::Ok, "windows open at the same instruction every time".into()),
            DeliveryMode::WindowStiStep => (
                Verdict::Ok,
                "windows are exact with one single step behind `sti` (QEMU's TCG needs it)".into(),
            ),
            DeliveryMode::None => (
                Verdict::Limited,
                format!(
                    "windows are not exact ({finding}): an interrupt waits for an exit with IF = 1, or for a checkpoint"
                ),
            ),
        };
        self.note(CheckName::InterruptWindow, verdict, reason, "");
    }

    fn host_page_tables(&mut self, bench: &mut Bench) {
        let name = CheckName::HostPageTables;
        match checks::host_page_tables(bench, PageTableRefresh::MmuReset) {
            Ok(None) => {
                self.host_pt_write_visible = true;
                self.note(name, Verdict::Ok, "seen after an MMU reset".into(), "");
            }
            _ => match checks::host_page_tables(bench, PageTableRefresh::ReplaceSlots) {
                Ok(None) => {
                    let reason = "seen only after replacing the memory slots: checkpoints take longer to apply";
                    self.note(name, Verdict::Limited, reason.into(), "");
                }
                found => self.must_hold(
                    name,
                    found,
                    "",
                    "a backup cannot apply checkpoints here: use another host",
                ),
            },
        }
    }

    fn cpuid(&mut self, bench: &mut Bench, profile: &CpuProfile) {
        match checks::cpuid(bench, profile) {
            Ok(None) => self.note(
                CheckName::Cpuid,
                Verdict::Ok,
                "guests see the fixed CPU profile".into(),
                "",
            ),
            Ok(Some(finding)) => {
                let remedy = "guests must not choose code by CPUID here; use hardware virtualization for those that do";
                self.note(CheckName::Cpuid, Verdict::Limited, finding, remedy);
            }
            Err(error) => self.note(
                CheckName::Cpuid,
                Verdict::Failed,
                error.to_string(),
                "report this host's kernel",
            ),
        }
    }

    fn kernel_speed(&mut self, bench: &mut Bench) {
        match checks::kernel_speed(bench) {
            Ok((each, true)) => {
                self.boots_linux = true;
                let reason = format!("native ({each:?} for a loop of two instructions): Linux guests can boot");
                self.note(CheckName::KernelSpeed, Verdict::Ok, reason, "");
            }
            Ok((each, false)) => {
                let reason =
                    format!("emulated by KVM ({each:?} for a loop of two instructions): Linux guests cannot boot");
                let remedy = "run bare-metal guests here; for Linux guests use VMX or SVM hardware, or the nested host";
                self.note(CheckName::KernelSpeed, Verdict::Limited, reason, remedy);
            }
            Err(error) => {
                self.note(
                    CheckName::KernelSpeed,
                    Verdict::Failed,
                    error.to_string(),
                    "report this host's kernel",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_kvm_is_told_what_to_do() {
        let found = Capabilities::without_kvm(&CpuError::Unsupported("there is no /dev/kvm".into()));
        assert!(!found.is_usable());
        assert_eq!(found.checks[0].reason, "there is no /dev/kvm");
        assert!(found.checks[0].remedy.contains("nested host"));
        assert_eq!(found.best_delivery(), DeliveryMode::None);
        assert_eq!(found.page_table_refresh(), PageTableRefresh::ReplaceSlots);
    }

    #[test]
    fn a_pair_delivers_in_the_best_way_that_both_have() {
        use DeliveryMode::{None, Window, WindowStiStep};
        let mut ours = Capabilities::without_kvm(&CpuError::Unsupported(String::new()));
        ours.delivery_modes = vec![Window, WindowStiStep, None];
        assert_eq!(ours.common_delivery(&[WindowStiStep, None]), WindowStiStep);
        assert_eq!(ours.common_delivery(&[Window, WindowStiStep, None]), Window);
        assert_eq!(ours.common_delivery(&[None]), None);
        assert_eq!(ours.common_delivery(&[]), None);
        ours.delivery_modes = vec![WindowStiStep, None];
        assert_eq!(ours.common_delivery(&[Window, None]), None);
    }

    #[test]
    fn limits_do_not_make_a_host_unusable_but_failures_do() {
        let mut found = Capabilities::without_kvm(&CpuError::Unsupported(String::new()));
        found.checks.clear();
        found.note(CheckName::Cpuid, Verdict::Limited, String::new(), "");
        found.note(CheckName::ExitReplay, Verdict::Skipped, String::new(), "");
        assert!(found.is_usable());
        found.must_hold(
            CheckName::DirtyLog,
            Ok(Some("missed page 0x7".into())),
            "fine",
            "remedy",
        );
        assert!(!found.is_usable());
        assert_eq!(found.checks[2].reason, "missed page 0x7");
    }

    #[test]
    fn linux_runs_only_where_kernel_code_does_natively() {
        let mut found = Capabilities::without_kvm(&CpuError::Unsupported("no KVM".into()));
        assert!(
            found
                .check_linux()
                .is_err_and(|why| why.contains("no KVM") && why.contains("nested host"))
        );
        found.checks.clear();
        found.note(CheckName::Kvm, Verdict::Ok, "fine".into(), "");
        found.note(
            CheckName::KernelSpeed,
            Verdict::Limited,
            "emulated".into(),
            "use hardware",
        );
        assert_eq!(found.check_linux(), Err("emulated. use hardware".to_owned()));
        found.boots_linux = true;
        assert_eq!(found.check_linux(), Ok(()));
    }
}
