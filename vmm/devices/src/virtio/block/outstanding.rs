//! Requests between the effect that asks for them and the input that completes them.

use ftvm_schema::request::{DiskOp, DiskRequest};
use serde::{Deserialize, Serialize};

use super::MAX_DATA;
use crate::error::BadState;
use crate::virtio::chain::ChainBuffer;

/// No disk gets that far, so counting on never overflows.
const MAX_ID: u64 = 1 << 63;

/// Who waits for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Waiter {
    /// The driver: the chain's head, and where data and status go.
    Driver { head: u16, writable: ChainBuffer },
    /// The driver has reset the device since.
    Nobody,
}

/// One request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outstanding {
    pub request: DiskRequest,
    pub reply: Waiter,
}

/// Bytes a request moves.
pub(super) fn data_len(op: &DiskOp) -> u64 {
    match op {
        DiskOp::Read { len, .. } => (*len).into(),
        DiskOp::Write { data, .. } => data.len() as u64,
        DiskOp::Flush => 0,
    }
}

/// Refuses a list that disk `number` cannot have: too long, out of order, or with requests it would not make.
pub(super) fn check(list: &[Outstanding], number: u8, next_id: u64, max: usize) -> Result<(), BadState> {
    if list.len() > max {
        return Err(BadState::new("outstanding disk requests", "at most 128", list.len()));
    }
    if next_id > MAX_ID {
        return Err(BadState::new("the next disk request's number", "at most 2^63", next_id));
    }
    let ids = list.iter().map(|outstanding| outstanding.request.id).chain([next_id]);
    if !ids.is_sorted_by(|earlier, later| earlier < later) {
        return Err(BadState::new(
            "disk request numbers",
            "ascending and below the next",
            next_id,
        ));
    }
    for Outstanding { request, .. } in list {
        if request.disk != number || data_len(&request.op) > MAX_DATA.into() {
            return Err(BadState::new(
                "an outstanding request",
                "one this disk could make",
                format!("{request:?}"),
            ));
        }
    }
    Ok(())
}
