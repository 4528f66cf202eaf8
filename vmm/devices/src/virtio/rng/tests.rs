use super::*;
use crate::testing::driver::{Bar, Piece};
use crate::testing::{Seeded, Surroundings, contract, forgetting};
use crate::virtio::VirtioPci;
use crate::virtio::testing::FunctionBench;
use crate::virtio::testing::contract::{Kind, VirtioSubject, pieces};

fn running() -> FunctionBench<VirtioRng> {
    FunctionBench::running(VirtioRng::default(), 8)
}

fn ask(bench: &mut FunctionBench<VirtioRng>, pieces: &[Piece]) {
    let FunctionBench { around, rings, .. } = bench;
    rings[0].chain(around, pieces);
    bench.notify(0);
}

fn answer(bench: &mut FunctionBench<VirtioRng>, bytes: &[u8]) {
    let FunctionBench { function, around, .. } = bench;
    function.serve(&mut around.env(), |rng, queues, env| rng.answer(bytes, queues, env));
}

#[test]
fn a_request_wants_entropy_and_gets_it() {
    let mut bench = running();
    ask(&mut bench, &[Piece::In(0x1000, 4), Piece::In(0x2000, 60)]);
    assert_eq!(bench.effects(), [Effect::WantEntropy { len: 64 }]);
    assert_eq!(bench.function.model().wanted(), Some(64));
    let bytes: Vec<u8> = (0..64).collect();
    answer(&mut bench, &bytes);
    assert_eq!(
        [bench.around.read(0x1000, 4), bench.around.read(0x2000, 60)].concat(),
        bytes
    );
    assert_eq!(bench.rings[0].used(&bench.around), Some((0, 64)));
    assert_eq!(bench.isr(), 1);
    assert_eq!(bench.function.model().wanted(), None);
}

#[test]
fn less_may_be_given_and_more_is_cut() {
    for (given, used) in [(1, 1), (16, 16), (17, 16)] {
        let mut bench = running();
        ask(&mut bench, &[Piece::In(0x1000, 16)]);
        answer(&mut bench, &vec![0xAA; given]);
        assert_eq!(bench.rings[0].used(&bench.around), Some((0, used)), "{given} given");
        assert_eq!(bench.around.read(0x1010, 1), [0]);
    }
}

#[test]
fn requests_are_answered_one_after_the_other() {
    let mut bench = running();
    ask(&mut bench, &[Piece::In(0x1000, 8)]);
    ask(&mut bench, &[Piece::In(0x1100, 2000)]);
    assert_eq!(bench.effects(), [Effect::WantEntropy { len: 8 }]);
    answer(&mut bench, &[1; 8]);
    assert_eq!(bench.effects(), [Effect::WantEntropy { len: 1024 }], "bounded");
    answer(&mut bench, &[]);
    assert_eq!(bench.function.model().wanted(), Some(1024), "nothing is no answer");
    answer(&mut bench, &[2; 1024]);
    assert_eq!(bench.around.read(0x1100 + 1023, 2), [2, 0]);
    assert_eq!(bench.function.model().wanted(), None);
}

#[test]
fn an_answer_after_a_reset_goes_nowhere() {
    let mut bench = running();
    ask(&mut bench, &[Piece::In(0x1000, 8)]);
    bench.set_status(0);
    answer(&mut bench, &[1; 8]);
    assert_eq!(bench.around.read(0x1000, 8), [0; 8]);
}

#[test]
fn a_request_without_room_is_a_fault() {
    let mut bench = running();
    ask(&mut bench, &[Piece::Out(0x1000, 8)]);
    let expected = QueueFault::TooShort {
        readable: 8,
        writable: 0,
    };
    assert_eq!(bench.fault_of(), Some(expected));
}

impl Kind for VirtioRng {
    fn fresh() -> Self {
        VirtioRng::default()
    }

    fn chain(_: usize, _: &Surroundings, random: &mut Seeded) -> Vec<Piece> {
        pieces(Piece::In, 100, random)
    }

    fn input(function: &mut VirtioPci<Self>, around: &mut Surroundings, random: &mut Seeded) {
        let bytes = random.bytes(200);
        function.serve(&mut around.env(), |rng, queues, env| rng.answer(&bytes, queues, env));
    }

    fn show(function: &VirtioPci<Self>) -> String {
        format!("{:?}", function.model().wanted())
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<VirtioSubject<VirtioRng>>();
}

#[test]
fn every_field_matters() {
    // What the model fixes does not change.
    forgetting::check::<VirtioSubject<VirtioRng>>(&["/transport/queues/0/max_size"]);
}
