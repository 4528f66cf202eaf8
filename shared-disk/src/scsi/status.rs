//! What a device's status, its sense data and the host adapter's code mean: SAM-5 (5.3 status codes), SPC-4 (4.5 sense
//! data, 4.5.6 sense keys), and the kernel's `scsi_status.h` for the adapter.

use thiserror::Error;

use crate::syscall::sg::SgReply;

/// Why a command did not end with the status GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandFault {
    /// The block is not as COMPARE AND WRITE expected; nothing was written.
    #[error("the block has another content")]
    Miscompare,
    /// Another host's persistent reservation stands in the way; nothing was done.
    #[error("reservation conflict: another host has reserved the device")]
    ReservationConflict,
    /// Something has happened to the device since the last command, such as a reset or another host's preemption;
    /// nothing was done.
    #[error("unit attention ({asc:02x}h/{ascq:02x}h), again and again")]
    UnitAttention {
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// The device has no time, or is not ready; nothing was done.
    #[error("the device is busy or not ready (status {status:02x}h)")]
    Busy {
        /// The status byte.
        status: u8,
    },
    /// The device does not know the command, or not this form of it.
    #[error("the device does not support this command ({asc:02x}h/{ascq:02x}h)")]
    Unsupported {
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// The device is write-protected.
    #[error("the device is write-protected")]
    WriteProtected,
    /// No clear answer from the device, or from the way to it: the command may have been executed, or may still be.
    #[error(
        "no clear answer (device status {status:02x}h, adapter status {host:02x}h, sense {key:x}h/{asc:02x}h/{ascq:02x}h)"
    )]
    Unclear {
        /// The status byte.
        status: u8,
        /// The kernel's `DID_…` code.
        host: u16,
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
}

impl CommandFault {
    /// Whether waiting may mend it.
    #[must_use]
    pub(crate) fn is_passing(self) -> bool {
        matches!(
            self,
            CommandFault::UnitAttention { .. } | CommandFault::Busy { .. } | CommandFault::Unclear { .. }
        )
    }
}

const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const RESERVATION_CONFLICT: u8 = 0x18;
const TASK_SET_FULL: u8 = 0x28;

/// Whether the command was executed, and if not, why.
pub(super) fn judge(reply: &SgReply) -> Result<(), CommandFault> {
    let (status, host, sense) = (reply.status, reply.host, &reply.sense[..]);
    let (key, asc, ascq) = sense_codes(sense).unwrap_or_default();
    let unclear = CommandFault::Unclear {
        status,
        host,
        key,
        asc,
        ascq,
    };
    match (status, host) {
        // Beside the conflict the kernel sets DID_NEXUS_FAILURE, and in later versions nothing.
        (RESERVATION_CONFLICT, _) => Err(CommandFault::ReservationConflict),
        (_, 1..) => Err(unclear),
        (0, 0) => Ok(()),
        (BUSY | TASK_SET_FULL, 0) => Err(CommandFault::Busy { status }),
        (CHECK_CONDITION, 0) => match key {
            // RECOVERED ERROR: the device has done it, if not at the first attempt.
            0x1 if sense_codes(sense).is_some() => Ok(()),
            0x2 => Err(CommandFault::Busy { status }),
            0x5 => Err(CommandFault::Unsupported { asc, ascq }),
            0x6 => Err(CommandFault::UnitAttention { asc, ascq }),
            0x7 => Err(CommandFault::WriteProtected),
            0xe => Err(CommandFault::Miscompare),
            _ => Err(unclear),
        },
        _ => Err(unclear),
    }
}

/// Sense key, additional sense code and its qualifier. `None` if there are none, or if they are deferred (71h, 73h):
/// then they belong to an earlier command and say nothing of this one.
fn sense_codes(sense: &[u8]) -> Option<(u8, u8, u8)> {
    let at = |index: usize| sense.get(index).copied();
    match at(0)? & 0x7f {
        0x70 => Some((at(2)? & 0x0f, at(12).unwrap_or(0), at(13).unwrap_or(0))),
        0x72 => Some((at(1)? & 0x0f, at(2).unwrap_or(0), at(3).unwrap_or(0))),
        _ => None,
    }
}

