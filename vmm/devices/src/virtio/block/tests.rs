use super::*;
use crate::DiskSharing;
use crate::testing::driver::{Bar, CONFIG, Piece};
use crate::testing::{Seeded, Surroundings, contract, forgetting};
use crate::virtio::VirtioPci;
use crate::virtio::testing::FunctionBench;
use crate::virtio::testing::contract::{Kind, VirtioSubject};

const HEADER_AT: u64 = 0x1000;
const DATA_AT: u64 = 0x2000;
const STATUS_AT: u64 = 0x1800;
/// What the status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xEE;

const SECTORS: u64 = 64;

fn config(access: DiskAccess) -> DiskConfig {
    DiskConfig {
        sectors: SECTORS,
        access,
        sharing: DiskSharing::Shared,
        serial: "ft-disk-0".to_owned(),
    }
}

fn running() -> FunctionBench<VirtioBlock> {
    FunctionBench::running(VirtioBlock::new(3, config(DiskAccess::ReadWrite)), 128)
}

fn header(around: &Surroundings, kind: u32, sector: u64) {
    around.write(HEADER_AT, &kind.to_le_bytes());
    around.write(HEADER_AT + 8, &sector.to_le_bytes());
    around.write(STATUS_AT, &[UNTOUCHED]);
}

/// Makes a request with `data` between header and status, notifies, and says what the device did and answered.
fn request(bench: &mut FunctionBench<VirtioBlock>, kind: u32, sector: u64, data: &[Piece]) -> (Vec<Effect>, u8) {
    let FunctionBench { around, rings, .. } = bench;
    header(around, kind, sector);
    let chain = [&[Piece::Out(HEADER_AT, 16)], data, &[Piece::In(STATUS_AT, 1)]].concat();
    rings[0].chain(around, &chain);
    bench.notify(0);
    (bench.effects(), bench.around.read(STATUS_AT, 1)[0])
}

fn done(bench: &mut FunctionBench<VirtioBlock>, id: u64, status: DiskStatus, data: &[u8]) -> Result<(), ApplyError> {
    let FunctionBench { function, around, .. } = bench;
    let completion = function.model_mut().complete(id, status, data)?;
    function.serve(&mut around.env(), |block, queues, env| {
        block.answer(completion, queues, env)
    });
    Ok(())
}

fn asked(id: u64, op: DiskOp) -> Effect {
    Effect::Disk(DiskRequest { disk: 3, id, op })
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let mut bench = running();
    let words = [0, 4, 8, 12, 20].map(|offset| bench.read_u32(CONFIG + offset));
    assert_eq!(words, [64, 0, SIZE_MAX, SEG_MAX, 512]);
    assert!(
        u64::from(SEG_MAX) * u64::from(SIZE_MAX) <= MAX_DATA.into(),
        "a well-behaved driver cannot exceed the bound"
    );
}

#[test]
fn a_read_reaches_memory_when_its_input_comes() {
    let mut bench = running();
    let (effects, status) = request(
        &mut bench,
        0,
        2,
        &[Piece::In(DATA_AT, 512), Piece::In(DATA_AT + 0x800, 512)],
    );
    assert_eq!(
        effects,
        [asked(
            0,
            DiskOp::Read {
                offset: 1024,
                len: 1024
            }
        )]
    );
    assert_eq!(status, UNTOUCHED);
    let data: Vec<u8> = (0..1024u32).map(|at| at.to_le_bytes()[0]).collect();
    done(&mut bench, 0, DiskStatus::Ok, &data).expect("outstanding");
    assert_eq!(bench.around.read(DATA_AT, 512), data[..512]);
    assert_eq!(bench.around.read(DATA_AT + 0x800, 512), data[512..]);
    assert_eq!(bench.around.read(STATUS_AT, 1), [0]);
    assert_eq!(bench.rings[0].used(&bench.around), Some((0, 1025)));
    assert_eq!(bench.isr(), 1);
    assert_eq!(bench.function.model().outstanding().count(), 0);
}

