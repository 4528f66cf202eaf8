use super::*;

const AMD: CpuidEntry = CpuidEntry {
    leaf: 0,
    subleaf: None,
    eax: 0x10,
    ebx: 0x6874_7541,
    ecx: 0x444d_4163,
    edx: 0x6974_6e65,
};

fn full(leaf: u32, subleaf: Option<u32>) -> CpuidEntry {
    CpuidEntry {
        leaf,
        subleaf,
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    }
}

fn profile() -> CpuProfile {
    let entries = [
        AMD,
        full(1, None),
        full(7, Some(0)),
        full(0x8000_0000, None),
        full(0x8000_0001, None),
    ];
    let mut cpuid: Vec<_> = entries.into_iter().filter_map(masked).collect();
    cpuid.push(CpuidEntry {
        leaf: 0x8000_0008,
        eax: 0x3028,
        ..CpuidEntry::default()
    });
    CpuProfile {
        cpuid,
        delivery: DeliveryMode::Window,
    }
}

fn with(change: impl FnOnce(&mut Vec<CpuidEntry>)) -> CpuProfile {
    let mut changed = profile();
    change(&mut changed.cpuid);
    changed
}

/// Every mask that LINUX-FACTS lists, bit by bit: none of these may be seen.
#[test]
fn what_leaks_hidden_state_is_hidden() {
    let hidden_1_ecx = [3, 5, 12, 15, 21, 22, 24, 26, 27, 28, 29, 30, 31];
    let hidden_1_edx = [4, 7, 9, 14, 21, 22, 28, 29];
    let hidden_7_ebx = [1, 2, 4, 5, 10, 11, 12, 14, 15, 16, 17, 18, 20, 21, 26, 27, 28, 30, 31];
    let hidden_7_ecx = [1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 16, 22];
    let hidden_ext1_ecx = [2, 3, 9, 10, 11, 12, 15, 16, 22, 23, 24, 27, 28, 29];
    let hidden_ext1_edx = [4, 7, 9, 14, 27];
    let profile = profile();
    let cases: [(Register, &[u32]); 6] = [
        (Register::Leaf1Ecx, &hidden_1_ecx),
        (Register::Leaf1Edx, &hidden_1_edx),
        (Register::Leaf7Ebx, &hidden_7_ebx),
        (Register::Leaf7Ecx, &hidden_7_ecx),
        (Register::Ext1Ecx, &hidden_ext1_ecx),
        (Register::Ext1Edx, &hidden_ext1_edx),
    ];
    for (register, hidden) in cases {
        for bit in hidden {
            assert_eq!(
                register.read(&profile) >> bit & 1,
                0,
                "{register:?} bit {bit} is visible"
            );
        }
    }
    assert_eq!(profile.entry(7).unwrap().edx, 0);
    assert_eq!(profile.entry(7).unwrap().eax, 0, "no further subleaves");
}

#[test]
fn one_cpu_without_topology_power_or_performance_leaves() {
    assert_eq!(masked(full(1, None)).unwrap().ebx, 0x0001_ffff);
    assert_eq!(masked(full(4, Some(2))).unwrap().eax, 0x3ff);
    for (leaf, subleaf) in [
        (3, 0),
        (5, 0),
        (6, 0),
        (7, 1),
        (0xa, 0),
        (0xb, 0),
        (0xb, 1),
        (0xd, 0),
        (0xd, 1),
        (0x14, 0),
        (0x1f, 0),
        (0x23, 0),
    ] {
        assert_eq!(masked(full(leaf, Some(subleaf))), None, "leaf {leaf:#x}.{subleaf}");
    }
    for leaf in [
        0x4000_0000,
        0x4000_0001,
        0x8000_0007,
        0x8000_000a,
        0x8000_001e,
        0x8000_0021,
    ] {
        assert_eq!(masked(full(leaf, None)), None, "leaf {leaf:#x}");
    }
    assert_eq!(masked(full(0, None)).unwrap().eax, MAX_BASIC);
    assert_eq!(
        masked(CpuidEntry { eax: 4, ..AMD }).unwrap().eax,
        4,
        "older CPUs keep their maximum"
    );
    assert_eq!(masked(full(0x8000_0000, None)).unwrap().eax, MAX_EXTENDED);
    assert_eq!(
        masked(full(0x8000_0008, None)).unwrap(),
        CpuidEntry {
            eax: 0xffff,
            ..zero(0x8000_0008)
        }
    );
}

fn zero(leaf: u32) -> CpuidEntry {
    CpuidEntry {
        leaf,
        ..CpuidEntry::default()
    }
}

#[test]
fn a_profile_runs_on_its_own_host_and_on_a_richer_one() {
    profile().check_against(&profile()).unwrap();
    with(|cpuid| cpuid[2].ebx &= !(1 << 29))
        .check_against(&profile())
        .unwrap();
    with(|cpuid| cpuid[1].eax ^= 0xf)
        .check_against(&profile())
        .expect("another stepping is the same model");
}

#[test]
fn a_mismatch_names_what_the_other_host_lacks() {
    let text = |host: CpuProfile| profile().check_against(&host).unwrap_err().to_string();
    let vendor = text(with(|cpuid| cpuid[0].ebx = 0x756e_6547));
    assert!(
        vendor.contains("AuthenticAMD") && vendor.contains("GenuenticAMD"),
        "{vendor}"
    );
    let model = text(with(|cpuid| cpuid[1].eax ^= 0x10));
    assert!(model.contains("0xfffffff0") && model.contains("0xffffffe0"), "{model}");
    assert!(text(with(|cpuid| cpuid[1].ecx &= !(1 << 25))).contains("`aes`"));
    assert!(text(with(|cpuid| cpuid[2].ebx &= !(1 << 3 | 1 << 29))).contains("`bmi1`"));
    assert!(text(with(|cpuid| cpuid[4].edx &= !(1 << 26))).contains("`pdpe1gb`"));
    assert!(text(with(|cpuid| cpuid[1].edx &= !(1 << 1))).contains("Leaf1Edx bit 1"));
    assert!(text(with(|cpuid| cpuid[5].eax = 0x3027)).contains("40 bits of physical address, this host 39"));
}

#[test]
fn a_damaged_profile_is_refused() {
    let text = |profile: CpuProfile| profile.check_against(&self::profile()).unwrap_err().to_string();
    assert!(text(with(|cpuid| cpuid.truncate(1))).contains("leaf 0x1"));
    assert!(text(with(|cpuid| cpuid.resize(257, zero(2)))).contains("257 CPUID entries"));
    let at_the_limit = with(|cpuid| cpuid.resize(256, zero(2)));
    at_the_limit.check_against(&profile()).unwrap();
}
