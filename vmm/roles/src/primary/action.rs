//! What a primary's decisions come out as.

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::Message;

use super::super::clone::{Blocks, Selection};
use super::super::event::Event;
use super::super::exit_code::ExitCode;
use super::super::operation::Answer;
use crate::host_event::Control;

/// What the primary has decided, for the link to carry out in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum PrimaryAction {
    /// Send on the connection to the backup.
    Send(Message),
    /// Close the connection to the backup, after what has been sent.
    Close,
    /// Have the vCPU thread say which pages have been written since it was last asked.
    TakeDirty,
    /// Send pages to the joining backup, and say when they are on their way ([`pages_sent`](super::Primary::pages_sent)).
    SendPages { to: Incarnation, pages: Selection },
    /// Send blocks of the private disks to the joining backup, and say when it has written them and they are stable there
    /// ([`blocks_sent`](super::Primary::blocks_sent)).
    SendBlocks { to: Incarnation, blocks: Blocks },
    /// Have the vCPU thread save the machine for a joining backup.
    SaveState,
    /// The guest is to stand still for so many thousandths of the time, so that the backup keeps up.
    Pace(u32),
    /// Nobody reads the log any more.
    StopLogging,
    /// Have the vCPU thread do something, and say so ([`obeyed`](super::Primary::obeyed)).
    Order(Control),
    /// Have the guest's life end.
    PowerOff,
    /// Tell the guest of what was withheld ([`Withheld`](super::FailedRequest::Withheld)).
    TellFailures,
    /// An operation has come to its end.
    Answer { ticket: u64, answer: Answer },
    /// Kill this process, at once and without a word.
    Die,
    /// Ask for the generation after this one (PROTOCOL 10).
    Claim(Generation),
    /// Tell the world.
    Report(Event),
    /// End this process.
    End { code: ExitCode, why: String },
}