#[test]
fn a_write_takes_its_data_when_it_is_made() {
    let mut bench = running();
    bench.around.write(DATA_AT, &[7; 512]);
    let (effects, _) = request(&mut bench, 1, 63, &[Piece::Out(DATA_AT, 512)]);
    let data = Arc::new(vec![7; 512]);
    assert_eq!(effects, [asked(0, DiskOp::Write { offset: 63 * 512, data })]);
    bench.around.write(DATA_AT, &[8; 512]);
    let held: Vec<DiskRequest> = bench.function.model().outstanding().cloned().collect();
    assert_eq!(held.into_iter().map(Effect::Disk).collect::<Vec<_>>(), effects);
    done(&mut bench, 0, DiskStatus::IoError, &[]).expect("outstanding");
    assert_eq!(bench.around.read(STATUS_AT, 1), [1]);
    assert_eq!(bench.rings[0].used(&bench.around), Some((0, 1)));
}

#[test]
fn a_flush_is_a_request_and_the_serial_is_not() {
    let mut bench = running();
    assert_eq!(request(&mut bench, 4, 0, &[]).0, [asked(0, DiskOp::Flush)]);
    let (effects, status) = request(&mut bench, 8, 0, &[Piece::In(DATA_AT, 20)]);
    assert_eq!((effects.len(), status), (0, 0));
    assert_eq!(bench.around.read(DATA_AT, 20), b"ft-disk-0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.rings[0].used(&bench.around), Some((2, 21)));
}

#[test]
fn what_the_disk_cannot_do_is_answered_without_it() {
    let (whole, half) = (Piece::In(DATA_AT, 512), Piece::In(DATA_AT, 511));
    let out = Piece::Out(DATA_AT, 512);
    for (kind, sector, data, status) in [
        (0, SECTORS - 1, vec![whole], UNTOUCHED),
        (0, SECTORS, vec![whole], 1),
        (0, SECTORS - 1, vec![whole, whole], 1),
        (0, u64::MAX, vec![whole], 1),
        (0, u64::MAX - 1, vec![whole], 1),
        // Times 512 this is 2^64, the disk's beginning for arithmetic that wraps.
        (0, 1 << 55, vec![whole], 1),
        (1, 1 << 55, vec![out], 1),
        (1, u64::MAX - 1, vec![out], 1),
        (1, SECTORS, vec![out], 1),
        (0, 0, vec![half], 1),
        (0, 0, vec![], 1),
        (1, 0, vec![], 1),
        (2, 0, vec![whole], 2),
        (11, 0, vec![out], 2),
        (u32::MAX, 0, vec![], 2),
    ] {
        let mut bench = running();
        let (effects, answered) = request(&mut bench, kind, sector, &data);
        assert_eq!(answered, status, "type {kind}, sector {sector}, {data:?}");
        assert_eq!(
            effects.len(),
            usize::from(status == UNTOUCHED),
            "type {kind}, sector {sector}"
        );
    }
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut bench = FunctionBench::running(VirtioBlock::new(3, config(DiskAccess::ReadOnly)), 128);
    assert_eq!(bench.function.model().features() >> VIRTIO_BLK_F_RO & 1, 1);
    assert_eq!(running().function.model().features() >> VIRTIO_BLK_F_RO & 1, 0);
    assert_eq!(request(&mut bench, 1, 0, &[Piece::Out(DATA_AT, 512)]), (vec![], 1));
    assert_eq!(request(&mut bench, 0, 0, &[Piece::In(DATA_AT, 512)]).0.len(), 1);
}

#[test]
fn completions_may_come_in_any_order_but_once_and_with_their_data() {
    let mut bench = running();
    for sector in 0..3 {
        request(&mut bench, 0, sector, &[Piece::In(DATA_AT + sector * 512, 512)]);
    }
    let wrong = ApplyError::DataLength {
        disk: 3,
        id: 1,
        expected: 512,
        found: 511,
    };
    assert_eq!(done(&mut bench, 1, DiskStatus::Ok, &[1; 511]), Err(wrong));
    done(&mut bench, 1, DiskStatus::Ok, &[1; 512]).expect("outstanding");
    assert_eq!(
        done(&mut bench, 1, DiskStatus::Ok, &[1; 512]),
        Err(ApplyError::NoSuchRequest { disk: 3, id: 1 })
    );
    assert_eq!(
        done(&mut bench, 3, DiskStatus::Ok, &[]),
        Err(ApplyError::NoSuchRequest { disk: 3, id: 3 })
    );
    let ids: Vec<u64> = bench.function.model().outstanding().map(|request| request.id).collect();
    assert_eq!(ids, [0, 2]);
    assert_eq!(bench.rings[0].used(&bench.around), Some((3, 513)));
}

#[test]
fn a_reset_orphans_what_is_under_way_and_numbers_go_on() {
    let mut bench = running();
    request(&mut bench, 0, 0, &[Piece::In(DATA_AT, 512)]);
    request(&mut bench, 1, 1, &[Piece::Out(DATA_AT, 512)]);
    bench.set_status(0);
    assert_eq!(
        bench.function.model().outstanding().count(),
        2,
        "they must still be finished"
    );
    bench.restart();
    let (effects, _) = request(&mut bench, 4, 0, &[]);
    assert_eq!(effects, [asked(2, DiskOp::Flush)]);
    done(&mut bench, 0, DiskStatus::Ok, &[9; 512]).expect("outstanding");
    assert_eq!(bench.around.read(DATA_AT, 1), [0], "it answers nobody");
    assert_eq!(bench.rings[0].used(&bench.around), None);
    done(&mut bench, 2, DiskStatus::Ok, &[]).expect("outstanding");
    assert_eq!(bench.rings[0].used(&bench.around), Some((0, 1)));
}

#[test]
fn what_exceeds_the_bounds_waits_in_the_ring() {
    let mut bench = FunctionBench::running(
        VirtioBlock::new(
            3,
            DiskConfig {
                sectors: 1 << 20,
                ..config(DiskAccess::ReadWrite)
            },
        ),
        128,
    );
    let largest = [Piece::Out(0, 0x2_0000); 32];
    for id in 0..4 {
        let (effects, _) = request(&mut bench, 1, 0, &largest);
        assert_eq!(effects.len(), 1, "request {id} of 4 MiB");
    }
    let over = [largest.to_vec(), vec![Piece::Out(0, 512)]].concat();
    assert_eq!(
        request(&mut bench, 1, 0, &over),
        (vec![], 1),
        "beyond the bound of one request"
    );
    let FunctionBench { around, rings, .. } = &mut bench;
    let other_header = HEADER_AT + 0x100;
    around.write(other_header, &1u64.to_le_bytes());
    around.write(other_header + 8, &0u64.to_le_bytes());
    rings[0].chain(
        around,
        &[
            Piece::Out(other_header, 16),
            Piece::Out(0, 512),
            Piece::In(STATUS_AT, 1),
        ],
    );
    bench.notify(0);
    assert_eq!(bench.effects(), [], "16 MiB are held");
    assert_eq!(request(&mut bench, 4, 0, &[]).0, [], "the ring is served in order");
    bench.function = contract::decode(&contract::encode(&bench.function));
    done(&mut bench, 1, DiskStatus::Ok, &[]).expect("outstanding");
    let ids = bench.effects().into_iter().map(|effect| match effect {
        Effect::Disk(request) => request.id,
        other => panic!("{other:?}"),
    });
    assert_eq!(ids.collect::<Vec<_>>(), [4, 5], "both follow as soon as there is room");
    assert_eq!(
        bench
            .function
            .model()
            .outstanding()
            .map(|request| request.id)
            .collect::<Vec<_>>(),
        [0, 2, 3, 4, 5]
    );
}

#[test]
fn a_request_without_header_or_status_is_a_fault() {
    for (pieces, readable, writable) in [
        (vec![Piece::Out(HEADER_AT, 15), Piece::In(STATUS_AT, 1)], 15, 1),
        (vec![Piece::Out(HEADER_AT, 16)], 16, 0),
        (vec![Piece::In(STATUS_AT, 600)], 0, 600),
    ] {
        let mut bench = running();
        let FunctionBench { around, rings, .. } = &mut bench;
        rings[0].chain(around, &pieces);
        assert_eq!(bench.fault_of(), Some(QueueFault::TooShort { readable, writable }));
        assert_eq!(bench.isr(), 2, "a configuration change is announced");
    }
}

#[test]
fn completions_for_a_stopped_device_touch_nothing() {
    let mut bench = running();
    request(&mut bench, 0, 0, &[Piece::In(DATA_AT, 512)]);
    let FunctionBench { around, rings, .. } = &mut bench;
    rings[0].chain(around, &[Piece::Out(HEADER_AT, 1)]);
    assert!(bench.fault_of().is_some());
    done(&mut bench, 0, DiskStatus::Ok, &[9; 512]).expect("outstanding");
    assert_eq!(bench.around.read(DATA_AT, 1), [0]);
    assert_eq!(bench.function.model().outstanding().count(), 0);
}

#[test]
fn a_state_of_another_disk_or_out_of_order_is_refused() {
    let built = VirtioBlock::new(3, config(DiskAccess::ReadWrite));
    let mut bench = running();
    for sector in 0..3 {
        request(&mut bench, 0, sector, &[Piece::In(DATA_AT, 512)]);
    }
    let state = bench.function.model().clone();
    assert_eq!(state.check(&built), Ok(()));
    let mut damaged = state.clone();
    damaged.outstanding.swap(0, 1);
    assert!(damaged.check(&built).is_err());
    let mut damaged = state.clone();
    damaged.next_id = 2;
    assert!(damaged.check(&built).is_err());
    let mut damaged = state;
    damaged.config.sectors += 1;
    assert!(damaged.check(&built).is_err());
}

impl Kind for VirtioBlock {
    fn fresh() -> Self {
        VirtioBlock::new(3, config(DiskAccess::ReadWrite))
    }

    fn chain(_: usize, around: &Surroundings, random: &mut Seeded) -> Vec<Piece> {
        let at = random.below(8) * 0x1000;
        let kind: u32 = random.pick(&[0, 0, 1, 1, 4, 8, 2]);
        around.write(at, &kind.to_le_bytes());
        around.write(at + 8, &random.below(SECTORS + 1).to_le_bytes());
        let data = (0x8000 + random.below(0x10_000), random.pick(&[512, 512, 1024, 20, 600]));
        let data = if kind == 1 {
            Piece::Out(data.0, data.1)
        } else {
            Piece::In(data.0, data.1)
        };
        vec![Piece::Out(at, 16), data, Piece::In(at + 0x800, 1)]
    }

    fn input(function: &mut VirtioPci<Self>, around: &mut Surroundings, random: &mut Seeded) {
        let outstanding: Vec<DiskRequest> = function.model().outstanding().cloned().collect();
        let Some(request) = outstanding.get(usize::try_from(random.below(8)).expect("small")) else {
            return;
        };
        let status = random.pick(&[DiskStatus::Ok, DiskStatus::Ok, DiskStatus::IoError]);
        let data = match request.op {
            DiskOp::Read { len, .. } if status == DiskStatus::Ok => vec![random.byte(); len as usize],
            _ => Vec::new(),
        };
        let completion = function
            .model_mut()
            .complete(request.id, status, &data)
            .expect("outstanding");
        function.serve(&mut around.env(), |block, queues, env| {
            block.answer(completion, queues, env)
        });
    }

    fn show(function: &VirtioPci<Self>) -> String {
        format!("{:?}", function.model().outstanding().collect::<Vec<_>>())
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<VirtioSubject<VirtioBlock>>();
}

#[test]
fn every_field_matters() {
    // What the configuration fixes does not change, and no random guest has 16 MiB under way: `stalled` is seen to
    // matter in `what_exceeds_the_bounds_waits_in_the_ring`.
    forgetting::check::<VirtioSubject<VirtioBlock>>(&[
        "/transport/model/config/access",
        "/transport/model/config/sectors",
        "/transport/model/config/serial",
        "/transport/model/config/sharing",
        "/transport/model/number",
        "/transport/model/stalled",
        "/transport/queues/0/max_size",
    ]);
}
