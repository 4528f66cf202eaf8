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
