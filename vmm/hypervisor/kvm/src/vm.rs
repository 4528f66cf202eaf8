//! The virtual machine around the vCPU: memory slots, dirty log, and what must be set before a vCPU exists.
//!
//! No in-kernel interrupt controller, timer or clock: whatever the guest sees of time and interrupts comes through the
//! exits above. RDMSR and WRMSR of MSRs that leak host state leave to user space (KVM API, KVM_X86_SET_MSR_FILTER).

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PMU_CAP_DISABLE, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::ioctl::{checked, kvm_error};
use super::system::System;
use ftvm_hypervisor::{CpuError, GuestMemory, PAGE_SHIFT, PAGE_SIZE};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Three pages that KVM needs on Intel CPUs, below the 4 GiB border where no guest RAM or device may be (KVM API,
/// KVM_SET_TSS_ADDR). The page below it is KVM's identity map.
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// MSRs whose reads and writes leave to user space though KVM knows them: they show the host's time.
/// IA32_TIME_STAMP_COUNTER, then IA32_MPERF and IA32_APERF.
const FILTERED_MSRS: [(u32, u32); 2] = [(0x10, 1), (0xe7, 2)];

/// One contiguous piece of guest RAM as KVM knows it.
#[derive(Debug)]
struct Slot {
    number: u32,
    guest_address: u64,
    size: u64,
    host_address: u64,
    /// One bit per page, for KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.
    dirty: Vec<u64>,
}

/// A virtual machine with all of guest RAM registered and its dirty log on.
#[derive(Debug)]
pub(super) struct Vm {
    fd: VmFd,
    slots: Vec<Slot>,
    /// Pages that were dirty when the slots were replaced, ascending; nobody has forgotten them since.
    carried: Vec<u64>,
    /// Keeps the mappings alive that the slots point into.
    _memory: GuestMemory,
}

/// Why a piece of guest RAM cannot be given to KVM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegionError {
    #[error("guest memory at {guest_address:#x}, {size:#x} bytes: regions must be whole pages of {PAGE_SIZE} bytes")]
    NotWholePages { guest_address: u64, size: u64 },
    #[error("guest memory at {guest_address:#x}: {source}")]
    NoHostAddress {
        guest_address: u64,
        source: GuestMemoryError,
    },
}

impl Vm {
    /// Creates the machine and registers every region of `memory`.
    pub(super) fn new(system: &System, memory: &GuestMemory) -> Result<Self, CpuError> {
        let fd = system.create_vm()?;
        let tss = usize::try_from(TSS_ADDRESS).expect("usize has 64 bits");
        fd.set_tss_address(tss).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
        Self::route_msrs(&fd)?;
        Self::disable_pmu(&fd)?;
        Self::protect_by_hand(&fd)?;
        let slots = memory
            .iter()
            .zip(0..)
            .map(|(region, number)| Slot::new(number, region))
            .collect::<Result<_, _>>()?;
        let vm = Vm {
            fd,
            slots,
            carried: Vec::new(),
            _memory: memory.clone(),
        };
        for slot in &vm.slots {
            vm.register(slot, slot.size)?;
        }
        Ok(vm)
    }

    pub(super) fn create_vcpu(&self) -> Result<VcpuFd, CpuError> {
        self.fd
            .create_vcpu(0)
            .map_err(kvm_error("creating a vCPU (KVM_CREATE_VCPU)"))
    }

    /// Bytes of a vCPU's shared pages.
    pub(super) fn run_size(&self) -> usize {
        self.fd.run_size()
    }

    fn route_msrs(fd: &VmFd) -> Result<(), CpuError> {
        let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        let cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(reasons), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        fd.enable_cap(&cap)
            .map_err(kvm_error("enabling KVM_CAP_X86_USER_SPACE_MSR"))?;
        let denied = [0];
        let ranges = FILTERED_MSRS.map(|(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap: &denied,
        });
        fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .map_err(kvm_error("KVM_X86_SET_MSR_FILTER"))
    }

    /// AMD's oldest counters answer RDPMC whatever CPUID says, unless the PMU is off (KVM_CAP_PMU_CAPABILITY, 5.18).
    fn disable_pmu(fd: &VmFd) -> Result<(), CpuError> {
        let offered = fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
        if u32::try_from(offered).unwrap_or(0) & KVM_PMU_CAP_DISABLE == 0 {
            return Ok(());
        }
        let cap = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            args: [u64::from(KVM_PMU_CAP_DISABLE), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        fd.enable_cap(&cap)
            .map_err(kvm_error("disabling the vPMU (KVM_CAP_PMU_CAPABILITY)"))
    }

    /// Reading the dirty log then leaves the pages writable, until KVM_CLEAR_DIRTY_LOG names them.
    fn protect_by_hand(fd: &VmFd) -> Result<(), CpuError> {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        fd.enable_cap(&cap)
            .map_err(kvm_error("enabling KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))
    }

    fn register(&self, slot: &Slot, size: u64) -> Result<(), CpuError> {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: slot.guest_address,
            memory_size: size,
            userspace_addr: slot.host_address,
        };
        // SAFETY: the range is a live mapping kept by `_memory`, which outlives `fd`'s use of it.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(kvm_error("registering guest memory (KVM_SET_USER_MEMORY_REGION)"))
    }

    /// Guest frame numbers of pages that the vCPU has written since they were last forgotten, ascending.
    pub(super) fn dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), CpuError> {
        pages.clear();
        pages.extend_from_slice(&self.carried);
        for slot in &mut self.slots {
            slot.fetch(&self.fd)?;
            slot.dirty_pages(pages);
        }
        if !self.carried.is_empty() {
            pages.sort_unstable();
            pages.dedup();
        }
        Ok(())
    }

    /// Write-protects `pages`, ascending, and takes them out of the dirty log.
    pub(super) fn forget(&mut self, pages: &[u64]) -> Result<(), CpuError> {
        self.carried.retain(|page| pages.binary_search(page).is_err());
        for slot in &mut self.slots {
            slot.forget(&self.fd, pages)?;
        }
        Ok(())
    }

    /// Deletes and adds every slot again, so that KVM forgets all translations. What the dirty log held is kept.
    pub(super) fn replace_slots(&mut self) -> Result<(), CpuError> {
        let mut pages = Vec::new();
        self.dirty(&mut pages)?;
        self.carried = pages;
        for slot in &self.slots {
            self.register(slot, 0)?;
            self.register(slot, slot.size)?;
        }
        Ok(())
    }
}

impl Slot {
    fn new(number: u32, region: &impl GuestMemoryRegion) -> Result<Self, CpuError> {
        let (guest_address, size) = (region.start_addr().raw_value(), region.len());
        if guest_address % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 || size == 0 {
            return Err(CpuError::unsupported(RegionError::NotWholePages {
                guest_address,
                size,
            }));
        }
        let host_address = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(|source| RegionError::NoHostAddress { guest_address, source })
            .map_err(CpuError::unsupported)?;
        let words = usize::try_from((size / PAGE_SIZE).div_ceil(64)).expect("usize has 64 bits");
        Ok(Slot {
            number,
            guest_address,
            size,
            host_address: host_address.addr() as u64,
            dirty: vec![0; words],
        })
    }

