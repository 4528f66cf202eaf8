//! The hypervisor layer on a real KVM: one test for all checks, since each would cost a boot of the nested host, and one for
//! those that not every KVM can pass.

mod exits;
mod kicks;
mod selftest;
mod states;

use ftvm_hypervisor::DeliveryMode;
use ftvm_hypervisor::profile::CpuProfile;
use ftvm_kvm::selftest::bench::VcpuBench;
use ftvm_kvm::selftest::checks::RAM;
use ftvm_kvm::selftest::guest::Privilege;
use ftvm_lab::kvm_test;
use ftvm_lab::nested::Turn;

const BOTH: [Privilege; 2] = [Privilege::Kernel, Privilege::User];
const RAX: usize = 0;
const RBX: usize = 1;
const RCX: usize = 2;
const RDX: usize = 3;
const RIP: usize = 16;

/// Runs each check, its name first, so that a failure says which one it was.
macro_rules! perform {
    ($($module:ident: [$($check:ident),+ $(,)?])+) => {
        $($(
            println!(concat!(stringify!($module), "::", stringify!($check)));
            $module::$check();
        )+)+
    };
}

kvm_test! {
    turn = Turn::Shared, timeout = 900;
    fn kvm_hypervisor_layer() {
        perform! {
            selftest: [
                many_exits_replay_at_cpl0,
                many_exits_replay_at_cpl3,
                accesses_in_parts_are_completed_one_by_one,
                a_vcpu_saved_at_any_kick_runs_on_in_another_vm,
                the_dirty_log_never_misses,
                page_tables_written_by_the_host_are_seen_after_a_restore,
                the_self_test_finds_this_host_usable,
            ]
            exits: [
                port_reads_tell_size_and_count,
                hlt_waits_for_an_interrupt_that_the_caller_brings,
                without_windows_none_is_requested,
                msr_accesses_leave_and_can_be_refused,
                an_interrupt_at_a_refused_msr_comes_behind_the_fault,
                a_triple_fault_ends_the_guest,
                what_kvm_cannot_emulate_is_reported_with_its_bytes,
            ]
            states: [
                a_pending_exception_is_saved,
                a_restored_program_keeps_the_ports_of_its_task,
                a_checkpoint_truncates_no_sysenter_msr,
                a_state_saved_at_a_read_holds_the_answer,
                an_injected_interrupt_is_saved,
                a_state_is_the_same_bytes_each_time_and_survives_serde,
                a_remap_between_exit_and_kick_is_seen_after_a_checkpoint,
                pages_dirty_before_a_restore_are_still_harvested,
            ]
            kicks: [
                a_kick_between_two_runs_interrupts_the_next_one_only,
                kicks_reach_the_right_one_of_several_vcpus,
            ]
        }
    }
}

kvm_test! {
    turn = Turn::Shared, native = true;
    fn kvm_interrupt_windows() {
        perform! {
            selftest: [the_window_test_tells_exact_from_inexact]
            exits: [an_interrupt_waits_for_the_window_where_if_is_off]
        }
    }
}

fn profile() -> CpuProfile {
    ftvm_kvm::profile::of_this_host(DeliveryMode::None).unwrap()
}

fn bench(profile: &CpuProfile) -> VcpuBench {
    VcpuBench::new(RAM, profile).unwrap()
}
