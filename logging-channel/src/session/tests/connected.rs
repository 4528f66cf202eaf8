use super::*;

async fn good_nonce(_: &Welcome) -> Result<Vec<u8>, String> {
    Ok(vec![7; 16])
}

async fn listening() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn a_backup_joins() {
    let (listener, address) = listening().await;
    let primary = tokio::spawn(async move {
        let (mut stream, candidate) = accept_backup(&listener, SOON, offer).await;
        stream.send(G, &Message::Bye).await.unwrap();
        candidate
    });
    let mut stream = connect(&address, Backoff::default()).await.unwrap();
    assert_eq!(
        join(&mut stream, client(), SOON, good_nonce).await.unwrap(),
        offer().welcome
    );
    assert_eq!(
        stream.recv().await.unwrap(),
        (G, Message::Bye),
        "the connection goes on"
    );
    assert_eq!(primary.await.unwrap().incarnation, BACKUP);
}

#[tokio::test]
async fn both_sides_learn_why_there_is_no_session() {
    let wrong = async |_: &Welcome| Ok::<_, String>(vec![0; 16]);
    let complains = async |_: &Welcome| Err("4 GiB of RAM do not fit this host".to_owned());
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "backup"), FrameStream::new(theirs, "primary"));
    let (primary, joined) = tokio::join!(
        serve_join(&mut ours, JoinServer::new(offer()), SOON),
        join(&mut theirs, client(), SOON, wrong)
    );
    joined.unwrap();
    let reason = primary.unwrap_err().to_string();
    assert_eq!(theirs.recv().await.unwrap().1, Message::Refuse { reason });

    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "backup"), FrameStream::new(theirs, "primary"));
    let (primary, joined) = tokio::join!(
        serve_join(&mut ours, JoinServer::new(offer()), SOON),
        join(&mut theirs, client(), SOON, complains)
    );
    assert_eq!(joined.unwrap_err().to_string(), "4 GiB of RAM do not fit this host");
    assert!(matches!(primary.unwrap_err(), SessionError::Refused { reason } if reason.starts_with("4 GiB")));
}

#[tokio::test]
async fn a_peer_that_stalls_is_given_up_on_either_side() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let mut stream = FrameStream::new(ours, "them");
    theirs.write_all(b"FT\x01").await.unwrap();
    let start = Instant::now();
    let error = serve_join(&mut stream, JoinServer::new(offer()), BRIEF)
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    assert!((BRIEF..SOON).contains(&start.elapsed()));

    let (ours, _theirs) = tokio::io::duplex(1 << 16);
    let mut stream = FrameStream::new(ours, "them");
    let start = Instant::now();
    let error = join(&mut stream, client(), BRIEF, good_nonce).await.unwrap_err();
    assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    // The share may hang, too.
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
    theirs.send(G, &Message::Welcome(offer().welcome)).await.unwrap();
    let error = join(&mut ours, client(), BRIEF, async |_| {
        std::future::pending::<Result<_, String>>().await
    })
    .await
    .unwrap_err();
    assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    assert!((2 * BRIEF..SOON).contains(&start.elapsed()));
}

#[tokio::test]
async fn a_stranger_may_send_less_than_a_peer() {
    let (ours, theirs) = tokio::io::duplex(2 * HANDSHAKE_LIMIT);
    let (mut ours, mut theirs) = (FrameStream::new(ours, "them"), FrameStream::new(theirs, "us"));
    let host = "x".repeat(HANDSHAKE_LIMIT);
    theirs.send(G, &Message::Join(Join { host, ..hello() })).await.unwrap();
    let error = serve_join(&mut ours, JoinServer::new(offer()), SOON).await.unwrap_err();
    assert!(
        error.to_string().contains("expected at most 1048576 bytes of payload"),
        "{error}"
    );
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_refusal_is_left_behind() {
    let (ours, mut theirs) = tokio::io::duplex(30);
    let mut stream = FrameStream::new(ours, "them");
    theirs.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    theirs.write_all(b"\r\n\r\n\r\n\r\n").await.unwrap();
    let start = Instant::now();
    let error = serve_join(&mut stream, JoinServer::new(offer()), SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::Transport(_)), "{error}");
    assert!(start.elapsed() < SOON);
}

/// Stalling and babbling peers fill every place, and still the backup gets in, long before their time is up.
#[tokio::test]
async fn stalling_and_babbling_peers_hold_up_nobody() {
    let (listener, address) = listening().await;
    let asked = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&asked);
    let primary = tokio::spawn(async move {
        let offer = move || {
            *counter.lock().unwrap() += 1;
            offer()
        };
        accept_backup(&listener, Duration::from_secs(600), offer).await.1
    });
    let mut strangers = Vec::new();
    for n in 0..2 * MAX_HANDSHAKES + 1 {
        let mut stranger = TcpStream::connect(&address).await.unwrap();
        if n % 2 == 1 {
            stranger
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await
                .unwrap();
        }
        strangers.push(stranger);
    }
    let mut byte = [0];
    let oldest = tokio::time::timeout(SOON, strangers[0].read(&mut byte)).await;
    assert!(
        matches!(oldest, Ok(Ok(0) | Err(_))),
        "the oldest staller is dropped for the newest: {oldest:?}"
    );
    let mut stream: TcpFrames = connect(&address, Backoff::default()).await.unwrap();
    join(&mut stream, client(), SOON, good_nonce).await.unwrap();
    assert_eq!(
        tokio::time::timeout(SOON, primary).await.unwrap().unwrap().incarnation,
        BACKUP
    );
    assert_eq!(*asked.lock().unwrap(), 2 * MAX_HANDSHAKES + 2, "a nonce for each");
}