    fn fetch(&mut self, fd: &VmFd) -> Result<(), CpuError> {
        let request = kvm_dirty_log {
            slot: self.number,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: self.dirty.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the kernel writes one bit per page of the slot, rounded up to 64: exactly the length of `dirty`.
        let result = unsafe { ioctl_with_ref(fd, KVM_GET_DIRTY_LOG(), &request) };
        checked(result, "reading the dirty log (KVM_GET_DIRTY_LOG)")
    }

    /// Those of `pages`, ascending, that are in this slot.
    fn forget(&mut self, fd: &VmFd, pages: &[u64]) -> Result<(), CpuError> {
        let (slot, size) = (self.number, self.size >> PAGE_SHIFT);
        let Some((first, bits)) = self.bits(pages) else {
            return Ok(());
        };
        // Whole words, or exactly to the slot's end (KVM API).
        let count = (bits.len() as u64 * 64).min(size - first);
        let request = kvm_clear_dirty_log {
            slot,
            num_pages: u32::try_from(count).expect("a slot has less than 2^32 pages"),
            first_page: first,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: bits.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the kernel reads one bit for each of `count` pages, and `bits` holds at least so many.
        let result = unsafe { ioctl_with_ref(fd, KVM_CLEAR_DIRTY_LOG(), &request) };
        checked(result, "resetting the dirty log (KVM_CLEAR_DIRTY_LOG)")
    }

    /// Those of `pages`, ascending, that are in this slot, as bits of the words that have any; and the number in the
    /// slot of the first bit.
    fn bits(&mut self, pages: &[u64]) -> Option<(u64, &mut [u64])> {
        let start = self.guest_address >> PAGE_SHIFT;
        let end = start + (self.size >> PAGE_SHIFT);
        let from = pages.partition_point(|page| *page < start);
        let to = pages.partition_point(|page| *page < end);
        let (first, last) = (pages[from..to].first()? - start, pages[from..to].last()? - start);
        let word = |page: u64| usize::try_from(page / 64).expect("usize has 64 bits");
        let words = &mut self.dirty[word(first)..=word(last)];
        words.fill(0);
        for page in &pages[from..to] {
            let page = page - start;
            words[word(page) - word(first)] |= 1 << (page % 64);
        }
        Some((first / 64 * 64, words))
    }

    /// Appends the frame numbers of all set bits.
    fn dirty_pages(&self, pages: &mut Vec<u64>) {
        let first = self.guest_address >> PAGE_SHIFT;
        for (word, base) in self.dirty.iter().zip((first..).step_by(64)) {
            let mut rest = *word;
            while rest != 0 {
                pages.push(base + u64::from(rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_ascending_frame_numbers() {
        let slot = Slot {
            number: 0,
            guest_address: 0x10_0000,
            size: 0,
            host_address: 0,
            dirty: vec![1 | 1 << 63, 0, 0b10],
        };
        let mut pages = vec![7];
        slot.dirty_pages(&mut pages);
        assert_eq!(pages, [7, 0x100, 0x100 + 63, 0x100 + 129]);
    }

    #[test]
    fn frame_numbers_become_bits_of_the_words_that_have_any() {
        let mut slot = Slot {
            number: 0,
            guest_address: 0x10_0000,
            size: 130 << PAGE_SHIFT,
            host_address: 0,
            dirty: vec![u64::MAX; 3],
        };
        assert_eq!(slot.bits(&[]), None);
        assert_eq!(slot.bits(&[0xff, 0x100 + 130]), None, "before and behind the slot");
        assert_eq!(slot.bits(&[0xff, 0x100, 0x100 + 130]), Some((0, &mut [1][..])));
        assert_eq!(
            slot.bits(&[0x100 + 65, 0x100 + 129, 0x100 + 130]),
            Some((64, &mut [0b10, 0b10][..]))
        );
    }

    #[test]
    fn regions_must_be_whole_pages() {
        let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 0x1800)]).unwrap();
        let error = Slot::new(0, memory.iter().next().unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("0x1800 bytes") && error.contains("whole pages"),
            "{error}"
        );
        let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 0x41000)]).unwrap();
        let slot = Slot::new(0, memory.iter().next().unwrap()).unwrap();
        assert_eq!((slot.size, slot.dirty.len()), (0x41000, 2));
    }
}
