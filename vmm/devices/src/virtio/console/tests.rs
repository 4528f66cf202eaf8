use super::*;
use crate::testing::driver::{Bar, Piece};
use crate::testing::{Seeded, Surroundings, contract, forgetting};
use crate::virtio::testing::FunctionBench;
use crate::virtio::testing::contract::{Kind, VirtioSubject, pieces};
use crate::virtio::{PciFunction, VirtioPci};

fn running() -> FunctionBench<VirtioConsole> {
    FunctionBench::running(VirtioConsole::default(), 8)
}

fn receive(bench: &mut FunctionBench<VirtioConsole>, bytes: &[u8]) {
    let FunctionBench { function, around, .. } = bench;
    function.serve(&mut around.env(), |console, queues, env| {
        console.receive(bytes, queues, env)
    });
}

#[test]
fn what_the_driver_writes_is_an_effect() {
    let mut bench = running();
    bench.around.write(0x1000, b"hello");
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[TX].chain(around, &[Piece::Out(0x1000, 2), Piece::Out(0x1002, 3)]);
    bench.notify(1);
    let expected = Effect::Console {
        port: ConsolePort::Virtio,
        bytes: b"hello".to_vec(),
    };
    assert_eq!(bench.effects(), [expected]);
    assert_eq!(bench.rings[TX].used(&bench.around), Some((0, 0)));
}

#[test]
fn bytes_wait_for_buffers_and_fill_them_in_order() {
    let mut bench = running();
    receive(&mut bench, b"abcdef");
    assert_eq!(bench.isr(), 0);
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[RX].chain(around, &[Piece::In(0x1000, 4)]);
    rings[RX].chain(around, &[Piece::In(0x2000, 4)]);
    bench.notify(0);
    assert_eq!(bench.around.read(0x1000, 4), b"abcd");
    assert_eq!(bench.around.read(0x2000, 4), b"ef\0\0");
    assert_eq!(bench.rings[RX].used(&bench.around), Some((0, 4)));
    assert_eq!(bench.rings[RX].used(&bench.around), Some((1, 2)));
    assert_eq!(bench.isr(), 1);
}

#[test]
fn the_backlog_is_bounded() {
    let mut bench = running();
    receive(&mut bench, &[b'x'; BACKLOG - 1]);
    assert_eq!(bench.function.model().room(), 1);
    receive(&mut bench, b"yz");
    assert_eq!(bench.function.model().room(), 0);
    assert_eq!(bench.function.model().backlog.back(), Some(&b'y'));
    bench.set_status(0);
    assert_eq!(bench.function.model().room(), BACKLOG, "a reset forgets it");
}

#[test]
fn an_endless_buffer_is_a_fault() {
    let mut bench = running();
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[TX].chain(around, &[Piece::Out(0, 0x2_0000); 8]);
    bench.notify(1);
    assert_eq!(bench.effects().len(), 1, "a mebibyte is allowed");
    let FunctionBench { around, rings, .. } = &mut bench;
    let mut pieces = [Piece::Out(0, 0x2_0000); 8];
    pieces[7] = Piece::Out(0, 0x2_0001);
    rings[TX].chain(around, &pieces);
    bench.notify(1);
    assert_eq!(bench.effects(), []);
    assert_eq!(bench.function.fault(), Some(QueueFault::TooLong { max: MAX_OUTPUT }));
}

impl Kind for VirtioConsole {
    fn fresh() -> Self {
        VirtioConsole::default()
    }

    fn chain(index: usize, _: &Surroundings, random: &mut Seeded) -> Vec<Piece> {
        pieces(if index == RX { Piece::In } else { Piece::Out }, 40, random)
    }

    fn input(function: &mut VirtioPci<Self>, around: &mut Surroundings, random: &mut Seeded) {
        let bytes = random.bytes(200);
        function.serve(&mut around.env(), |console, queues, env| {
            console.receive(&bytes, queues, env)
        });
    }

    fn show(function: &VirtioPci<Self>) -> String {
        function.model().room().to_string()
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<VirtioSubject<VirtioConsole>>();
}

#[test]
fn every_field_matters() {
    // What the model fixes does not change.
    forgetting::check::<VirtioSubject<VirtioConsole>>(&[
        "/transport/queues/0/max_size",
        "/transport/queues/1/max_size",
    ]);
}