/// For `tests/fuzz`: any reply has a meaning that can be said.
#[cfg(feature = "fuzzing")]
pub fn fuzz(status: u8, host: u16, sense: &[u8]) {
    let reply = SgReply {
        status,
        host,
        sense: sense.to_vec(),
        transferred: 0,
    };
    let _ = judge(&reply).map_err(|fault| fault.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed(key: u8) -> [u8; 18] {
        let mut sense = [0; 18];
        (sense[0], sense[2], sense[12], sense[13]) = (0xf0, 0x40 | key, 0x1d, 0x03);
        sense
    }

    fn answer(status: u8, host: u16, sense: &[u8]) -> Result<(), CommandFault> {
        judge(&SgReply {
            status,
            host,
            sense: sense.to_vec(),
            transferred: 0,
        })
    }

    #[test]
    fn each_status_has_its_meaning() {
        assert_eq!(answer(0, 0, &[]), Ok(()));
        assert_eq!(answer(0x18, 0, &[]), Err(CommandFault::ReservationConflict));
        assert_eq!(answer(0x18, 0x11, &[]), Err(CommandFault::ReservationConflict));
        for status in [0x08, 0x28] {
            assert_eq!(answer(status, 0, &[]), Err(CommandFault::Busy { status }));
        }
        // DID_NO_CONNECT, DID_TIME_OUT, ...: nobody knows; also beside a status of GOOD.
        for host in [1, 3, 7, 0x0e] {
            for status in [0, 2, 8] {
                let fault = answer(status, host, &[]).unwrap_err();
                assert!(
                    matches!(fault, CommandFault::Unclear { .. }) && fault.is_passing(),
                    "{fault:?}"
                );
            }
        }
        // TASK ABORTED, and what no standard knows.
        for status in [0x04, 0x40, 0x33] {
            assert!(
                matches!(answer(status, 0, &[]), Err(CommandFault::Unclear { .. })),
                "{status:02x}h"
            );
        }
    }

    #[test]
    fn each_sense_key_has_its_meaning_in_both_formats() {
        for (key, expected) in [
            (0x1, Ok(())),
            (0x2, Err(CommandFault::Busy { status: 2 })),
            (0x5, Err(CommandFault::Unsupported { asc: 0x1d, ascq: 3 })),
            (0x6, Err(CommandFault::UnitAttention { asc: 0x1d, ascq: 3 })),
            (0x7, Err(CommandFault::WriteProtected)),
            (0xe, Err(CommandFault::Miscompare)),
        ] {
            assert_eq!(answer(2, 0, &fixed(key)), expected);
            assert_eq!(answer(2, 0, &[0x72, key, 0x1d, 3, 0, 0, 0, 0]), expected);
        }
        for key in [0x0, 0x3, 0x4, 0xb, 0xd] {
            assert!(
                matches!(answer(2, 0, &fixed(key)), Err(CommandFault::Unclear { .. })),
                "{key:x}h"
            );
        }
    }

    #[test]
    fn a_deferred_or_missing_sense_is_no_miscompare() {
        let mut deferred = fixed(0xe);
        deferred[0] = 0x71;
        for sense in [&deferred[..], &[0x73, 0xe, 0, 0], &[0x70, 0], &[0x72], &[]] {
            assert!(
                matches!(answer(2, 0, sense), Err(CommandFault::Unclear { .. })),
                "{sense:?}"
            );
        }
        assert_eq!(
            answer(2, 0, &[0x70, 0, 0xe]),
            Err(CommandFault::Miscompare),
            "as short as it may be"
        );
    }

    proptest! {
        #[test]
        fn only_good_and_recovered_are_success(status: u8, host: u16, sense in proptest::collection::vec(any::<u8>(), 0..32)) {
            let recovered = status == 2 && sense_codes(&sense).is_some_and(|codes| codes.0 == 1);
            prop_assert_eq!(answer(status, host, &sense).is_ok(), host == 0 && (status == 0 || recovered));
        }
    }
}
