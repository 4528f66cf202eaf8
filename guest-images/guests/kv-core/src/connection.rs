//! How long a connection keeps its place: decided here, so that no state of TCP is forgotten.

/// Milliseconds in which a client has to complete the handshake, and to take the last reply and go.
pub const PATIENCE: u64 = 10_000;

/// What TCP says of a connection's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// It listens again: the client took its handshake back.
    Listening,
    /// The handshake is not complete.
    Handshake,
    /// Something may still be sent or received, ends of streams included.
    Open,
    /// Nothing can be sent or received any more.
    Over,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// TCP resets it; it is over then.
    Abort,
    /// Its place is free.
    Remove,
}

/// The fate of a connection that `closing` (see [`crate::session::Session::is_closing`]) or else began `age` milliseconds
/// ago. One that is over or has never begun goes at once, however patient one would be with it.
#[must_use]
pub fn fate(tcp: Tcp, closing: bool, age: u64) -> Fate {
    match tcp {
        Tcp::Over | Tcp::Listening => Fate::Remove,
        Tcp::Handshake if age > PATIENCE => Fate::Abort,
        Tcp::Open if closing && age > PATIENCE => Fate::Abort,
        Tcp::Handshake | Tcp::Open => Fate::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Tcp; 4] = [Tcp::Listening, Tcp::Handshake, Tcp::Open, Tcp::Over];

    #[test]
    fn patience_ends_handshakes_and_closing_connections_only() {
        for (tcp, closing, age, expected) in [
            (Tcp::Handshake, false, PATIENCE, Fate::Keep),
            (Tcp::Handshake, false, PATIENCE + 1, Fate::Abort),
            (Tcp::Handshake, true, PATIENCE + 1, Fate::Abort),
            (Tcp::Open, true, PATIENCE, Fate::Keep),
            (Tcp::Open, true, PATIENCE + 1, Fate::Abort),
            (Tcp::Open, false, u64::MAX, Fate::Keep),
        ] {
            assert_eq!(
                fate(tcp, closing, age),
                expected,
                "{tcp:?}, closing {closing}, {age} ms"
            );
        }
    }

    #[test]
    fn a_connection_that_is_over_or_never_began_goes_at_once() {
        for (closing, age) in [(false, 0), (true, 0), (false, u64::MAX), (true, u64::MAX)] {
            assert_eq!(
                fate(Tcp::Over, closing, age),
                Fate::Remove,
                "closing {closing}, {age} ms"
            );
            assert_eq!(
                fate(Tcp::Listening, closing, age),
                Fate::Remove,
                "closing {closing}, {age} ms"
            );
        }
    }

    #[test]
    fn a_closing_connection_gives_its_place_back_whatever_tcp_is_at() {
        for mut tcp in ALL {
            let mut rounds = 0;
            loop {
                match fate(tcp, true, PATIENCE + 1) {
                    Fate::Remove => break,
                    Fate::Abort => tcp = Tcp::Over,
                    Fate::Keep => panic!("{tcp:?} is kept for ever"),
                }
                rounds += 1;
                assert!(rounds < 2, "{tcp:?} is aborted again and again");
            }
        }
    }
}
