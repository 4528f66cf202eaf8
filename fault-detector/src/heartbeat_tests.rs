use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tokio::time::timeout;

use super::*;

const PRIMARY: Pair = Pair {
    guest: 1,
    generation: 5,
    me: 0xa,
    peer: 0xb,
};
const BACKUP: Pair = Pair {
    guest: 1,
    generation: 5,
    me: 0xb,
    peer: 0xa,
};

/// What the backup says to the primary.
const BEAT: Beat = Beat {
    guest: 1,
    generation: 5,
    incarnation: 0xb,
    number: 1,
    sent_ns: 100,
    echo_ns: 50,
};

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn heard(received_ns: u64, sent_ns: u64) -> Option<Event> {
    Some(Event::Heard {
        received_ns,
        sent_ns,
        echo_ns: 50,
    })
}

#[test]
fn a_primary_learns_where_its_backup_is_and_echoes_it() {
    let mut state = State::new(PRIMARY, None);
    assert_eq!(state.next(1), None, "nowhere to send to");
    assert_eq!(state.receive(7, address(1000), Some(BEAT)), heard(7, 100));
    let (to, beat) = state.next(8).unwrap();
    assert_eq!(to, address(1000));
    assert_eq!(
        beat,
        Beat {
            guest: 1,
            generation: 5,
            incarnation: 0xa,
            number: 1,
            sent_ns: 8,
            echo_ns: 100
        }
    );
    // From elsewhere it still counts, but does not move the address; an older clock does not move the echo.
    assert_eq!(
        state.receive(
            9,
            address(2000),
            Some(Beat {
                number: 2,
                sent_ns: 90,
                ..BEAT
            })
        ),
        heard(9, 90)
    );
    let (to, beat) = state.next(10).unwrap();
    assert_eq!((to, beat.number, beat.echo_ns), (address(1000), 2, 100));
}

#[test]
fn what_is_not_the_other_sides_is_counted_and_changes_nothing() {
    let mut state = State::new(PRIMARY, None);
    for (beat, expected) in [
        (
            None,
            Counters {
                malformed: 1,
                ..Counters::default()
            },
        ),
        (
            Some(Beat {
                guest: 2,
                generation: 9,
                ..BEAT
            }),
            Counters {
                foreign: 1,
                ..Counters::default()
            },
        ),
        (
            Some(Beat {
                incarnation: 0xa,
                ..BEAT
            }),
            Counters {
                foreign: 1,
                ..Counters::default()
            },
        ),
        (
            Some(Beat { generation: 4, ..BEAT }),
            Counters {
                stale: 1,
                ..Counters::default()
            },
        ),
        (
            Some(Beat { number: 0, ..BEAT }),
            Counters {
                repeated: 1,
                ..Counters::default()
            },
        ),
    ] {
        state.counters = Counters::default();
        assert_eq!(state.receive(1, address(9), beat), None);
        assert_eq!(state.counters, expected, "{beat:?}");
        assert_eq!((state.next(1), state.superseded, state.echo_ns), (None, None, 0));
    }
}

#[test]
fn a_heartbeat_counts_once_and_never_after_a_later_one() {
    let mut state = State::new(PRIMARY, None);
    let mut receive = |number| state.receive(0, address(9), Some(Beat { number, ..BEAT })).is_some();
    assert_eq!([3, 3, 2, 4, 4].map(&mut receive), [true, false, false, true, false]);
    assert_eq!((state.counters.heard, state.counters.repeated), (2, 3));
}

