//! What leaves the guest: each effect of a device gets its place in the history, and each output its number.

use ftvm_schema::entry::EndReason;

use super::Machine;
use crate::output::{Emission, Output};
use ftvm_devices::Effect;
use ftvm_hypervisor::Cpu;

impl<C: Cpu> Machine<C> {
    /// Turns what devices want to do outside into numbered outputs, or into the guest's end.
    pub(super) fn emit(&mut self) {
        for effect in self.effects.drain(..) {
            let emission = match effect {
                Effect::Frame { nic, bytes } => Emission::Frame { nic, bytes },
                Effect::Console { port, bytes } => {
                    let written = &mut self.console[port as usize];
                    let position = *written;
                    *written += bytes.len() as u64;
                    Emission::Console { port, position, bytes }
                }
                Effect::Disk(request) if self.private_disks.contains(&request.disk) => Emission::PrivateDisk(request),
                Effect::Disk(request) => Emission::Disk(request),
                Effect::WantEntropy { len } => Emission::WantEntropy { len },
                Effect::PowerOff { status } => {
                    self.ended.get_or_insert(EndReason::PowerOff { status });
                    continue;
                }
                Effect::Reset => {
                    self.ended.get_or_insert(EndReason::Reset);
                    continue;
                }
            };
            emission.fold(&mut self.digest);
            let seq = self.outputs;
            if emission.is_output() {
                self.outputs.0 += 1;
            }
            self.emitted.push(Output {
                at: self.at,
                seq,
                emission,
            });
        }
    }
}
