//! The lease: until when a primary that hears nothing may still release outputs (PROTOCOL 12).
//!
//! It runs from the *sending* of what the backup echoes, so that acks that sat in a socket buffer while the primary was
//! stopped renew nothing. The backup, which cannot know when the primary read its last ack, waits a whole lease from
//! when it sent that ack, longer by as much as the two clocks may drift apart.

/// The backup claims to have seen a time that has not come yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the backup echoes {echo_ns} ns, but it is only {now_ns} ns here: it echoes what was never sent")]
pub struct LeaseError {
    pub echo_ns: u64,
    pub now_ns: u64,
}

/// The primary's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    length_ns: u64,
    latest_echo_ns: Option<u64>,
}

impl Lease {
    /// A lease of `length_ns` that nothing has renewed yet: not valid.
    #[must_use]
    pub fn new(length_ns: u64) -> Lease {
        Lease {
            length_ns,
            latest_echo_ns: None,
        }
    }

    /// An ack or heartbeat echoed `echo_ns`, a send time of this host's clock; it is `now_ns` on that clock. An echo
    /// older than the latest changes nothing.
    ///
    /// # Errors
    /// The echo lies in the future; the lease is as before.
    pub fn renew(&mut self, echo_ns: u64, now_ns: u64) -> Result<(), LeaseError> {
        if echo_ns > now_ns {
            return Err(LeaseError { echo_ns, now_ns });
        }
        self.latest_echo_ns = self.latest_echo_ns.max(Some(echo_ns));
        Ok(())
    }

    /// The first nanosecond at which the lease is over; 0 if it never began.
    #[must_use]
    pub fn ends_at(&self) -> u64 {
        self.latest_echo_ns
            .map_or(0, |echo| echo.saturating_add(self.length_ns))
    }

    /// Whether an output may be released at `now_ns`.
    #[must_use]
    pub fn valid_at(&self, now_ns: u64) -> bool {
        now_ns < self.ends_at()
    }
}

/// The backup's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseWait {
    wait_ns: u64,
    last_sent_ns: Option<u64>,
}

impl LeaseWait {
    /// For a lease of `length_ns` and clocks that drift apart by at most `drift_ppm` parts in a million.
    #[must_use]
    pub fn new(length_ns: u64, drift_ppm: u32) -> LeaseWait {
        let drift = (u128::from(length_ns) * u128::from(drift_ppm)).div_ceil(1_000_000);
        LeaseWait {
            wait_ns: length_ns.saturating_add(u64::try_from(drift).unwrap_or(u64::MAX)),
            last_sent_ns: None,
        }
    }

    /// Something that echoes (an ack or a heartbeat) is about to be sent; it is `now_ns` on this host's clock. What it
    /// echoes was sent earlier still, so the lease it grants cannot outlast the wait that starts now.
    pub fn sent(&mut self, now_ns: u64) {
        self.last_sent_ns = self.last_sent_ns.max(Some(now_ns));
    }

    /// From when the primary's lease is certainly over; 0 if nothing was ever echoed.
    #[must_use]
    pub fn over_at(&self) -> u64 {
        self.last_sent_ns.map_or(0, |sent| sent.saturating_add(self.wait_ns))
    }

    #[must_use]
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.over_at()
    }
}
