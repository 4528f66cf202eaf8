//! Where the roles of this process say how they are, and where clients of its control socket look.

use std::sync::Arc;

use ftvm_schema::entry::Generation;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::socket::MAX_LINE;
use super::{Asked, ControlReply, ControlRequest, Role, Status};
use ftvm_roles::operation::{Answer, Operation, Unprotected};

/// Operations that wait for the role's task.
const WAITING: usize = 4;

/// An operation on its way to the role's task.
#[derive(Debug)]
pub struct Order {
    pub operation: Operation,
    pub answer: oneshot::Sender<Answer>,
}

/// Where the roles of this process say how they are, and clients look.
#[derive(Clone, Debug, Default)]
pub struct Desk(Arc<Mutex<DeskState>>);

#[derive(Debug, Default)]
struct DeskState {
    status: Status,
    operator: Option<mpsc::Sender<Order>>,
}

impl Desk {
    /// Changes what clients see.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().status);
    }

    /// This process leads a guest: from now on clients see so, and their operations come here. Before the first event that
    /// says so is reported, as whoever hears of it may ask.
    #[must_use]
    pub fn leads(&self, generation: Generation, paused: bool) -> mpsc::Receiver<Order> {
        let (operator, orders) = mpsc::channel(WAITING);
        let mut state = self.0.lock();
        state.operator = Some(operator);
        state.status.role = Role::Primary;
        state.status.generation = generation.0;
        state.status.why = Some(Unprotected::NeedBackup);
        state.status.protected = false;
        state.status.paused = paused;
        orders
    }

    /// This process carries no guest, and follows none. What it did before is over.
    pub fn stands_by(&self) {
        self.update(|status| {
            *status = Status {
                role: Role::Standby,
                last_failover: status.last_failover.take(),
                ..Status::default()
            };
        });
    }

    async fn operate(&self, operation: Operation) -> Answer {
        let (operator, role) = {
            let state = self.0.lock();
            (state.operator.clone(), state.status.role)
        };
        // A role that is over may be followed by another.
        let Some(operator) = operator.filter(|operator| !operator.is_closed()) else {
            return Answer::failed(match role {
                Role::Standby => "this host stands by: ask the primary",
                Role::Backup => "this is the backup: ask the primary",
                Role::Primary => "this process is ending, or just beginning: ask again",
            });
        };
        let (answer, answered) = oneshot::channel();
        let order = Order { operation, answer };
        let ending = || Answer::failed("this process is ending");
        match operator.try_send(order) {
            Ok(()) => answered.await.unwrap_or_else(|_| ending()),
            Err(mpsc::error::TrySendError::Full(_)) => Answer::failed("other operations are waiting; ask again"),
            Err(mpsc::error::TrySendError::Closed(_)) => ending(),
        }
    }

    pub(super) async fn reply(&self, line: &[u8]) -> ControlReply {
        match serde_json::from_slice::<ControlRequest>(line) {
            Ok(ControlRequest { request: Asked::Status }) => ControlReply {
                status: Some(self.0.lock().status.clone()),
                ..ControlReply::default()
            },
            Ok(ControlRequest {
                request: Asked::Operation(operation),
            }) => self.operate(operation).await.into(),
            Err(error) => Answer::failed(format_args!(
                "expected one line such as {{\"request\":\"status\"}}, of at most {MAX_LINE} bytes: {error}"
            ))
            .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::LastFailover;

    fn reply(desk: &Desk, line: &[u8]) -> ControlReply {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(desk.reply(line))
    }

    #[test]
    fn nonsense_is_answered_with_what_was_expected() {
        for line in [
            &b""[..],
            b"\n",
            b"status",
            b"\xff\xfe",
            b"{\"request\":\"explode\"}",
            b"{\"request\":\"status\",\"more\":1}",
            b"[[[[[[[[[[",
        ] {
            let reply = reply(&Desk::default(), line);
            assert!(
                reply.error.is_some_and(|error| error.contains("expected one line")),
                "{line:?}"
            );
            assert_eq!((reply.done, reply.status), (None, None));
        }
    }

    #[test]
    fn who_is_no_primary_says_so() {
        let desk = Desk::default();
        let answer = |desk: &Desk| reply(desk, br#"{"request":"pause"}"#).error.unwrap();
        assert!(answer(&desk).contains("stands by"));
        desk.update(|status| status.role = Role::Backup);
        assert!(answer(&desk).contains("ask the primary"));
        drop(desk.leads(Generation(1), false));
        assert!(answer(&desk).contains("ending"));
        desk.update(|status| status.role = Role::Backup);
        assert!(answer(&desk).contains("ask the primary"));
    }

    #[test]
    fn who_stands_by_says_nothing_of_its_last_guest_but_the_failover() {
        let desk = Desk::default();
        let last = LastFailover {
            generation: 3,
            took_ns: 7_000_000,
            planned: true,
        };
        let _ = desk.leads(Generation(3), true);
        desk.update(|status| (status.protected, status.last_failover) = (true, Some(last)));
        desk.stands_by();
        let status = reply(&desk, br#"{"request":"status"}"#).status.unwrap();
        assert_eq!(
            (status.role, status.protected, status.paused),
            (Role::Standby, false, false)
        );
        assert_eq!((status.generation, status.last_failover), (0, Some(last)));
        let text = status.to_string();
        assert!(
            !text.contains("Protected") && text.contains("to generation 3 in 7 ms"),
            "{text}"
        );
    }

    #[test]
    fn who_leads_is_seen_to_and_takes_orders() {
        let desk = Desk::default();
        let mut orders = desk.leads(Generation(3), true);
        let status = reply(&desk, br#"{"request":"status"}"#).status.unwrap();
        assert_eq!(
            (status.role, status.generation, status.paused),
            (Role::Primary, 3, true)
        );
        assert_eq!((status.protected, status.why), (false, Some(Unprotected::NeedBackup)));
        assert!(orders.try_recv().is_err());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let asked = desk.operate(Operation::Resume);
            let led = async {
                let order = orders.recv().await.unwrap();
                assert_eq!(order.operation, Operation::Resume);
                order.answer.send(Answer::done("done")).unwrap();
            };
            assert_eq!(tokio::join!(asked, led).0, Answer::done("done"));
        });
    }
}
