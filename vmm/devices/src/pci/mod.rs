//! The PCI bus: configuration mechanism 1, a host bridge, and the virtio functions (PCI 3.0, 3.2.2.3).
//!
//! One bus, no bridges, function 0 only. Device n sits in slot n from 1 on: network cards, disks, console, entropy
//! source. BARs are preassigned from 0xE0000000 and decoded wherever the guest moves them; interrupt lines 5, 9, 10 and
//! 11 are dealt out by slot and shared. The host bridge is there because kernels believe in PCI only if they find one.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::config::PlatformConfig;
use super::env::DeviceEnv;
use super::error::BadState;
use super::virtio::block::VirtioBlock;
use super::virtio::console::VirtioConsole;
use super::virtio::net::VirtioNet;
use super::virtio::rng::VirtioRng;
use super::virtio::{BAR_SIZE, PciFunction, QueueFault, VirtioPci};

/// Where the functions' BARs begin: in a hole that the memory map leaves free.
const BAR_BASE: u32 = 0xE000_0000;

/// Interrupt inputs of the PIC that PCI functions share, by slot.
pub(super) const IRQS: [u8; 4] = [5, 9, 10, 11];

/// CONFIG_ADDRESS; only a dword access reaches it. Byte 3 of it is what conf1 probes write to.
const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;
const LAST: u16 = 0xCFF;

const ENABLE: u32 = 1 << 31;
const ADDRESS_WRITABLE: u32 = 0x80FF_FFFC;

/// Red Hat's host bridge, class 0600, without function of its own.
const HOST_BRIDGE_ID: u32 = 0x0008_1B36;
const HOST_BRIDGE_CLASS: u32 = 0x0600_0000;

/// The bus and what is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pci {
    address: u32,
    pub(super) nics: Vec<VirtioPci<VirtioNet>>,
    pub(super) disks: Vec<VirtioPci<VirtioBlock>>,
    pub(super) console: Option<VirtioPci<VirtioConsole>>,
    pub(super) rng: Option<VirtioPci<VirtioRng>>,
}

/// What an address on the bus names.
enum Target<'a> {
    HostBridge,
    Function(&'a mut dyn PciFunction),
    Nothing,
}

impl Pci {
    /// The bus with everything the configuration names, which is valid.
    pub(super) fn new(config: &PlatformConfig) -> Self {
        let mut slots = 0u8..;
        let mut place = move || {
            let index = slots.next().expect("fewer functions than slots");
            let bar = BAR_BASE + u32::from(index) * BAR_SIZE;
            (bar, IRQS[usize::from(index) % IRQS.len()])
        };
        let nics = config.nics.iter().zip(0..).map(|(nic, number)| {
            let (bar, irq) = place();
            VirtioPci::new(VirtioNet::new(number, nic.mac), bar, irq)
        });
        let nics = nics.collect();
        let disks = config.disks.iter().zip(0..).map(|(disk, number)| {
            let (bar, irq) = place();
            VirtioPci::new(VirtioBlock::new(number, disk.clone()), bar, irq)
        });
        let disks = disks.collect();
        let console = config.virtio_console.then(|| {
            let (bar, irq) = place();
            VirtioPci::new(VirtioConsole::default(), bar, irq)
        });
        let rng = config.rng.then(|| {
            let (bar, irq) = place();
            VirtioPci::new(VirtioRng::default(), bar, irq)
        });
        Pci {
            address: 0,
            nics,
            disks,
            console,
            rng,
        }
    }

    /// Takes over the requests that the disks of the bus before a reset have taken.
    pub(super) fn inherit(&mut self, before: &Pci) {
        for (disk, before) in self.disks.iter_mut().zip(&before.disks) {
            disk.model_mut().inherit(before.model());
        }
    }

    /// Whether a port belongs to configuration mechanism 1.
    pub(super) fn claims(port: u16) -> bool {
        (ADDRESS..=LAST).contains(&port)
    }

    /// The guest reads a port from 0xCF8 to 0xCFF.
    pub(super) fn port_read(&mut self, port: u16, data: &mut [u8], env: &mut DeviceEnv<'_>) {
        data.fill(0xFF);
        if port == ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some(lane) = lane(port, data.len()) {
            let register = self.register();
            let value = match self.target() {
                Target::HostBridge => read_host_bridge(register),
                Target::Function(function) => function.read_register(register, env),
                Target::Nothing => return,
            };
            let len = data.len();
            data.copy_from_slice(&value.to_le_bytes()[lane..lane + len]);
        }
    }

    /// The guest writes a port from 0xCF8 to 0xCFF.
    pub(super) fn port_write(&mut self, port: u16, data: &[u8], env: &mut DeviceEnv<'_>) {
        if port == ADDRESS {
            if let Ok(address) = data.try_into() {
                self.address = u32::from_le_bytes(address) & ADDRESS_WRITABLE;
            }
        } else if let Some(lane) = lane(port, data.len()) {
            let register = self.register();
            if let Target::Function(function) = self.target() {
                function.write_register(register, lane, data, env);
            }
        }
    }

