//! What a replay that is not the recorded history is told by.

use ftvm_schema::entry::{REGISTER_NAMES, RegisterFile};
use serde::Serialize;

/// A replay that is not the recorded history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// The exit at which the difference was noticed or, with `exact`, at which it first showed.
    pub at_exit: u64,
    /// Inputs applied at that exit so far.
    pub inputs: u32,
    /// Whether `at_exit` is the first exit that differs; otherwise it lies between the last good mark and `at_exit`.
    pub exact: bool,
    /// The last exit at which a mark's digest agreed.
    pub last_good_exit: u64,
    /// What was expected and what was found.
    pub what: String,
    /// Registers of the replayed guest, in the order of `REGISTER_NAMES`.
    pub registers: RegisterFile,
    /// Registers in the log, where the noticing mark carried them.
    pub recorded: Option<RegisterFile>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.exact {
            writeln!(
                f,
                "diverged at exit {}, RIP {:#x}: {}",
                self.at_exit, self.registers[16], self.what
            )?;
        } else {
            writeln!(
                f,
                "diverged between exits {} and {}.{}, noticed at RIP {:#x}: {}",
                self.last_good_exit, self.at_exit, self.inputs, self.registers[16], self.what
            )?;
        }
        for (index, name) in REGISTER_NAMES.iter().enumerate() {
            write!(f, "  {name:>6} {:016x}", self.registers[index])?;
            match self.recorded {
                Some(recorded) if recorded[index] != self.registers[index] => {
                    writeln!(f, "  recorded {:016x}", recorded[index])?;
                }
                _ if index % 3 == 2 || self.recorded.is_some() => writeln!(f)?,
                _ => {}
            }
        }
        Ok(())
    }
}
