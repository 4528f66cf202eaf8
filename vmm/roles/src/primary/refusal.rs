//! Why a primary takes no backup, or does not do what its operator asks. Each says what to do, if there is anything.

/// Why no backup may join now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJoinable {
    /// No state can be saved before that write has landed (PROTOCOL 17).
    #[error("disk {disk} does not answer a write, which must end first")]
    WriteHangs { disk: u8 },
    #[error("the operator has suspended protection")]
    Suspended,
    #[error("the guest has ended")]
    GuestEnded,
    #[error("the guest already has a backup")]
    HasBackup,
    #[error("the guest is being handed over")]
    HandingOver,
    #[error("the primary is deciding who lives; try again")]
    Deciding,
}

/// Why an operation does not begin; the operator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{operation} is under way; ask again when it is over")]
    OtherUnderWay { operation: &'static str },
    #[error("the guest has ended")]
    GuestEnded,
    #[error("the backup is being dismissed; ask again when it is gone")]
    Dismissing,
    #[error("the guest is being handed over; ask again at its new host")]
    HandingOver,
    #[error("the guest has been handed over; ask at its new host")]
    HandedOver,
    #[error(
        "this side is finding out whether it goes on (test-and-set for generation {wanted}); ask again when that is known"
    )]
    Deciding { wanted: u64 },
    #[error("this process is ending")]
    Ending,
    #[error("the guest is paused already; `resume` lets it go on")]
    AlreadyPaused,
    #[error("the guest is not paused")]
    NotPaused,
    #[error("protection is suspended already; `resume-protection` lets a backup join")]
    AlreadySuspended,
    #[error("protection is not suspended")]
    NotSuspended,
    #[error("the guest has no backup: start one with `ftvm run --backup` or `--standby`")]
    NoBackup,
    #[error("the guest has no backup, protection is suspended: `resume-protection` first")]
    NoBackupWanted,
    #[error("the backup is still receiving the guest's state; ask again when `status` says protected")]
    NotProtectedYet,
    #[error(
        "this host does not have the state from which the guest was started: it has not come over before the failover, or \
         is still being made; ask again, or `power-off` and start the guest anew"
    )]
    NoBootRecord,
    /// Its state may be saved already, and a reset would be the first thing the backup hears.
    #[error("a backup is about to follow; ask again in some seconds")]
    BackupAboutToFollow,
    #[error("the backup is still receiving the state from which the guest was started; ask again in some seconds")]
    BackupLacksBootRecord,
}
