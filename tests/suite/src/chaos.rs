//! Chaos, in short: real processes, faults of every kind, clients whose record must be that of one server.

use std::time::Duration;

use ftvm_chaos::Settings;
use ftvm_chaos::faults::Kind;
use ftvm_lab::{kvm_test, time_factor};

/// Faults: one of each kind. The long form is `cargo run --release --bin chaos -- --faults 200`.
const FAULTS: u32 = 6;
/// Among its faults are a killed primary and a storage that fails when it is needed.
const SEED: u64 = 1;

kvm_test! {
    timeout = 1000;
    /// A pool of three under load and six faults: nothing lost, never two live sides, protected again each time.
    fn kvm_chaos() {
        let folder = tempfile::tempdir().expect("a folder");
        let (detection, lease) = if time_factor() > 1 { (1500, 1000) } else { (500, 300) };
        let settings = Settings {
            faults: FAULTS,
            seed: SEED,
            kinds: Kind::PACK.to_vec(),
            detection: Duration::from_millis(detection),
            lease: Duration::from_millis(lease),
            folder: folder.path().to_owned(),
        };
        let report = ftvm_chaos::run(&settings, &mut |line| println!("{line}")).unwrap_or_else(|e| panic!("{e}"));
        println!("{}", report.table());
        assert_eq!(report.wrong, Vec::<String>::new());
        assert_eq!(report.rows.len(), FAULTS as usize);
        assert_eq!((report.two_live, report.verdict.lost_writes, report.unread), (0, 0, 0));
        assert!(report.verdict.is_linearizable());
        assert!(report.verdict.acked_writes > 100, "{}", report.verdict.acked_writes);
        assert!(report.moves > 0, "the guest never moved");
    }
}
