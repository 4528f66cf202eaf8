//! Bugs that can be planted in the simulated shells, to see that the invariants catch them (PROTOCOL, last section).
//! Production code knows nothing of them.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plant {
    AckBeforeDecode,
    AckOfPartialCheckpoint,
    ReleaseWithoutMark,
    LeaseFromReceipt,
    NextFreeNumber,
    Unsuspecting,
    LeavingWithoutClaim,
    ReleasedAtSubmission,
    ReissueWithoutOrder,
    LifeAfterPowerOff,
    WriteBeforeRead,
    ReleaseAfterHandover,
    ClaimAfterBye,
    FailureTold,
}

impl Plant {
    /// Every bug, with the name it has on the command line and what it does.
    pub const ALL: [(Plant, &'static str, &'static str); 14] = [
        (
            Plant::AckBeforeDecode,
            "ack-before-decode",
            "a log frame is acked when its first bytes arrive",
        ),
        (
            Plant::AckOfPartialCheckpoint,
            "ack-of-partial-checkpoint",
            "a micro-checkpoint is acked as a whole when its first part is there",
        ),
        (
            Plant::ReleaseWithoutMark,
            "release-without-mark",
            "any ack releases every held output",
        ),
        (
            Plant::LeaseFromReceipt,
            "lease-from-receipt",
            "the lease counts from the receipt of an ack",
        ),
        (
            Plant::NextFreeNumber,
            "next-free-number",
            "the test-and-set takes the next free generation",
        ),
        (
            Plant::Unsuspecting,
            "un-suspecting",
            "a primary that has suspected its backup goes on when it hears from it",
        ),
        (
            Plant::LeavingWithoutClaim,
            "leaving-without-claim",
            "a primary leaves a backup that was granted and has not acked, without a test-and-set",
        ),
        (
            Plant::ReleasedAtSubmission,
            "released-at-submission",
            "an output counts as released when its system call begins",
        ),
        (
            Plant::ReissueWithoutOrder,
            "reissue-without-order",
            "at go-live all disk requests are issued at once",
        ),
        (
            Plant::LifeAfterPowerOff,
            "life-after-power-off",
            "the backup overlooks the guest's end in the log",
        ),
        (
            Plant::WriteBeforeRead,
            "write-before-read",
            "a write starts when the backup has received the end of an earlier read of its blocks, not yet read them itself",
        ),
        (
            Plant::ReleaseAfterHandover,
            "release-after-handover",
            "a primary that has handed the guest over runs on and still releases",
        ),
        (
            Plant::ClaimAfterBye,
            "claim-after-bye",
            "a dismissed backup says its last word and stays eligible",
        ),
        (
            Plant::FailureTold,
            "failure-told",
            "a disk request that fails because the path is lost is told to the guest before it is handed over",
        ),
    ];

    /// The bug of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Plant> {
        Self::ALL
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(plant, ..)| *plant)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(plant, ..)| *plant == self)
            .map_or("", |(_, name, _)| name)
    }
}
