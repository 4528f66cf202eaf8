use super::*;

#[test]
fn a_lease_runs_from_the_latest_echo() {
    let mut lease = Lease::new(100);
    assert!(!lease.valid_at(0), "nothing echoed, nothing granted");
    lease.renew(1000, 5000).unwrap();
    assert_eq!(lease.ends_at(), 1100);
    assert!(!lease.valid_at(5000), "an old echo read late renews nothing");
    assert!(lease.valid_at(1099) && !lease.valid_at(1100));
    lease.renew(900, 5000).unwrap();
    assert_eq!(lease.ends_at(), 1100);
}

#[test]
fn an_echo_of_the_future_renews_nothing() {
    let mut lease = Lease::new(100);
    lease.renew(50, 50).unwrap();
    assert_eq!(
        lease.renew(61, 60),
        Err(LeaseError {
            echo_ns: 61,
            now_ns: 60
        })
    );
    assert_eq!(lease.ends_at(), 150);
}

#[test]
fn the_backup_waits_a_lease_and_the_drift() {
    let mut wait = LeaseWait::new(1_000_001, 200);
    assert!(wait.is_over(0), "what was never echoed grants nothing");
    wait.sent(5000);
    assert_eq!(wait.over_at(), 5000 + 1_000_001 + 201, "drift is rounded up");
    assert!(!wait.is_over(wait.over_at() - 1) && wait.is_over(wait.over_at()));
    wait.sent(4000);
    assert_eq!(wait.over_at(), 1_005_202);
    assert_eq!(LeaseWait::new(u64::MAX, u32::MAX).over_at(), 0);
}

#[test]
fn ends_do_not_overflow() {
    let mut lease = Lease::new(u64::MAX);
    lease.renew(5, 5).unwrap();
    assert_eq!(lease.ends_at(), u64::MAX);
    let mut wait = LeaseWait::new(u64::MAX, 1);
    wait.sent(5);
    assert!(!wait.is_over(u64::MAX - 1));
}

proptest! {
    /// However an echo travels, and with clocks as far apart and drifting as far as allowed, the backup's wait ends
    /// after the primary's lease.
    #[test]
    fn the_wait_outlasts_the_lease(
        length in 1u64..1_000_000_000, sent in 0u64..1 << 40, delay in 0u64..1_000_000_000,
        offset in 0u64..1 << 40, drift_ppm in 0u32..1000,
    ) {
        let mut lease = Lease::new(length);
        let mut wait = LeaseWait::new(length, drift_ppm);
        // The primary sends at `sent`; the backup, whose clock runs fast by drift_ppm, echoes after `delay`.
        let fast = |primary_ns: u64| offset + primary_ns + primary_ns * u64::from(drift_ppm) / 1_000_000;
        wait.sent(fast(sent + delay));
        lease.renew(sent, sent + 2 * delay).unwrap();
        prop_assert!(!lease.valid_at(lease.ends_at()));
        prop_assert!(wait.over_at() >= fast(lease.ends_at()));
    }
}
