use super::*;
use crate::testing::contract::{self, Subject, own_state};
use crate::testing::{Seeded, Surroundings, forgetting};

fn write(uart: &mut Uart, around: &mut Surroundings, offset: u16, value: u8) {
    uart.withdraw_before_write(offset);
    uart.write(offset, value, &mut around.env());
}

#[test]
fn what_is_written_leaves_byte_for_byte_and_the_transmitter_is_empty() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    write(&mut uart, &mut around, 0, b'h');
    write(&mut uart, &mut around, 0, b'i');
    let sent = |byte| Effect::Console {
        port: ConsolePort::Serial,
        bytes: vec![byte],
    };
    assert_eq!(around.effects, [sent(b'h'), sent(b'i')]);
    assert_eq!(uart.read(5), LSR_TRANSMITTER_EMPTY);
}

#[test]
fn the_divisor_hides_data_and_interrupt_enable() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    write(&mut uart, &mut around, 3, 0x83);
    write(&mut uart, &mut around, 0, 1);
    write(&mut uart, &mut around, 1, 2);
    assert_eq!((uart.read(0), uart.read(1)), (1, 2));
    assert!(around.effects.is_empty());
    write(&mut uart, &mut around, 3, 3);
    assert_eq!((uart.read(0), uart.read(1)), (0, 0));
}

#[test]
fn received_bytes_interrupt_until_they_are_read() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    write(&mut uart, &mut around, 2, 0x41);
    uart.receive(b"abc");
    assert!(!uart.interrupt(), "not enabled");
    write(&mut uart, &mut around, 1, 1);
    assert!(uart.interrupt());
    assert_eq!(uart.read(2), 0xCC, "below the trigger level of 4: timeout");
    uart.receive(b"d");
    assert_eq!(uart.read(2), 0xC4);
    assert_eq!(uart.read(5) & 1, 1);
    let read: Vec<u8> = (0..4).map(|_| uart.read(0)).collect();
    assert_eq!(read, b"abcd");
    assert!(!uart.interrupt());
    assert_eq!(uart.read(2), 0xC1);
}

#[test]
fn the_fifo_is_sixteen_deep_and_one_more_is_an_overrun() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    assert_eq!(uart.room(), 1, "without FIFO");
    write(&mut uart, &mut around, 2, 1);
    write(&mut uart, &mut around, 1, 4);
    assert_eq!(uart.room(), 16);
    uart.receive(&[7; 16]);
    assert_eq!(uart.room(), 0);
    assert!(!uart.interrupt());
    uart.receive(&[8]);
    assert!(uart.interrupt());
    assert_eq!(uart.read(2), 0xC6);
    assert_eq!(uart.read(5), 0x63);
    assert_eq!(uart.read(5), 0x61, "reading it clears the overrun");
    assert!(!uart.interrupt());
    assert_eq!((0..16).map(|_| uart.read(0)).collect::<Vec<_>>(), [7; 16]);
}

#[test]
fn the_transmitter_interrupt_is_raised_by_enabling_and_by_writing_and_cleared_by_identifying() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    write(&mut uart, &mut around, 1, 2);
    assert_eq!(uart.read(2), 2);
    assert!(!uart.interrupt());
    write(&mut uart, &mut around, 1, 2);
    assert!(!uart.interrupt(), "it was enabled already");
    write(&mut uart, &mut around, 0, b'x');
    assert!(uart.interrupt());
    uart.withdraw_before_write(0);
    assert!(!uart.interrupt(), "the line falls before it rises again");
}

#[test]
fn loopback_joins_outputs_to_inputs() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    assert_eq!(uart.read(6), 0xB0);
    write(&mut uart, &mut around, 4, 0x10);
    assert_eq!(uart.read(6), 0x0B, "three lines have fallen");
    assert_eq!(uart.read(6), 0x00);
    for (control, status) in [(0x11, 0x22), (0x12, 0x13), (0x14, 0x41), (0x18, 0x8C)] {
        write(&mut uart, &mut around, 4, control);
        assert_eq!(uart.read(6), status, "control {control:#x}");
    }
    write(&mut uart, &mut around, 0, b'l');
    assert!(around.effects.is_empty());
    assert_eq!(uart.room(), 0, "the line is disconnected");
    uart.receive(b"z");
    assert_eq!(uart.read(0), b'l');
    assert_eq!(uart.read(5) & 1, 0);
}

#[test]
fn modem_changes_interrupt_where_enabled() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    write(&mut uart, &mut around, 1, 8);
    write(&mut uart, &mut around, 4, 0x10);
    assert!(uart.interrupt());
    assert_eq!(uart.read(2), 0);
    uart.read(6);
    assert!(!uart.interrupt());
}

#[test]
fn turning_the_fifo_on_clears_it() {
    let (mut uart, mut around) = (Uart::new(), Surroundings::new());
    uart.receive(b"x");
    write(&mut uart, &mut around, 2, 1);
    assert_eq!(uart.read(5) & 1, 0);
    uart.receive(b"y");
    write(&mut uart, &mut around, 2, 1);
    assert_eq!(uart.read(5) & 1, 1, "it was on already");
    write(&mut uart, &mut around, 2, 3);
    assert_eq!(uart.read(5) & 1, 0);
}

#[test]
fn a_state_with_too_long_a_fifo_is_refused() {
    let mut uart = Uart::new();
    uart.received = vec![0; 16].into();
    assert_eq!(uart.check(), Ok(()));
    uart.received.push_back(0);
    assert!(uart.check().is_err());
}

struct UartSubject;

impl Subject for UartSubject {
    type Device = Uart;
    type Guest = ();

    own_state!(Uart::new());

    fn step(uart: &mut Uart, (): &mut (), around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
        match random.below(5) {
            0 => uart.receive(&random.bytes(6)),
            1 | 2 => return vec![uart.read(random.pick(&[0, 1, 2, 3, 4, 5, 6, 7]))],
            3 => write(uart, around, random.pick(&[0, 1, 2]), random.byte()),
            _ => {
                let offset = random.pick(&[0, 1, 2, 3, 4, 5, 6, 7]);
                let value = random.byte() & if offset == 3 && !random.once_in(4) { 0x7F } else { 0xFF };
                write(uart, around, offset, value);
            }
        }
        Vec::new()
    }

    fn observe(uart: &Uart) -> String {
        format!("{} {}", uart.interrupt(), uart.room())
    }
}

#[test]
fn keeps_the_contract() {
    contract::check::<UartSubject>();
}

#[test]
fn every_field_matters() {
    forgetting::check::<UartSubject>(&[]);
}
