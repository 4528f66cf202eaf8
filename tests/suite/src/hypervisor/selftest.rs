//! The self-test's own checks, longer than at start-up, and the self-test itself.

use std::time::Instant;

use ftvm_hypervisor::{CpuError, DeliveryMode};
use ftvm_kvm::PageTableRefresh;
use ftvm_kvm::selftest::checks;
use ftvm_kvm::selftest::guest::Privilege;
use ftvm_kvm::selftest::{Capabilities, CheckName, CheckVerdict};

use super::{bench, profile};
use crate::soak_exits;

fn fine(found: Result<Option<String>, CpuError>) {
    if let Some(finding) = found.unwrap() {
        panic!("{finding}");
    }
}

/// Exits replayed on each level; the long form is `FTVM_SOAK_EXITS=200000 ./test kvm_hypervisor`.
fn exits() -> u32 {
    soak_exits().map_or(40_000, |exits| u32::try_from(exits).unwrap_or(u32::MAX))
}

pub fn many_exits_replay_at_cpl0() {
    let profile = profile();
    fine(checks::exit_replay(&profile, Privilege::Kernel, exits(), 7));
}

pub fn many_exits_replay_at_cpl3() {
    let profile = profile();
    fine(checks::exit_replay(&profile, Privilege::User, exits(), 8));
}

pub fn accesses_in_parts_are_completed_one_by_one() {
    let profile = profile();
    fine(checks::fragments(&mut bench(&profile)));
}

pub fn a_vcpu_saved_at_any_kick_runs_on_in_another_vm() {
    let profile = profile();
    fine(checks::save_restore(&mut bench(&profile), &profile, 30));
}

pub fn the_dirty_log_never_misses() {
    let profile = profile();
    fine(checks::dirty_log(&mut bench(&profile), 60));
}

pub fn page_tables_written_by_the_host_are_seen_after_a_restore() {
    let profile = profile();
    fine(checks::host_page_tables(
        &mut bench(&profile),
        PageTableRefresh::ReplaceSlots,
    ));
}

pub fn the_self_test_finds_this_host_usable() {
    let began = Instant::now();
    let startup = Capabilities::at_startup();
    println!("start-up self-test: {:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(
        Capabilities::at_startup(),
        startup,
        "the second answer comes from the first"
    );
    println!("from the cache: {:?}", began.elapsed());
    let began = Instant::now();
    let thorough = Capabilities::thorough();
    println!("thorough self-test: {:?}", began.elapsed());
    for check in &thorough.checks {
        println!(
            "{:18} {:8} {} {}",
            check.name, check.verdict, check.reason, check.remedy
        );
    }
    assert!(thorough.is_usable() && startup.is_usable());
    assert_eq!(
        thorough.delivery_modes, startup.delivery_modes,
        "the quick test must be as hard as the thorough one"
    );
    let verdict = |name| {
        thorough
            .checks
            .iter()
            .find(|check| check.name == name)
            .map(|check| check.verdict)
    };
    assert_eq!(verdict(CheckName::ExitReplay), Some(CheckVerdict::Ok));
}

/// QEMU's TCG loses the shadow of `sti` when the guest is left inside it. Without the step the self-test must notice.
pub fn the_window_test_tells_exact_from_inexact() {
    let profile = profile();
    let mut bench = bench(&profile);
    let exact = checks::window(&mut bench, DeliveryMode::Window, 300).unwrap();
    let stepped = checks::window(&mut bench, DeliveryMode::WindowStiStep, 300).unwrap();
    println!("window: {exact:?}\nwindow with a step: {stepped:?}");
    assert!(
        exact.is_none() || stepped.is_none(),
        "neither mode works on a host that runs kernel code natively"
    );
}
