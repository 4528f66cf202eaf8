//! The chipset's state as it travels in checkpoints and state records.
//!
//! The devices' own structs are the state, so a new field cannot be forgotten; what arithmetic relies on is checked
//! when a state comes in. There are no maps with a random order in it: equal states are equal bytes.

use serde::{Deserialize, Serialize};

use super::super::config::PlatformConfig;
use super::super::error::BadState;
use super::super::i8042::I8042;
use super::super::pci::Pci;
use super::super::pic::Pic;
use super::super::pit::Pit;
use super::super::rtc::Rtc;
use super::super::uart::Uart;
use super::Chipset;

/// Version of [`ChipsetState`]; raised with every change of what it holds.
const VERSION: u32 = 1;

/// Everything about the devices, in a form that can be stored and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsetState {
    version: u32,
    config: PlatformConfig,
    clock: u64,
    pic: Pic,
    pit: Pit,
    uart: Uart,
    rtc: Rtc,
    i8042: I8042,
    pci: Pci,
}

/// Why a state was not restored. The chipset is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version of this program.
    #[error("device state has version {found}, this program reads version {VERSION}; use the same ftvm on both sides")]
    Version { found: u32 },
    /// Taken from a machine with other devices.
    #[error("device state belongs to a machine with other devices; start both sides with the same configuration")]
    OtherPlatform,
    /// The state is damaged.
    #[error("device state is damaged: {0}")]
    Damaged(#[from] BadState),
}

impl Chipset {
    /// The devices' state between two calls.
    #[must_use]
    pub fn save(&self) -> ChipsetState {
        ChipsetState {
            version: VERSION,
            config: self.config.clone(),
            clock: self.clock,
            pic: self.pic.clone(),
            pit: self.pit.clone(),
            uart: self.uart.clone(),
            rtc: self.rtc.clone(),
            i8042: self.i8042.clone(),
            pci: self.pci.clone(),
        }
    }

    /// Puts the devices into a saved state. Nothing is emitted; what is due is in [`Chipset::next_deadline`],
    /// [`Chipset::outstanding_requests`] and their like.
    ///
    /// # Errors
    /// The state is of another version or platform, or damaged; the chipset is unchanged then.
    pub fn restore(&mut self, state: &ChipsetState) -> Result<(), RestoreError> {
        if state.version != VERSION {
            return Err(RestoreError::Version { found: state.version });
        }
        if state.config != self.config {
            return Err(RestoreError::OtherPlatform);
        }
        state.pit.check()?;
        state.uart.check()?;
        state.rtc.check(&self.rtc)?;
        state.pci.check(&self.pci)?;
        *self = Chipset {
            config: state.config.clone(),
            clock: state.clock,
            pic: state.pic.clone(),
            pit: state.pit.clone(),
            uart: state.uart.clone(),
            rtc: state.rtc.clone(),
            i8042: state.i8042.clone(),
            pci: state.pci.clone(),
        };
        Ok(())
    }
}
