use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use ftvm_roles::host_event::StopKind;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn frame(size: usize) -> HostEvent {
    HostEvent::Frame {
        nic: 0,
        bytes: vec![0; size],
    }
}

fn entropy(byte: u8) -> HostEvent {
    HostEvent::Entropy(vec![byte])
}

#[test]
fn events_come_out_in_order() {
    let (sender, queue) = event_queue();
    assert_eq!(queue.try_recv(), None);
    for byte in 0..5 {
        assert_eq!(sender.offer(entropy(byte)), Offered::Queued);
    }
    for byte in 0..5 {
        assert_eq!(queue.try_recv(), Some(entropy(byte)));
    }
    assert_eq!(queue.try_recv(), None);
}

#[test]
fn oldest_pending_is_the_time_of_the_front_event() {
    let (sender, queue) = event_queue();
    assert_eq!(sender.oldest_pending(), None);
    let before_first = Instant::now();
    sender.offer(entropy(1));
    let after_first = Instant::now();
    thread::sleep(Duration::from_millis(2));
    let before_second = Instant::now();
    sender.offer(entropy(2));

    let first = sender.oldest_pending().expect("one event waits");
    assert!(before_first <= first && first <= after_first);
    queue.try_recv();
    let second = queue.oldest_pending().expect("the second event waits");
    assert!(
        second >= before_second,
        "the second event has its own time, not the first one's"
    );
    queue.try_recv();
    assert_eq!(queue.oldest_pending(), None);
}

#[test]
fn offers_are_dropped_when_the_count_is_reached() {
    let (sender, queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        assert_eq!(sender.offer(frame(60)), Offered::Queued);
    }
    assert_eq!(sender.offer(frame(60)), Offered::Dropped);
    queue.try_recv();
    assert_eq!(sender.offer(frame(60)), Offered::Queued);
    assert_eq!(sender.offer(frame(60)), Offered::Dropped);
}

#[test]
fn offers_are_dropped_when_the_bytes_are_reached() {
    let (sender, queue) = event_queue();
    assert_eq!(sender.offer(frame(MAX_BYTES - 1)), Offered::Queued);
    assert_eq!(sender.offer(frame(1)), Offered::Queued);
    assert_eq!(sender.offer(frame(1)), Offered::Dropped);
    queue.try_recv();
    assert_eq!(sender.offer(frame(1)), Offered::Queued);
}

#[test]
fn one_event_too_big_for_the_bound_fits_an_empty_queue() {
    let (sender, queue) = event_queue();
    assert_eq!(sender.offer(frame(MAX_BYTES + 1)), Offered::Queued);
    assert_eq!(sender.offer(frame(1)), Offered::Dropped);
    assert!(queue.try_recv().is_some());
}

#[test]
fn an_answer_fits_into_a_full_queue() {
    let (sender, queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        sender.offer(frame(60));
    }
    assert_eq!(sender.answer(entropy(9)), Ok(()));
    let mut last = None;
    while let Some(event) = queue.try_recv() {
        last = Some(event);
    }
    assert_eq!(last, Some(entropy(9)));
}

#[test]
fn push_waits_for_room() {
    let (sender, queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        sender.offer(frame(60));
    }
    let (done, finished) = mpsc::channel();
    let pusher = {
        let sender = sender.clone();
        thread::spawn(move || done.send(sender.push(entropy(7), Instant::now() + PATIENCE)))
    };
    while sender.shared.state.lock().waiting_for_room == 0 {
        thread::yield_now();
    }
    for _ in 0..MAX_EVENTS / 2 - 1 {
        queue.try_recv();
    }
    assert!(
        finished.recv_timeout(Duration::from_millis(50)).is_err(),
        "it is not woken for less than half"
    );
    queue.try_recv();
    assert_eq!(finished.recv_timeout(PATIENCE), Ok(Ok(())));
    pusher.join().expect("no panic").expect("receiver is there");
}

#[test]
fn an_event_that_fits_only_an_empty_queue_gets_in() {
    let (sender, queue) = event_queue();
    sender.offer(frame(MAX_BYTES));
    let pusher = {
        let sender = sender.clone();
        thread::spawn(move || sender.push(frame(2 * MAX_BYTES), Instant::now() + PATIENCE))
    };
    while sender.shared.state.lock().waiting_for_room == 0 {
        thread::yield_now();
    }
    queue.try_recv();
    assert_eq!(pusher.join().expect("no panic"), Ok(()));
}