#[test]
fn a_higher_generation_is_reported_once_and_waits_for_room() {
    let mut state = State::new(PRIMARY, None);
    let (events, mut receiver) = mpsc::channel(1);
    events.try_send(Event::Superseded { generation: 0 }).unwrap();
    let newer = |generation| {
        Some(Beat {
            generation,
            incarnation: 0xc,
            ..BEAT
        })
    };
    for generation in [6, 8, 7] {
        let none = state.receive(0, address(9), newer(generation));
        assert_eq!(none, None);
        state.report(none, &events);
    }
    receiver.try_recv().unwrap();
    state.report(None, &events);
    assert_eq!(receiver.try_recv(), Ok(Event::Superseded { generation: 8 }));
    for generation in [6, 8] {
        state.receive(0, address(9), newer(generation));
        state.report(None, &events);
    }
    assert!(receiver.try_recv().is_err());
    state.receive(0, address(9), newer(9));
    state.report(None, &events);
    assert_eq!(receiver.try_recv(), Ok(Event::Superseded { generation: 9 }));
    assert_eq!(state.next(1), None, "its sender is no peer");
}

#[test]
fn events_nobody_takes_are_counted() {
    let mut state = State::new(PRIMARY, None);
    let (events, _receiver) = mpsc::channel(2);
    for number in 1..=5 {
        let event = state.receive(0, address(9), Some(Beat { number, ..BEAT }));
        state.report(event, &events);
    }
    assert_eq!((state.counters.heard, state.counters.unreported), (5, 3));
}

#[test]
fn the_period_is_an_eighth_of_the_detection_time_within_bounds() {
    for (detection, period) in [(0, 5), (39, 5), (48, 6), (800, 100), (8_000, 1000), (80_000, 1000)] {
        let config = config(PRIMARY, None, Duration::from_millis(detection));
        assert_eq!(config.period(), Duration::from_millis(period));
    }
}

/// 72 bytes, little endian; careless about what follows.
struct Plain;

impl Codec for Plain {
    fn encode(&self, beat: &Beat, datagram: &mut Vec<u8>) {
        datagram.extend(beat.guest.to_le_bytes());
        datagram.extend(beat.incarnation.to_le_bytes());
        for word in [beat.generation, beat.number, beat.sent_ns, beat.echo_ns, 0] {
            datagram.extend(word.to_le_bytes());
        }
    }

    fn decode(&self, datagram: &[u8]) -> Option<Beat> {
        let bytes = datagram.first_chunk::<72>()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let id = |at: usize| u128::from(word(at)) | u128::from(word(at + 8)) << 64;
        let (generation, number, sent_ns, echo_ns) = (word(32), word(40), word(48), word(56));
        Some(Beat {
            guest: id(0),
            incarnation: id(16),
            generation,
            number,
            sent_ns,
            echo_ns,
        })
    }
}

/// A clock that ticks with every look.
fn config(pair: Pair, peer: Option<SocketAddr>, detection: Duration) -> Config {
    let clock = AtomicU64::new(1000);
    let clock = Arc::new(move || clock.fetch_add(1, Ordering::SeqCst));
    Config {
        bind: address(0),
        peer,
        pair,
        detection,
        clock,
        codec: Arc::new(Plain),
    }
}

const SHORT: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(10);

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(PATIENCE, events.recv())
        .await
        .expect("in time")
        .expect("heartbeats run")
}

#[tokio::test]
async fn two_sides_hear_each_other_until_one_is_silent() {
    let (primary, mut at_primary) = Heartbeats::start(config(PRIMARY, None, SHORT)).unwrap();
    let (backup, mut at_backup) = Heartbeats::start(config(BACKUP, Some(primary.local_addr()), SHORT)).unwrap();
    // Until an echo has gone all the way round: backup, primary, backup.
    loop {
        if let Event::Heard { echo_ns, .. } = next(&mut at_backup).await
            && echo_ns > 0
        {
            assert!((1000..2000).contains(&echo_ns));
            break;
        }
    }
    assert!(matches!(
        next(&mut at_primary).await,
        Event::Heard { sent_ns: 1000.., .. }
    ));
    let last = backup.silence().expect("it has sent");
    let sent = backup.counters().sent;
    for _ in 0..5 {
        next(&mut at_backup).await;
    }
    assert_eq!(
        (backup.silence(), backup.counters().sent),
        (Some(last), sent),
        "receiving goes on, sending does not"
    );
    while let Ok(event) = at_primary.try_recv() {
        assert!(matches!(event, Event::Heard { sent_ns, .. } if sent_ns <= last));
    }
    assert_eq!(primary.silence().map(|_| ()), Some(()));
}

