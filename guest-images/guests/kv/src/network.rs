//! The network device as smoltcp sees it.

use guest_virtio::net::{MAX_FRAME, Net, Receiver, Transmitter};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

pub struct Network(pub Net);

pub struct Incoming<'a>(&'a mut Receiver);

pub struct Outgoing<'a>(&'a mut Transmitter);

impl Device for Network {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let Net {
            receiver, transmitter, ..
        } = &mut self.0;
        (receiver.is_ready() && transmitter.is_ready()).then_some((Incoming(receiver), Outgoing(transmitter)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        let transmitter = &mut self.0.transmitter;
        transmitter.is_ready().then_some(Outgoing(transmitter))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        self.0.receive(read)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.0.transmit(len, write)
    }
}