#[test]
fn push_gives_the_event_back_at_the_deadline() {
    let (sender, _queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        sender.offer(frame(60));
    }
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(sender.push(entropy(7), deadline), Err(Refused::Full(entropy(7))));
    assert!(Instant::now() >= deadline);
}

#[test]
fn dropping_the_queue_closes_every_way_in() {
    let (sender, queue) = event_queue();
    for _ in 0..MAX_EVENTS {
        sender.offer(frame(60));
    }
    let pusher = {
        let sender = sender.clone();
        thread::spawn(move || sender.push(entropy(7), Instant::now() + PATIENCE))
    };
    while sender.shared.state.lock().waiting_for_room == 0 {
        thread::yield_now();
    }
    drop(queue);
    assert_eq!(pusher.join().expect("no panic"), Err(Refused::Closed));
    assert_eq!(sender.push(entropy(1), Instant::now() + PATIENCE), Err(Refused::Closed));
    assert_eq!(sender.answer(entropy(1)), Err(Closed));
    assert_eq!(sender.offer(entropy(1)), Offered::Dropped);
    assert_eq!(sender.oldest_pending(), None);
}

#[test]
fn waiting_ends_at_the_deadline() {
    let (_sender, queue) = event_queue();
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(30);
    assert_eq!(queue.recv_deadline(Some(deadline)), None);
    assert!(Instant::now() >= deadline);
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(
        queue.recv_deadline(Some(begun)),
        None,
        "a deadline that has passed does not wait"
    );
}

#[test]
fn a_wake_ends_the_next_wait_once() {
    let (sender, queue) = event_queue();
    let limit = Instant::now() + PATIENCE;
    sender.wake();
    assert_eq!(queue.recv_deadline(Some(limit)), None);
    assert!(Instant::now() < limit, "a wake before the wait counts");
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(queue.recv_deadline(Some(deadline)), None);
    assert!(Instant::now() >= deadline, "one wake ends one wait");
}

#[test]
fn a_waiting_consumer_is_reached_by_event_and_wake() {
    let (sender, queue) = event_queue();
    let consumer = thread::spawn(move || {
        let limit = Instant::now() + PATIENCE;
        let first = queue.recv_deadline(Some(limit));
        let second = queue.recv_deadline(Some(limit));
        (first, second, Instant::now() < limit)
    });
    let until_waiting = || {
        while sender.shared.state.lock().consumer != Consumer::Waiting {
            thread::yield_now();
        }
    };
    until_waiting();
    sender.answer(HostEvent::Stop(StopKind::Terminate)).expect("open");
    until_waiting();
    sender.wake();
    let (first, second, in_time) = consumer.join().expect("no panic");
    assert_eq!(first, Some(HostEvent::Stop(StopKind::Terminate)));
    assert_eq!(second, None);
    assert!(in_time);
}

#[test]
fn many_producers_lose_nothing() {
    const EACH: u64 = 20_000;
    let (sender, queue) = event_queue();
    let producers: Vec<_> = (0..4)
        .map(|disk| {
            let sender = sender.clone();
            thread::spawn(move || {
                for id in 0..EACH {
                    let status = ftvm_schema::entry::DiskStatus::Ok;
                    let data = Vec::new();
                    let done = HostEvent::DiskDone { disk, id, status, data };
                    sender.push(done, Instant::now() + PATIENCE).expect("room comes");
                }
            })
        })
        .collect();
    let mut next = [0; 4];
    let limit = Some(Instant::now() + PATIENCE);
    while next != [EACH; 4] {
        let Some(HostEvent::DiskDone { disk, id, .. }) = queue.recv_deadline(limit) else {
            panic!("events lost: {next:?}");
        };
        assert_eq!(id, next[usize::from(disk)], "one producer's events keep their order");
        next[usize::from(disk)] += 1;
    }
    assert_eq!(queue.oldest_pending(), None);
    for producer in producers {
        producer.join().expect("no panic");
    }
}
