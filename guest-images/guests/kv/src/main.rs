//! `kv`: a key-value server for stock Redis clients, with an append-only log on its disk.
//!
//! The guest that shows what fault tolerance is for: clients talk to it over TCP, and neither an acknowledged write nor an
//! open connection may get lost when its host dies. It works at CPL3, where a software KVM is fast, and halts through the
//! runtime's call when there is nothing to do. Its only clock is the count of timer ticks, and its random seed comes with
//! the boot information. A round of work takes all frames that are there, executes what they ask for, and tells each
//! device once.
//! Options: `ip=A.B.C.D/N` (192.168.7.2/24), `gw=A.B.C.D` (192.168.7.1), `port=N` (6379),
//! `appendfsync=always|everysec|no` (everysec), `format=yes` to overwrite a disk that holds something else.

#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod config;
mod disk;
mod network;
mod server;

use config::{Config, MIN_HEAP, Shares};
use disk::Disk;
use guest_rt::abi::status;
use guest_rt::memory::PAGE_SIZE;
use guest_rt::pic::{self, EndOfInterrupt};
use guest_rt::{Boot, cpu, power, println, timer, user};
use guest_virtio::block::Block;
use guest_virtio::net::Net;
use guest_virtio::pci::{self, Kind};
use kv_core::engine::{Engine, Settings};
use kv_core::log::Geometry;
use network::Network;
use server::{Clock, Server};

guest_rt::entry!(main);

/// A device that is there has to be usable.
fn usable<T>(what: &str, result: Result<T, impl core::fmt::Display>) -> T {
    result.unwrap_or_else(|error| {
        println!("kv: {what}: {error}");
        power::exit(status::USAGE)
    })
}

fn main(mut boot: Boot) -> u8 {
    let config = Config::parse(boot.cmdline);
    let seed = boot.info.seed;
    pic::init(EndOfInterrupt::Automatic);
    timer::start(timer::TICK_HZ);

    let Some(net) = pci::find(Kind::Net) else {
        println!("kv: no virtio network device on PCI bus 0");
        return status::USAGE;
    };
    let net = usable("network device", Net::open(net, &mut boot.memory));
    let block = pci::find(Kind::Block).map(|block| usable("disk", Block::open(block, &mut boot.memory)));

    let heap_pages = boot.memory.pages();
    let heap = heap_pages * PAGE_SIZE;
    if heap < MIN_HEAP {
        println!("kv: {heap} bytes of memory are left, {MIN_HEAP} are needed: give the guest 48 MiB or more");
        return status::USAGE;
    }
    boot.memory.take(heap_pages).into_iter().for_each(guest_heap::init);
    let shares = Shares::of(heap);

    let clock = Clock::start();
    if clock.is_relative() {
        println!("kv: the real-time clock holds no date; time counts from 1970");
    }
    cpu::enable_interrupts();
    let status = user::run(|| {
        let geometry = block
            .as_ref()
            .map(|block| usable("disk", Geometry::of(block.sectors())));
        let max_memory = geometry.map_or(shares.max_store, |geometry| geometry.max_store().min(shares.max_store));
        let settings = Settings {
            max_memory,
            max_reply: shares.max_reply,
            max_clients: shares.connections.clients,
            port: config.port,
            append_fsync: block.as_ref().map(|_| config.append_fsync),
        };
        let mut engine = Engine::new(settings);
        let disk = match block {
            Some(block) => {
                let disk_id = seed ^ clock.now();
                Some(Disk::open(
                    block,
                    config.append_fsync,
                    config.format,
                    disk_id,
                    &mut engine,
                ))
            }
            None => {
                println!("kv: no disk: nothing is kept when the machine stops");
                None
            }
        };
        Server::new(&config, &shares, Network(net), disk, engine, clock, seed).run()
    });
    cpu::disable_interrupts();
    status
}