#[tokio::test]
async fn hostile_datagrams_do_no_harm() {
    let (primary, mut events) = Heartbeats::start(config(PRIMARY, None, SHORT)).unwrap();
    let enemy = StdUdpSocket::bind(address(0)).unwrap();
    let mut valid = Vec::new();
    Plain.encode(&BEAT, &mut valid);
    let mut padded = valid.clone();
    padded.resize(DATAGRAM_BYTES + 1, 0);
    for datagram in [&b""[..], b"x", &[0xff; 72], &padded, &[0; 60_000], &valid[..71]] {
        enemy.send_to(datagram, primary.local_addr()).unwrap();
    }
    enemy.send_to(&valid, primary.local_addr()).unwrap();
    assert!(matches!(
        next(&mut events).await,
        Event::Heard {
            sent_ns: 100,
            echo_ns: 50,
            ..
        }
    ));
    let counters = primary.counters();
    assert_eq!((counters.malformed, counters.foreign, counters.heard), (5, 1, 1));
}

#[tokio::test]
async fn a_higher_generation_gets_through_once_the_caller_takes_events() {
    let (primary, mut events) = Heartbeats::start(config(PRIMARY, None, SHORT)).unwrap();
    let peer = StdUdpSocket::bind(address(0)).unwrap();
    let send = |beat: Beat| {
        let mut datagram = Vec::new();
        Plain.encode(&beat, &mut datagram);
        peer.send_to(&datagram, primary.local_addr()).unwrap();
    };
    let room = u64::try_from(EVENTS).unwrap();
    for number in 1..=room {
        send(Beat { number, ..BEAT });
    }
    send(Beat { generation: 6, ..BEAT });
    send(Beat {
        number: room + 1,
        ..BEAT
    });
    let full = async {
        while primary.counters().unreported == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, full).await.expect("all datagrams arrive");
    for _ in 0..EVENTS {
        assert!(matches!(next(&mut events).await, Event::Heard { .. }));
    }
    assert_eq!(next(&mut events).await, Event::Superseded { generation: 6 });
}

#[tokio::test]
async fn a_port_is_free_again_after_the_end_and_refused_before() {
    let (heartbeats, _events) = Heartbeats::start(config(PRIMARY, None, SHORT)).unwrap();
    let bind = heartbeats.local_addr();
    let again = || {
        Heartbeats::start(Config {
            bind,
            ..config(PRIMARY, None, SHORT)
        })
    };
    let error = again().unwrap_err().to_string();
    assert!(error.contains(&bind.to_string()) && error.contains("free"), "{error}");
    heartbeats.stop().await;
    assert!(again().is_ok());
}

proptest! {
    /// Whatever arrives, the times that matter only grow and the address, once learned, stays.
    #[test]
    fn any_datagrams_keep_the_state_sound(
        beats in proptest::collection::vec(
            proptest::option::weighted(0.9, (0..2u128, 4..8u64, 0xa..0xdu128, 0..20u64, 0..100u64, 1..4u16)), 1..60,
        ),
    ) {
        let mut state = State::new(PRIMARY, None);
        let (mut last, mut address_learned) = (0, None);
        for fields in beats {
            let port = fields.map_or(9, |fields| fields.5);
            let beat = fields.map(|(guest, generation, incarnation, number, sent_ns, _)| {
                Beat { guest, generation, incarnation, number, sent_ns, echo_ns: 0 }
            });
            let before = state.echo_ns;
            let event = state.receive(1, address(port), beat);
            prop_assert!(state.echo_ns >= before);
            let valid = fields.is_some_and(|(guest, generation, incarnation, number, ..)| {
                (guest, generation, incarnation) == (1, 5, 0xb) && number > last
            });
            prop_assert_eq!(event.is_some(), valid);
            if valid {
                last = beat.unwrap().number;
                address_learned = address_learned.or(Some(address(port)));
            }
            prop_assert_eq!(state.peer, address_learned);
        }
    }
}
