//! Guest memory: what the dirty log names, and page tables that the host writes.

use super::{Deviation, RAM};
use crate::PageTableRefresh;
use crate::selftest::bench::VcpuBench;
use crate::selftest::guest::{ArgumentRegisters, Privilege};
use crate::selftest::programs::TinyProgram;
use ftvm_hypervisor::{Cpu as _, CpuError, Exit, PAGE_SIZE};

/// Two large pages whose mapping is exchanged, and what they hold.
const FIRST: (u64, u32) = (0x40_0000, 0x1111_1111);
const SECOND: (u64, u32) = (0x60_0000, 0x2222_2222);
/// How many runs more than asked for the guest is given if it has not written at all: on a slow host kicks may come
/// before its first instruction.
const IDLE_RUNS: u32 = 200;

/// Whether every page that changed between two looks was in the second, and every page that was not forgotten in
/// between.
pub fn dirty_log(bench: &mut VcpuBench, harvests: u32) -> Result<Deviation, CpuError> {
    let (mut pages, mut left) = (Vec::new(), Vec::new());
    for privilege in [Privilege::Kernel, Privilege::User] {
        let mask = RAM as u64 / 2 - 1;
        let arguments = ArgumentRegisters {
            rcx: u64::MAX,
            rdi: RAM as u64 / 2,
            rdx: mask,
            ..ArgumentRegisters::default()
        };
        bench.start(TinyProgram::Scatter, privilege, arguments)?;
        bench.cpu.harvest_dirty(&mut pages)?;
        left.clear();
        let (begun, mut before) = (bench.guest.ram(), bench.guest.ram());
        for harvest in 0..harvests + IDLE_RUNS {
            if harvest >= harvests && before != begun {
                break;
            }
            if bench.run_to_kick()? != Exit::Interrupted {
                return Ok(Some(
                    "a guest that only writes to memory left for another reason".into(),
                ));
            }
            bench.cpu.dirty(&mut pages)?;
            let after = bench.guest.ram();
            let lost = left.iter().copied().find(|page| pages.binary_search(page).is_err());
            if let Some(missed) = missed_page(&before, &after, &pages).or(lost) {
                return Ok(Some(format!(
                    "harvest {harvest} missed page {missed:#x} ({privilege:?} mode)"
                )));
            }
            before = after;
            // As a checkpoint does: some pages stay dirty.
            left = pages
                .extract_if(.., |page| (*page + u64::from(harvest)) % 4 == 0)
                .collect();
            bench.cpu.forget_dirty(&pages)?;
        }
        if before == begun {
            return Ok(Some(format!(
                "a guest that writes all the time wrote nothing in {} runs",
                harvests + IDLE_RUNS
            )));
        }
    }
    Ok(None)
}

fn missed_page(before: &[u8], after: &[u8], harvested: &[u64]) -> Option<u64> {
    let size = usize::try_from(PAGE_SIZE).expect("4096");
    let pages = before.chunks(size).zip(after.chunks(size)).zip(0..);
    pages
        .filter(|((old, new), _)| old != new)
        .map(|(_, page)| page)
        .find(|page| harvested.binary_search(page).is_err())
}

/// Whether the vCPU sees page tables that the host has written, after a restore by `refresh`.
pub fn host_page_tables(bench: &mut VcpuBench, refresh: PageTableRefresh) -> Result<Deviation, CpuError> {
    bench.cpu.set_page_table_refresh(refresh);
    for privilege in [Privilege::Kernel, Privilege::User] {
        for (address, value) in [FIRST, SECOND] {
            bench.guest.write(address, u64::from(value));
        }
        bench.start(
            TinyProgram::Watch,
            privilege,
            ArgumentRegisters {
                rdi: FIRST.0,
                ..ArgumentRegisters::default()
            },
        )?;
        // Enough rounds that every translation cache has it.
        for _ in 0..50 {
            bench.expect_out(0x10)?;
        }
        bench.cpu.complete()?;
        let state = bench.cpu.save()?;
        bench.guest.map_large_page(FIRST.0, SECOND.0);
        bench.cpu.restore(&state)?;
        bench.expect_out(0x10)?;
        let seen = bench.cpu.registers()[0];
        bench.guest.map_large_page(FIRST.0, FIRST.0);
        bench.cpu.complete()?;
        let state = bench.cpu.save()?;
        bench.cpu.restore(&state)?;
        if seen != u64::from(SECOND.1) {
            return Ok(Some(format!(
                "a {privilege:?} mode guest still used the old page table"
            )));
        }
    }
    Ok(None)
}
