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
