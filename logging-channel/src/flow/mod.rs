//! The flow of the log, as pure functions of what arrives and what time it is.
//!
//! - [`Horizon`]: how far a log says the guest got, on either side and in files.
mod horizon;

pub use horizon::{Horizon, OrderError};
