//! `scribble`: breaks the rings of its network cards and disks in every way there is, and goes on.
//!
//! Hostile input for the machine: each round resets each device, breaks its rings in one way after the other, and looks
//! whether the device stopped as it must. Between rounds a timer tick passes with a broken receive queue in place, for
//! frames that come to find. In the end the devices are used as they should be: a reset has to cure them.
//! Options: `rounds=N` (3; 0 = for ever).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

use guest_rt::abi::status;
use guest_rt::memory::FreeMemory;
use guest_rt::{Boot, cpu, println, timer};
use guest_virtio::DeviceError;
use guest_virtio::block::{Block, SECTOR};
use guest_virtio::net::Net;
use guest_virtio::offence::{Offence, Offender, Verdict};
use guest_virtio::pci::{self, Function, Kind};

guest_rt::entry!(main);

/// The queues that a driver makes requests at, and the one that waits for frames.
const REQUESTS: [(Kind, u16); 2] = [(Kind::Net, 1), (Kind::Block, 0)];
const RECEIVE: (Kind, u16) = (Kind::Net, 0);
/// Pages for the allocator, which the block driver uses.
const HEAP_PAGES: usize = 256;
/// Ticks in which a disk has to answer: a minute.
const PATIENCE: u64 = 60 * timer::TICK_HZ as u64;
/// A broadcast frame of an experimental protocol (IEEE Std 802, local experimental EtherType 1), without a payload.
const FRAME_LEN: usize = 60;
const FRAME_START: [u8; 14] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];

/// Commits every offence at the queues; how many stopped a device.
fn round(offender: &mut Offender) -> Result<usize, (Kind, Offence, Option<DeviceError>)> {
    let mut stopped = 0;
    for (kind, queue) in REQUESTS {
        let Some(function) = pci::find(kind) else { continue };
        for offence in Offence::ALL {
            let verdict = offender.commit(function, queue, offence);
            match verdict.map_err(|error| (kind, offence, Some(error)))? {
                Verdict::Stopped => stopped += 1,
                Verdict::GoesOn if offence.must_stop() => return Err((kind, offence, None)),
                Verdict::GoesOn => {}
            }
        }
    }
    Ok(stopped)
}

/// Leaves a broken receive queue to the frames that come; another breakage each time.
fn set_trap(offender: &mut Offender, number: u64) {
    let at = usize::try_from(number).unwrap_or(0) % Offence::ALL.len();
    if let Some(function) = pci::find(RECEIVE.0) {
        // Whether it has stopped already depends on the offence.
        let _ = offender.commit(function, RECEIVE.1, Offence::ALL[at]);
    }
}

fn send_frame(function: Function, memory: &mut FreeMemory) -> Result<(), DeviceError> {
    let mut net = Net::open(function, memory)?;
    if net.transmitter.is_ready() {
        net.transmitter.transmit(FRAME_LEN, |frame| {
            frame.fill(0);
            frame[..FRAME_START.len()].copy_from_slice(&FRAME_START);
        });
    }
    net.notify();
    Ok(())
}

fn read_sector(function: Function, memory: &mut FreeMemory) -> Result<bool, DeviceError> {
    let mut block = Block::open(function, memory)?;
    block.start_read(0, SECTOR);
    let begun = timer::ticks();
    let mut answer = None;
    cpu::halt_until(|| {
        answer = answer.take().or_else(|| block.poll());
        answer.is_some() || timer::ticks() - begun > PATIENCE
    });
    Ok(matches!(answer, Some(Ok(_))))
}

/// Uses the devices as they should be used; the guest's exit status.
fn use_well(memory: &mut FreeMemory) -> u8 {
    let net = pci::find(Kind::Net).map(|function| send_frame(function, memory));
    let disk = pci::find(Kind::Block).map(|function| read_sector(function, memory));
    if matches!(net, None | Some(Ok(()))) && matches!(disk, None | Some(Ok(true))) {
        println!("scribble ok");
        return status::OK;
    }
    println!("scribble FAILED after a reset: network {net:?}, disk {disk:?}");
    status::MISMATCH
}

fn main(mut boot: Boot) -> u8 {
    boot.cmdline.allow(&["rounds"]);
    let rounds: u64 = boot.cmdline.get("rounds", 3);
    if REQUESTS.iter().all(|(kind, _)| pci::find(*kind).is_none()) {
        println!("scribble: no virtio network card or disk on PCI bus 0");
        return status::USAGE;
    }
    let offender = Offender::new(&mut boot.memory, boot.info.memory_bytes, boot.info.seed);
    let (Some(mut offender), Some(heap)) = (offender, boot.memory.take(HEAP_PAGES)) else {
        println!(
            "scribble: {} pages are free, {HEAP_PAGES} and some are needed",
            boot.memory.pages()
        );
        return status::USAGE;
    };
    guest_heap::init(heap);
    timer::start(timer::TICK_HZ);
    let mut done = 0;
    while rounds == 0 || done < rounds {
        match round(&mut offender) {
            Ok(stopped) => println!("scribble {}: {stopped} stops", done + 1),
            Err((kind, offence, error)) => {
                println!("scribble FAILED {kind:?} {offence:?}: {error:?}");
                return status::MISMATCH;
            }
        }
        set_trap(&mut offender, done);
        let tick = timer::ticks();
        cpu::halt_until(|| timer::ticks() > tick);
        done += 1;
    }
    use_well(&mut boot.memory)
}
