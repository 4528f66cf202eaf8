//! Who gets a connection, and how long it keeps its place: decided here, so that no state of TCP is forgotten.

/// Milliseconds in which a client has to complete the handshake, and to take the last reply and go.
pub const PATIENCE: u64 = 10_000;

/// How many connections there may be at a time. A client that is served needs much memory, so that it is not slowed down;
/// to tell one that there are too many takes next to none. So there are places of two sizes, and a crowd that is only told
/// so takes nothing away from those who are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients that are served.
    pub clients: usize,
    /// Large places beyond them, for connections that were served and have not quite ended.
    pub leaving: usize,
    /// Small places, for clients that are told that there are too many.
    pub refusals: usize,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Clients that are served; each has a large place.
    pub served: usize,
    /// Large places.
    pub large: usize,
    /// Small places.
    pub small: usize,
}

/// How the next client is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// It gets a large place and is served.
    Serve,
    /// It gets a small place, an error, and the end of the connection.
    Refuse,
    /// Nobody listens: TCP resets the connection.
    Nobody,
}

impl Limits {
    /// How the next client is received, who comes when so many places are taken.
    #[must_use]
    pub fn reception(&self, taken: Taken) -> Reception {
        if taken.served < self.clients && taken.large < self.clients + self.leaving {
            Reception::Serve
        } else if taken.small < self.refusals {
            Reception::Refuse
        } else {
            Reception::Nobody
        }
    }
}

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
    const LIMITS: Limits = Limits {
        clients: 3,
        leaving: 2,
        refusals: 4,
    };

    #[test]
    fn a_client_is_served_while_there_is_a_place_then_told_then_not_heard() {
        for (served, large, small, expected) in [
            (0, 0, 0, Reception::Serve),
            (2, 2, 0, Reception::Serve),
            // Those who are told take nothing from those who are served.
            (2, 4, 4, Reception::Serve),
            (3, 3, 0, Reception::Refuse),
            (3, 3, 3, Reception::Refuse),
            (3, 3, 4, Reception::Nobody),
            // Connections that do not end hold all large places.
            (0, 5, 0, Reception::Refuse),
            (0, 5, 4, Reception::Nobody),
        ] {
            let taken = Taken { served, large, small };
            assert_eq!(LIMITS.reception(taken), expected, "{taken:?}");
        }
    }

    /// One connection of a simulated crowd.
    struct Guest {
        large: bool,
        closing: bool,
        tcp: Tcp,
        since: u64,
    }

    fn taken(guests: &[Guest]) -> Taken {
        let large = guests.iter().filter(|guest| guest.large);
        Taken {
            served: large.clone().filter(|guest| !guest.closing).count(),
            large: large.count(),
            small: guests.iter().filter(|guest| !guest.large).count(),
        }
    }

    fn reap(guests: &mut Vec<Guest>, now: u64) {
        guests.retain_mut(|guest| match fate(guest.tcp, guest.closing, now - guest.since) {
            Fate::Keep => true,
            Fate::Abort => {
                guest.tcp = Tcp::Over;
                true
            }
            Fate::Remove => false,
        });
    }

    /// Clients come, complete the handshake or take it back, hang up or stay silent, in any order; those who are told and
    /// never go are among them. No limit is ever passed, and when the last has been given time to leave, all is free.
    #[test]
    fn whatever_a_crowd_does_no_limit_is_passed_and_every_place_comes_back() {
        for seed in 1..=200_u64 {
            let mut random = seed;
            let mut draw = |bound: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
                (random >> 33) % bound
            };
            let (mut guests, mut now) = (Vec::new(), 0);
            for _ in 0..300 {
                now += draw(PATIENCE / 8);
                let reception = LIMITS.reception(taken(&guests));
                if draw(2) == 0 && reception != Reception::Nobody {
                    guests.push(Guest {
                        large: reception == Reception::Serve,
                        closing: reception == Reception::Refuse,
                        tcp: Tcp::Handshake,
                        since: now,
                    });
                }
                for guest in &mut guests {
                    match (guest.tcp, draw(12)) {
                        (Tcp::Handshake, 0) => guest.tcp = Tcp::Listening,
                        (Tcp::Handshake, 1..4) => guest.tcp = Tcp::Open,
                        (Tcp::Open, 0) => guest.tcp = Tcp::Over,
                        (Tcp::Open, 1) if !guest.closing => (guest.closing, guest.since) = (true, now),
                        _ => {}
                    }
                }
                let now_taken = taken(&guests);
                assert!(now_taken.served <= LIMITS.clients, "seed {seed}: {now_taken:?}");
                assert!(
                    now_taken.large <= LIMITS.clients + LIMITS.leaving,
                    "seed {seed}: {now_taken:?}"
                );
                assert!(now_taken.small <= LIMITS.refusals, "seed {seed}: {now_taken:?}");
                reap(&mut guests, now);
            }
            for guest in guests.iter_mut().filter(|guest| !guest.closing) {
                (guest.closing, guest.since) = (true, now);
            }
            for _ in 0..2 {
                now += PATIENCE + 1;
                reap(&mut guests, now);
            }
            assert_eq!(taken(&guests), Taken::default(), "seed {seed}");
        }
    }

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
