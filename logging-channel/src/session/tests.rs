use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::message::{DiskReads, Join, PROTOCOL_VERSION, Standby, Welcome};
use crate::transport::{Backoff, FrameStream, TcpFrames, connect};
use ftvm_schema::entry::Generation;

const PRIMARY: Incarnation = Incarnation(1);
const BACKUP: Incarnation = Incarnation(2);
const G: Generation = Generation(4);
const SOON: Duration = Duration::from_secs(5);
/// How long a peer is waited for that says nothing.
const BRIEF: Duration = Duration::from_millis(100);

fn offer() -> Offer {
    Offer {
        welcome: Welcome {
            version: PROTOCOL_VERSION,
            guest: 9,
            generation: G,
            owner: PRIMARY,
            nonce_name: "nonce-1".into(),
            config: vec![1, 2],
            detection_ns: 60_000_000,
            lease_ns: 40_000_000,
            patience_ns: 5_000_000,
            disk_reads: DiskReads::Log,
        },
        delivery_mode: "window".into(),
        nonce: vec![7; 16],
        host: "host-a".into(),
        site: "east".into(),
        unprotected: Duration::from_millis(1500),
    }
}

fn hello() -> Join {
    Join {
        version: PROTOCOL_VERSION,
        incarnation: BACKUP,
        delivery_modes: vec!["none".into(), "window".into()],
        host: "host-b".into(),
        standby: None,
    }
}

fn proof() -> Message {
    Message::Proof { nonce: vec![7; 16] }
}

fn refuse(reason: &str) -> Message {
    Message::Refuse { reason: reason.into() }
}

fn client() -> JoinClient {
    JoinClient::new(hello())
}

/// A client that has its answer.
fn welcomed() -> JoinClient {
    let mut client = client();
    client.on_message(Message::Welcome(offer().welcome)).unwrap();
    client
}

mod primary {
    use super::*;

    fn after_join(join: Join) -> Result<ServerStep, SessionError> {
        JoinServer::new(offer()).on_message(Message::Join(join))
    }

    #[test]
    fn a_fitting_backup_is_welcomed_then_accepted_by_its_proof() {
        let mut server = JoinServer::new(offer());
        let step = server.on_message(Message::Join(hello())).unwrap();
        assert_eq!(step, ServerStep::Send(Message::Welcome(offer().welcome)));
        let candidate = Candidate {
            incarnation: BACKUP,
            host: "host-b".into(),
            placement: Placement::OtherHost,
        };
        assert_eq!(server.on_message(proof()).unwrap(), ServerStep::Accepted(candidate));
        assert!(
            server.on_message(proof()).is_err(),
            "no second backup on this handshake"
        );
    }

    #[test]
    fn a_backup_on_the_same_host_is_allowed_and_said() {
        let mut server = JoinServer::new(offer());
        let host = "host-a".into();
        server.on_message(Message::Join(Join { host, ..hello() })).unwrap();
        let ServerStep::Accepted(candidate) = server.on_message(proof()).unwrap() else {
            panic!("not accepted")
        };
        assert_eq!(candidate.placement, Placement::SameHost);
    }

    #[test]
    fn a_standby_keeps_away_from_its_own_host_and_site_and_waits_for_its_turn() {
        let ask = |host: &str, standby: Standby| {
            let (host, standby) = (host.into(), Some(standby));
            after_join(Join {
                host,
                standby,
                ..hello()
            })
        };
        let standby = || Standby {
            priority: 0,
            site: "west".into(),
            same_host: false,
            same_site: false,
        };
        assert!(ask("host-b", standby()).is_ok());
        assert!(matches!(ask("host-a", standby()), Err(SessionError::SameHost)));
        assert!(
            ask(
                "host-a",
                Standby {
                    same_host: true,
                    ..standby()
                }
            )
            .is_ok()
        );
        let near = || Standby {
            site: "east".into(),
            ..standby()
        };
        assert!(matches!(ask("host-b", near()), Err(SessionError::SameSite { .. })));
        assert!(
            ask(
                "host-b",
                Standby {
                    same_site: true,
                    ..near()
                }
            )
            .is_ok()
        );
        let nowhere = String::new();
        assert!(
            ask(
                "host-b",
                Standby {
                    site: nowhere,
                    ..standby()
                }
            )
            .is_ok(),
            "an unknown site is no site"
        );
        assert!(
            ask(
                "host-b",
                Standby {
                    priority: 1,
                    ..standby()
                }
            )
            .is_ok()
        );
        let late = ask(
            "host-b",
            Standby {
                priority: 2,
                ..standby()
            },
        )
        .unwrap_err();
        assert!(late.to_string().contains("500 ms more"), "{late}");
    }

