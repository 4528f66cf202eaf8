use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::*;
use crate::codec::samples::{GENERATION, messages};
use crate::codec::{FrameEncoder, FrameFault, LogBatch};
use crate::message::Message;
use ftvm_schema::entry::{LogEntry, OutputSeq};

#[tokio::test]
async fn all_messages_travel_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = tokio::spawn(async move {
        let mut stream = connect(&address, Backoff::default()).await.unwrap();
        for (_, message) in messages() {
            stream.send(GENERATION, &message).await.unwrap();
        }
        let mut batch = LogBatch::new(9);
        batch.push(&LogEntry::Released { through: OutputSeq(4) }).unwrap();
        stream.writer.send_frame(batch.seal(GENERATION)).await.unwrap();
        stream.writer.shutdown().await.unwrap();
        stream.recv().await.unwrap_err()
    });
    let mut server = FrameStream::tcp(listener.accept().await.unwrap().0).unwrap();
    for (_, message) in messages() {
        assert_eq!(server.recv().await.unwrap(), (GENERATION, message));
    }
    assert!(matches!(server.recv().await.unwrap().1, Message::Log { number: 9, .. }));
    let closed = server.recv().await.unwrap_err();
    assert!(matches!(closed, TransportError::Closed { .. }));
    assert!(closed.to_string().starts_with("127.0.0.1:"), "{closed}");
    drop(server);
    assert!(matches!(client.await.unwrap(), TransportError::Closed { .. }));
}

#[tokio::test]
async fn a_frame_cut_off_by_the_end_is_no_clean_end() {
    let frame = FrameEncoder::new().message(GENERATION, &Message::Bye).unwrap().to_vec();
    let mut reader = FrameReader::new(&frame[..frame.len() - 1], "them".into());
    let error = reader.recv().await.unwrap_err();
    let TransportError::Frame { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(matches!(source.fault, FrameFault::Truncated { .. }));
    assert!(error.to_string().starts_with("from them: frame 0"), "{error}");
}

#[tokio::test]
async fn garbage_and_frames_above_the_limit_are_refused() {
    let mut reader = FrameReader::new(&b"GET / HTTP/1.1\r\nHost: ftvm\r\n\r\n"[..], "a browser".into());
    assert!(matches!(reader.recv().await, Err(TransportError::Frame { .. })));
    let reason = "x".repeat(100);
    let frame = FrameEncoder::new()
        .message(GENERATION, &Message::Refuse { reason })
        .unwrap()
        .to_vec();
    for (limit, passes) in [(101, true), (100, false)] {
        let mut reader = FrameReader::new(frame.as_slice(), "them".into());
        reader.set_limit(limit);
        assert_eq!(reader.recv().await.is_ok(), passes);
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_times_out_and_the_connection_is_broken() {
    let (ours, _theirs) = tokio::io::duplex(100);
    let mut stream = FrameStream::new(ours, "them");
    stream.writer.set_timeout(Duration::from_millis(300));
    let start = Instant::now();
    let nonce = vec![1; 200];
    let error = stream.send(GENERATION, &Message::Proof { nonce }).await.unwrap_err();
    assert!(matches!(error, TransportError::WriteTimeout { .. }), "{error}");
    assert!((Duration::from_millis(300)..WRITE_TIMEOUT).contains(&start.elapsed()));
    let error = stream.send(GENERATION, &Message::Bye).await.unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_cancelled_recv_loses_nothing_and_a_cancelled_send_breaks_the_connection() {
    let (ours, theirs) = tokio::io::duplex(20);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
    let nonce = vec![7; 500];
    let proof = Message::Proof { nonce };
    let sender = tokio::spawn({
        let proof = proof.clone();
        async move {
            ours.send(GENERATION, &proof).await.unwrap();
            ours
        }
    });
    let received = loop {
        tokio::select! {
            biased;
            received = theirs.recv() => break received,
            () = tokio::task::yield_now() => {}
        }
    };
    assert_eq!(received.unwrap().1, proof);
    let mut ours = sender.await.unwrap();
    assert!(
        timeout(Duration::from_millis(1), ours.send(GENERATION, &proof))
            .await
            .is_err()
    );
    assert!(matches!(
        ours.send(GENERATION, &Message::Bye).await,
        Err(TransportError::Broken { .. })
    ));
}

#[tokio::test]
async fn a_message_too_long_leaves_the_connection_usable() {
    let (ours, theirs) = tokio::io::duplex(1000);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
    let reason = "x".repeat(crate::codec::MAX_PAYLOAD);
    let error = ours.send(GENERATION, &Message::Refuse { reason }).await.unwrap_err();
    assert!(matches!(error, TransportError::Encode { .. }), "{error}");
    ours.send(GENERATION, &Message::Bye).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), (GENERATION, Message::Bye));
}

#[tokio::test]
async fn connecting_gives_up_after_the_stated_attempts() {
    let unused = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let backoff = Backoff {
        first: Duration::from_millis(1),
        most: Duration::from_millis(2),
        attempts: 3,
        each: Duration::from_secs(1),
    };
    let error = connect(&unused, backoff).await.unwrap_err().to_string();
    assert!(error.contains(&unused) && error.contains("tried 3 times"), "{error}");
}
