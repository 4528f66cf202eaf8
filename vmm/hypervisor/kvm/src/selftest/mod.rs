//! What this host's KVM can do, tried out rather than assumed.
//!
//! Two KVMs with the same version number may differ in what matters here (KVM-FACTS): whether interrupt windows open at
//! the same instruction every time, whether page tables written by the host are seen, whether CPL0 code runs natively.
//! Tiny guests find out. The start-up form takes about a second on a slow host and is kept per boot; the thorough form
//! is for `ftvm doctor`.

pub mod bench;
mod cache;
pub mod checks;
pub mod guest;
pub mod programs;
mod run;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PageTableRefresh;
use checks::OutRip;
use ftvm_hypervisor::DeliveryMode;
use run::{STARTUP, THOROUGH};

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
pub enum CheckVerdict {
    /// As it should be.
    Ok,
    /// Guests can be protected here, with the limit that the reason states.
    Limited,
    /// Guests cannot be protected here.
    Failed,
    /// Not tried, because something before it failed or it takes too long at start-up.
    Skipped,
}

impl fmt::Display for CheckVerdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            CheckVerdict::Ok => "ok",
            CheckVerdict::Limited => "limited",
            CheckVerdict::Failed => "FAILED",
            CheckVerdict::Skipped => "skipped",
        })
    }
}

/// One check with its reason, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: CheckName,
    pub verdict: CheckVerdict,
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

/// Why Linux guests cannot run on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLinux {
    /// A check says so, or one failed that every guest needs.
    #[error("{reason}. {remedy}")]
    Unfit {
        /// What was found.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// The test was made by hand, without the check for Linux.
    #[error("this host has not been tested for Linux guests")]
    Untested,
}

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
        self.checks.iter().all(|check| check.verdict != CheckVerdict::Failed)
    }

    /// Whether Linux guests can run here.
    ///
    /// # Errors
    /// Why they cannot, and what to do.
    pub fn check_linux(&self) -> Result<(), NoLinux> {
        if self.boots_linux {
            return Ok(());
        }
        let failed = |check: &&Check| check.verdict == CheckVerdict::Failed || check.name == CheckName::KernelSpeed;
        Err(match self.checks.iter().find(failed) {
            Some(check) => NoLinux::Unfit {
                reason: check.reason.clone(),
                remedy: check.remedy.clone(),
            },
            None => NoLinux::Untested,
        })
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use ftvm_hypervisor::CpuError;

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
    fn limits_do_not_make_a_host_unusable_but_failures_do() {
        let mut found = Capabilities::without_kvm(&CpuError::Unsupported("".into()));
        found.checks.clear();
        found.note(CheckName::Cpuid, CheckVerdict::Limited, String::new(), "");
        found.note(CheckName::ExitReplay, CheckVerdict::Skipped, String::new(), "");
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
                .is_err_and(|why| why.to_string().contains("no KVM") && why.to_string().contains("nested host"))
        );
        found.checks.clear();
        found.note(CheckName::Kvm, CheckVerdict::Ok, "fine".into(), "");
        found.note(
            CheckName::KernelSpeed,
            CheckVerdict::Limited,
            "emulated".into(),
            "use hardware",
        );
        let unfit = found.check_linux().map_err(|error| error.to_string());
        assert_eq!(unfit, Err("emulated. use hardware".to_owned()));
        found.boots_linux = true;
        assert_eq!(found.check_linux(), Ok(()));
    }
}