    #[test]
    fn each_misfit_is_refused_by_name() {
        let version = after_join(Join { version: 1, ..hello() }).unwrap_err();
        assert!(version.to_string().contains("version 1, expected 2"), "{version}");
        let delivery_modes = vec!["none".into(), "ev\u{1b}il".into()];
        let mode = after_join(Join {
            delivery_modes,
            ..hello()
        })
        .unwrap_err();
        assert!(
            mode.to_string().contains("`window`") && mode.to_string().ends_with("none, ev?il"),
            "{mode}"
        );
        let incarnation = PRIMARY;
        let same = after_join(Join { incarnation, ..hello() }).unwrap_err();
        assert!(matches!(same, SessionError::SameIncarnation(PRIMARY)), "{same}");
        for error in [version, mode, same] {
            assert_eq!(error.refusal(), Some(refuse(&error.to_string())));
        }
    }

    #[test]
    fn a_wrong_an_empty_and_an_early_proof_are_refused() {
        for nonce in [vec![7; 15], vec![8; 16], vec![]] {
            let mut server = JoinServer::new(offer());
            server.on_message(Message::Join(hello())).unwrap();
            let error = server.on_message(Message::Proof { nonce }).unwrap_err();
            assert!(matches!(error, SessionError::WrongNonce { .. }), "{error}");
            assert!(server.on_message(proof()).is_err(), "one try only");
        }
        let mut empty = JoinServer::new(Offer {
            nonce: vec![],
            ..offer()
        });
        empty.on_message(Message::Join(hello())).unwrap();
        assert!(empty.on_message(Message::Proof { nonce: vec![] }).is_err());
        let error = JoinServer::new(offer()).on_message(proof()).unwrap_err();
        assert_eq!(error.to_string(), "expected a Join message, found a Proof message");
    }

    #[test]
    fn every_message_out_of_place_is_refused_in_every_state() {
        for (name, message) in crate::codec::samples::messages() {
            let mut fresh = JoinServer::new(offer());
            assert_eq!(fresh.on_message(message.clone()).is_ok(), name == "join", "{name}");
            let mut joined = JoinServer::new(offer());
            joined.on_message(Message::Join(hello())).unwrap();
            assert!(
                joined.on_message(message).is_err(),
                "{name}: the sample proof is a wrong one"
            );
        }
    }
}

mod backup {
    use super::*;

    fn after_welcome(change: impl FnOnce(&mut Welcome)) -> Result<Welcome, SessionError> {
        let mut welcome = offer().welcome;
        change(&mut welcome);
        client().on_message(Message::Welcome(welcome))
    }

    #[test]
    fn a_primary_that_does_not_fit_is_refused_by_name() {
        let version = after_welcome(|welcome| welcome.version = 9).unwrap_err();
        assert!(matches!(version, SessionError::Version { found: 9, .. }), "{version}");
        let same = after_welcome(|welcome| welcome.owner = BACKUP).unwrap_err();
        assert!(matches!(same, SessionError::SameIncarnation(BACKUP)), "{same}");
        for (lease, fits) in [(0, false), (1, true), (60_000_000, true), (60_000_001, false)] {
            assert_eq!(
                after_welcome(|welcome| welcome.lease_ns = lease).is_ok(),
                fits,
                "{lease}"
            );
        }
        assert_eq!(after_welcome(|_| {}).unwrap(), offer().welcome);
    }

    #[test]
    fn it_reads_no_file_outside_the_shared_directory_for_the_primary() {
        let long = "x".repeat(256);
        for name in [
            "",
            ".",
            "..",
            "../gen-1",
            "/etc/passwd",
            "a/b",
            "a\0",
            "a b",
            ".hidden",
            long.as_str(),
        ] {
            let error = after_welcome(|welcome| welcome.nonce_name = name.into()).unwrap_err();
            assert!(matches!(error, SessionError::NonceName { .. }), "{name}: {error}");
        }
        assert!(after_welcome(|welcome| welcome.nonce_name = "nonce-2.a_b".into()).is_ok());
    }

    #[test]
    fn a_refusal_is_shown_fit_for_a_terminal_and_not_answered() {
        let reason = format!("\u{1b}[2Jno\n{}", "x".repeat(1000));
        for mut client in [client(), welcomed()] {
            let error = client.on_message(refuse(&reason)).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("the other side refuses: ?[2Jno?xxx") && text.len() < 500,
                "{text}"
            );
            assert_eq!(error.refusal(), None);
        }
    }

    #[test]
    fn every_message_out_of_place_is_refused_in_every_state() {
        for (name, message) in crate::codec::samples::messages() {
            assert_eq!(
                client().on_message(message.clone()).is_ok(),
                name == "welcome",
                "{name}"
            );
            assert!(welcomed().on_message(message).is_err(), "{name}");
        }
    }
}

mod connected {
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
        let wrong = async |_: &Welcome| Ok(vec![0; 16]);
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
        let error = join(&mut ours, client(), BRIEF, async |_| std::future::pending().await)
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
}
