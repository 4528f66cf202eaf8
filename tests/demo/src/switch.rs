//! A learning Ethernet switch (IEEE 802.1D, without spanning tree): which ports a frame goes to. Pure.

use std::collections::BTreeMap;

/// Addresses remembered. More are flooded, as any switch does with a full table.
const MAX_ADDRESSES: usize = 1024;

/// An Ethernet address.
type Address = [u8; 6];

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To this port.
    Port(usize),
    /// To every port but the one it came from.
    Flood,
    /// Nowhere: its receiver is where it came from, or it is no frame.
    Nowhere,
}

/// What the switch has learnt.
#[derive(Debug, Default)]
pub(super) struct Switch {
    ports: BTreeMap<Address, usize>,
}

impl Switch {
    /// Takes a frame from port `from`: learns its sender, finds its receiver.
    pub(super) fn route(&mut self, from: usize, frame: &[u8]) -> Route {
        let (Some(to), Some(source)) = (address(frame, 0), address(frame, 6)) else {
            return Route::Nowhere;
        };
        if !is_group(source) && (self.ports.len() < MAX_ADDRESSES || self.ports.contains_key(&source)) {
            self.ports.insert(source, from);
        }
        match self.ports.get(&to) {
            _ if is_group(to) => Route::Flood,
            None => Route::Flood,
            Some(port) if *port == from => Route::Nowhere,
            Some(port) => Route::Port(*port),
        }
    }

    /// Nobody answers at `port` any more: what was learnt there may be anywhere.
    pub(super) fn forget(&mut self, port: usize) {
        self.ports.retain(|_, learnt| *learnt != port);
    }
}

fn address(frame: &[u8], at: usize) -> Option<Address> {
    frame.get(at..at + 6)?.try_into().ok()
}

/// Multicast and broadcast addresses have the lowest bit of their first byte set.
fn is_group(address: Address) -> bool {
    address[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Address = [2, 0, 0, 0, 0, 1];
    const B: Address = [2, 0, 0, 0, 0, 2];
    const EVERYBODY: Address = [0xFF; 6];

    fn frame(to: Address, from: Address) -> Vec<u8> {
        [&to[..], &from[..], &[8, 0]].concat()
    }

    #[test]
    fn it_learns_where_senders_are() {
        let mut switch = Switch::default();
        assert_eq!(switch.route(0, &frame(B, A)), Route::Flood, "nobody has seen B");
        assert_eq!(switch.route(1, &frame(A, B)), Route::Port(0));
        assert_eq!(switch.route(0, &frame(B, A)), Route::Port(1));
        assert_eq!(switch.route(1, &frame(B, A)), Route::Nowhere, "B is on this very cable");
    }

    #[test]
    fn a_card_that_moves_is_found_by_its_next_frame() {
        let mut switch = Switch::default();
        switch.route(0, &frame(EVERYBODY, A));
        switch.route(2, &frame(EVERYBODY, A));
        assert_eq!(switch.route(1, &frame(A, B)), Route::Port(2));
    }

    #[test]
    fn groups_are_flooded_and_never_learnt() {
        let mut switch = Switch::default();
        assert_eq!(switch.route(0, &frame(EVERYBODY, EVERYBODY)), Route::Flood);
        assert_eq!(switch.route(1, &frame(EVERYBODY, A)), Route::Flood);
        assert_eq!(switch.route(1, &frame([1, 0, 0x5E, 0, 0, 1], A)), Route::Flood);
        assert_eq!(switch.ports.keys().copied().collect::<Vec<_>>(), [A]);
    }

    #[test]
    fn a_dead_port_is_forgotten_and_the_others_are_not() {
        let mut switch = Switch::default();
        switch.route(0, &frame(EVERYBODY, A));
        switch.route(1, &frame(EVERYBODY, B));
        switch.forget(0);
        assert_eq!(switch.route(2, &frame(A, [2; 6])), Route::Flood);
        assert_eq!(switch.route(2, &frame(B, [2; 6])), Route::Port(1));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut switch = Switch::default();
        let sender = |number: usize| {
            let [.., high, low] = number.to_be_bytes();
            [2, 0, 0, 0, high, low]
        };
        for number in 0..MAX_ADDRESSES {
            switch.route(0, &frame(EVERYBODY, sender(number)));
        }
        switch.route(0, &frame(EVERYBODY, [6; 6]));
        assert_eq!(
            switch.route(1, &frame([6; 6], B)),
            Route::Flood,
            "one too many is flooded"
        );
        assert_eq!(switch.route(1, &frame(sender(0), B)), Route::Port(0));
        switch.route(1, &frame(EVERYBODY, sender(0)));
        assert_eq!(
            switch.route(0, &frame(sender(0), B)),
            Route::Port(1),
            "those known may still move"
        );
    }

    #[test]
    fn what_is_no_frame_goes_nowhere() {
        let mut switch = Switch::default();
        assert_eq!(switch.route(0, &[]), Route::Nowhere);
        assert_eq!(switch.route(0, &[0; 11]), Route::Nowhere);
        assert_eq!(switch.route(0, &frame(A, B)[..12]), Route::Flood);
    }
}
