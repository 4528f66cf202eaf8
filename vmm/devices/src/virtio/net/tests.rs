use super::*;
use crate::testing::driver::{Bar, CONFIG, Piece};
use crate::testing::{Seeded, Surroundings, contract, forgetting};
use crate::virtio::VirtioPci;
use crate::virtio::testing::FunctionBench;
use crate::virtio::testing::contract::{Kind, VirtioSubject, pieces};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn running() -> FunctionBench<VirtioNet> {
    FunctionBench::running(VirtioNet::new(1, MAC), 8)
}

fn receive(bench: &mut FunctionBench<VirtioNet>, frame: &[u8]) {
    let FunctionBench { function, around, .. } = bench;
    function.serve(&mut around.env(), |net, queues, env| net.receive(frame, queues, env));
}

fn transmit(bench: &mut FunctionBench<VirtioNet>, pieces: &[Piece]) -> Vec<Effect> {
    let FunctionBench { around, rings, .. } = bench;
    rings[TX].chain(around, pieces);
    bench.notify(1);
    bench.effects()
}

#[test]
fn the_configuration_is_the_address() {
    let mut bench = running();
    let mut mac = [0; 6];
    bench.read_bar(CONFIG, &mut mac);
    assert_eq!(mac, MAC);
}

#[test]
fn a_transmitted_frame_is_an_effect_without_its_header() {
    let mut bench = running();
    let frame: Vec<u8> = (0..60).collect();
    bench.around.write(0x1000, &[0xEE; 12]);
    bench.around.write(0x100C, &frame[..20]);
    bench.around.write(0x2000, &frame[20..]);
    let effects = transmit(
        &mut bench,
        &[Piece::Out(0x1000, 5), Piece::Out(0x1005, 27), Piece::Out(0x2000, 40)],
    );
    assert_eq!(effects, [Effect::Frame { nic: 1, bytes: frame }]);
    assert_eq!(bench.rings[TX].used(&bench.around), Some((0, 0)));
    assert_eq!(bench.isr(), 1);
    assert_eq!(bench.isr(), 0, "reading clears it");
}

#[test]
fn frames_are_bounded_on_both_sides() {
    for (len, sent) in [(13, false), (14, true), (65_550, true), (65_551, false)] {
        let mut bench = running();
        let effects = transmit(&mut bench, &[Piece::Out(0x1000, 12 + len)]);
        assert_eq!(effects.len(), usize::from(sent), "{len} bytes");
        assert!(
            bench.rings[TX].used(&bench.around).is_some(),
            "dropped or not, the buffer comes back"
        );
    }
}

#[test]
fn a_header_that_is_too_short_is_a_fault() {
    let mut bench = running();
    transmit(&mut bench, &[Piece::Out(0x1000, 11)]);
    let expected = QueueFault::TooShort {
        readable: 11,
        writable: 0,
    };
    assert_eq!(crate::virtio::PciFunction::fault(&bench.function), Some(expected));
}

#[test]
fn a_received_frame_is_in_memory_when_the_input_ends() {
    let mut bench = running();
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[RX].chain(around, &[Piece::In(0x1000, 20), Piece::In(0x3000, 100)]);
    assert!(!bench.function.model().rx_ready(), "not told yet");
    bench.notify(0);
    assert!(bench.function.model().rx_ready());
    let frame: Vec<u8> = (100..160).collect();
    receive(&mut bench, &frame);
    assert_eq!(bench.around.read(0x1000, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.around.read(0x100C, 8), frame[..8]);
    assert_eq!(bench.around.read(0x3000, 52), frame[8..]);
    assert_eq!(bench.around.read(0x3034, 4), [0; 4], "nothing behind it is touched");
    assert_eq!(bench.rings[RX].used(&bench.around), Some((0, 72)));
    assert_eq!(bench.isr(), 1);
    assert!(!bench.function.model().rx_ready(), "that was the only buffer");
}

#[test]
fn a_frame_without_a_buffer_is_dropped() {
    let mut bench = running();
    receive(&mut bench, &[1; 60]);
    assert_eq!(bench.isr(), 0);
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[RX].chain(around, &[Piece::In(0x1000, 71)]);
    bench.notify(0);
    receive(&mut bench, &[1; 60]);
    assert_eq!(
        bench.rings[RX].used(&bench.around),
        None,
        "too small by one: kept for a smaller frame"
    );
    assert!(bench.function.model().rx_ready());
    receive(&mut bench, &[1; 59]);
    assert_eq!(bench.rings[RX].used(&bench.around), Some((0, 71)));
}

#[test]
fn a_driver_that_polls_gets_no_interrupt() {
    let mut bench = running();
    let no_interrupt = bench.rings[TX].avail();
    bench.around.write(no_interrupt, &[1, 0]);
    transmit(&mut bench, &[Piece::Out(0x1000, 60)]);
    assert!(bench.rings[TX].used(&bench.around).is_some());
    assert_eq!(bench.isr(), 0);
}

#[test]
fn dma_is_marked_dirty() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    let mut bench = running();
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[RX].chain(around, &[Piece::In(0x5000, 2000)]);
    bench.notify(0);
    let dirty = |bench: &FunctionBench<VirtioNet>, page: usize| {
        let region = bench.around.memory.iter().next().expect("one region");
        region.bitmap().dirty_at(page * 0x1000)
    };
    assert!(!dirty(&bench, 5) && !dirty(&bench, 0x22));
    receive(&mut bench, &[1; 60]);
    assert!(dirty(&bench, 5), "the buffer");
    assert!(dirty(&bench, 0x22), "the used ring");
    assert!(!dirty(&bench, 6), "and nothing else");
}

impl Kind for VirtioNet {
    fn fresh() -> Self {
        VirtioNet::new(1, MAC)
    }

    fn chain(index: usize, _: &Surroundings, random: &mut Seeded) -> Vec<Piece> {
        pieces(if index == RX { Piece::In } else { Piece::Out }, 150, random)
    }

    fn input(function: &mut VirtioPci<Self>, around: &mut Surroundings, random: &mut Seeded) {
        let frame = random.bytes(200);
        function.serve(&mut around.env(), |net, queues, env| net.receive(&frame, queues, env));
    }

    fn show(function: &VirtioPci<Self>) -> String {
        function.model().rx_ready().to_string()
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<VirtioSubject<VirtioNet>>();
}

#[test]
fn every_field_matters() {
    // What the configuration fixes does not change.
    forgetting::check::<VirtioSubject<VirtioNet>>(&[
        "/transport/model/mac",
        "/transport/model/number",
        "/transport/queues/0/max_size",
        "/transport/queues/1/max_size",
    ]);
}