    /// Reads from the function whose BAR claims the address; whether there is one.
    pub(super) fn mmio_read(&mut self, addr: u64, data: &mut [u8], env: &mut DeviceEnv<'_>) -> bool {
        let Some((function, offset)) = self.decode(addr, data.len()) else {
            return false;
        };
        function.read_bar(offset, data, env);
        true
    }

    /// Writes to the function whose BAR claims the address; whether there is one.
    pub(super) fn mmio_write(&mut self, addr: u64, data: &[u8], env: &mut DeviceEnv<'_>) -> bool {
        let Some((function, offset)) = self.decode(addr, data.len()) else {
            return false;
        };
        function.write_bar(offset, data, env);
        true
    }

    /// Bit n is set where some function drives input n of the PIC.
    pub(super) fn interrupts(&self) -> u16 {
        let driven = self
            .functions()
            .zip(IRQS.into_iter().cycle())
            .filter(|(function, _)| function.interrupt());
        driven.fold(0, |lines, (_, irq)| lines | 1 << irq)
    }

    /// Functions that wait for a reset, by slot, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = (u8, QueueFault)> {
        self.functions()
            .zip(1..)
            .filter_map(|(function, slot)| Some((slot, function.fault()?)))
    }

    /// Refuses a state of other devices than `built`'s, or one that they cannot have.
    pub(super) fn check(&self, built: &Pci) -> Result<(), BadState> {
        if self.functions().count() != built.functions().count() {
            return Err(BadState::new(
                "the PCI functions",
                "those configured here",
                self.functions().count(),
            ));
        }
        check_all(&self.nics, &built.nics)?;
        check_all(&self.disks, &built.disks)?;
        check_all(self.console.as_slice(), built.console.as_slice())?;
        check_all(self.rng.as_slice(), built.rng.as_slice())
    }

    fn functions(&self) -> impl Iterator<Item = &dyn PciFunction> {
        let nics = self.nics.iter().map(|nic| nic as &dyn PciFunction);
        let disks = self.disks.iter().map(|disk| disk as &dyn PciFunction);
        let console = self.console.iter().map(|console| console as &dyn PciFunction);
        let rng = self.rng.iter().map(|rng| rng as &dyn PciFunction);
        nics.chain(disks).chain(console).chain(rng)
    }

    fn functions_mut(&mut self) -> impl Iterator<Item = &mut dyn PciFunction> {
        let nics = self.nics.iter_mut().map(|nic| nic as &mut dyn PciFunction);
        let disks = self.disks.iter_mut().map(|disk| disk as &mut dyn PciFunction);
        let console = self.console.iter_mut().map(|console| console as &mut dyn PciFunction);
        let rng = self.rng.iter_mut().map(|rng| rng as &mut dyn PciFunction);
        nics.chain(disks).chain(console).chain(rng)
    }

    /// Where BARs overlap, the lowest slot answers.
    fn decode(&mut self, addr: u64, len: usize) -> Option<(&mut dyn PciFunction, u32)> {
        self.functions_mut().find_map(|function| {
            let offset = function.decode(addr, len)?;
            Some((function, offset))
        })
    }

    fn register(&self) -> u8 {
        let [register, ..] = self.address.to_le_bytes();
        register & !3
    }

    fn target(&mut self) -> Target<'_> {
        let [_, device_function, bus, _] = self.address.to_le_bytes();
        if self.address & ENABLE == 0 || bus != 0 || device_function & 7 != 0 {
            return Target::Nothing;
        }
        match usize::from(device_function >> 3).checked_sub(1) {
            None => Target::HostBridge,
            Some(index) => self
                .functions_mut()
                .nth(index)
                .map_or(Target::Nothing, Target::Function),
        }
    }
}

/// The first byte of the dword that an access to CONFIG_DATA names, if it stays within it.
fn lane(port: u16, len: usize) -> Option<usize> {
    let lane = usize::from(port.checked_sub(DATA)?);
    (lane + len <= 4).then_some(lane)
}

fn read_host_bridge(register: u8) -> u32 {
    match register {
        0x00 => HOST_BRIDGE_ID,
        0x08 => HOST_BRIDGE_CLASS,
        _ => 0,
    }
}

fn check_all<M: super::virtio::Model>(state: &[VirtioPci<M>], built: &[VirtioPci<M>]) -> Result<(), BadState> {
    if state.len() != built.len() {
        return Err(BadState::new(
            "the PCI functions of a kind",
            "those configured here",
            state.len(),
        ));
    }
    state
        .iter()
        .zip(built)
        .try_for_each(|(state, built)| state.check(built))
}
