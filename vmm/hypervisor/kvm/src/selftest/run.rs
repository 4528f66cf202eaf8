//! Carries out the checks, quickly or thoroughly, and says of each what it means for a guest.

use ftvm_hypervisor::profile::CpuProfile;
use ftvm_hypervisor::{CpuError, DeliveryMode};

use super::bench::VcpuBench;
use super::checks::{self, Deviation, RAM};
use super::guest::Privilege;
use super::{Capabilities, Check, CheckName, CheckVerdict};
use crate::PageTableRefresh;
use crate::system::System;

/// How often each thing is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Windows of each kind and mode.
    windows: u32,
    restores: u32,
    harvests: u32,
    /// Exits of each privilege level that are replayed; 0 skips the check.
    replayed_exits: u32,
}

pub(super) const STARTUP: Effort = Effort {
    windows: 48,
    restores: 2,
    harvests: 2,
    replayed_exits: 0,
};
pub(super) const THOROUGH: Effort = Effort {
    windows: 300,
    restores: 12,
    harvests: 12,
    replayed_exits: 5_000,
};

impl Capabilities {
    pub(super) fn without_kvm(error: &CpuError) -> Self {
        let mut capabilities = Capabilities {
            checks: Vec::new(),
            delivery_modes: vec![DeliveryMode::None],
            host_pt_write_visible: false,
            out_rip: None,
            boots_linux: false,
        };
        let remedy = "use a host with KVM, or try ftvm in the nested host: QEMU emulates a machine with AMD-V, no /dev/kvm needed";
        capabilities.note(CheckName::Kvm, CheckVerdict::Failed, error.to_string(), remedy);
        capabilities
    }

    pub(super) fn test(effort: Effort) -> Self {
        let prepared = System::open().and_then(|system| {
            let profile = crate::profile::of_system(&system, DeliveryMode::None)?;
            Ok((VcpuBench::new(RAM, &profile)?, profile))
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
            CheckVerdict::Ok,
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

    pub(super) fn note(&mut self, name: CheckName, verdict: CheckVerdict, reason: String, remedy: &str) {
        self.checks.push(Check {
            name,
            verdict,
            reason,
            remedy: remedy.to_owned(),
        });
    }

    pub(super) fn must_hold(&mut self, name: CheckName, found: Result<Deviation, CpuError>, fine: &str, remedy: &str) {
        match found {
            Ok(None) => self.note(name, CheckVerdict::Ok, fine.to_owned(), ""),
            Ok(Some(finding)) => self.note(name, CheckVerdict::Failed, finding, remedy),
            Err(error) => self.note(name, CheckVerdict::Failed, error.to_string(), remedy),
        }
    }

    fn exit_replay(&mut self, profile: &CpuProfile, effort: Effort) {
        let exits = effort.replayed_exits;
        if exits == 0 {
            return self.note(
                CheckName::ExitReplay,
                CheckVerdict::Skipped,
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

    fn interrupt_window(&mut self, bench: &mut VcpuBench, effort: Effort) {
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
            DeliveryMode::Window => (
                CheckVerdict::Ok,
                "windows open at the same instruction every time".into(),
            ),
            DeliveryMode::WindowStiStep => (
                CheckVerdict::Ok,
                "windows are exact with one single step behind `sti` (QEMU's TCG needs it)".into(),
            ),
            DeliveryMode::None => (
                CheckVerdict::Limited,
                format!(
                    "windows are not exact ({finding}): an interrupt waits for an exit with IF = 1, or for a checkpoint"
                ),
            ),
        };
        self.note(CheckName::InterruptWindow, verdict, reason, "");
    }

    fn host_page_tables(&mut self, bench: &mut VcpuBench) {
        let name = CheckName::HostPageTables;
        match checks::host_page_tables(bench, PageTableRefresh::MmuReset) {
            Ok(None) => {
                self.host_pt_write_visible = true;
                self.note(name, CheckVerdict::Ok, "seen after an MMU reset".into(), "");
            }
            _ => match checks::host_page_tables(bench, PageTableRefresh::ReplaceSlots) {
                Ok(None) => {
                    let reason = "seen only after replacing the memory slots: checkpoints take longer to apply";
                    self.note(name, CheckVerdict::Limited, reason.into(), "");
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

    fn cpuid(&mut self, bench: &mut VcpuBench, profile: &CpuProfile) {
        match checks::cpuid(bench, profile) {
            Ok(None) => self.note(
                CheckName::Cpuid,
                CheckVerdict::Ok,
                "guests see the fixed CPU profile".into(),
                "",
            ),
            Ok(Some(finding)) => {
                let remedy = "guests must not choose code by CPUID here; use hardware virtualization for those that do";
                self.note(CheckName::Cpuid, CheckVerdict::Limited, finding, remedy);
            }
            Err(error) => self.note(
                CheckName::Cpuid,
                CheckVerdict::Failed,
                error.to_string(),
                "report this host's kernel",
            ),
        }
    }

    fn kernel_speed(&mut self, bench: &mut VcpuBench) {
        match checks::kernel_speed(bench) {
            Ok((each, true)) => {
                self.boots_linux = true;
                let reason = format!("native ({each:?} for a loop of two instructions): Linux guests can boot");
                self.note(CheckName::KernelSpeed, CheckVerdict::Ok, reason, "");
            }
            Ok((each, false)) => {
                let reason =
                    format!("emulated by KVM ({each:?} for a loop of two instructions): Linux guests cannot boot");
                let remedy = "run bare-metal guests here; for Linux guests use VMX or SVM hardware, or the nested host";
                self.note(CheckName::KernelSpeed, CheckVerdict::Limited, reason, remedy);
            }
            Err(error) => {
                self.note(
                    CheckName::KernelSpeed,
                    CheckVerdict::Failed,
                    error.to_string(),
                    "report this host's kernel",
                );
            }
        }
    }
}
