//! Kicks: making a running vCPU return from another thread, without ever losing one.
//!
//! A kick sets a flag and, if the vCPU's thread is inside [`KickCell::enter`]'s guard, sends that thread a signal whose
//! handler sets `kvm_run.immediate_exit` through a thread-local pointer. A signal before KVM_RUN thus makes it return
//! at once, a signal during KVM_RUN interrupts it. The flag, not the signal, is the truth: a kick that finds no vCPU
//! inside KVM_RUN is seen by the next run. A signal that arrives late, or at a thread that has ended or now runs
//! something else, finds a null pointer and does nothing.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, Ordering, compiler_fence};

use ftvm_hypervisor::Kick;

/// Thread id that no thread has: nobody is inside KVM_RUN.
const NOBODY: i32 = 0;

thread_local! {
    /// Where this thread's handler finds `immediate_exit`; null outside KVM_RUN. Const-initialised and without a
    /// destructor, so that reading it in a signal handler is a plain load.
    static IMMEDIATE_EXIT: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
    static THREAD_ID: Cell<i32> = const { Cell::new(NOBODY) };
}

/// The signal used for kicks: the first that the C library leaves to programs.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    IMMEDIATE_EXIT.with(|pointer| {
        let immediate_exit = pointer.load(Ordering::Relaxed);
        if !immediate_exit.is_null() {
            // SAFETY: non-null only while this very thread is inside `InGuest`, which borrows the mapped kvm_run page.
            unsafe { AtomicU8::from_ptr(immediate_exit) }.store(1, Ordering::Relaxed);
        }
    });
}

fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid value of this plain C struct (SIG_DFL, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
        // Whatever else a late signal hits should not notice it. KVM_RUN returns EINTR all the same.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler only touches a thread-local pointer and an atomic byte, both async-signal-safe.
        let result = unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) };
        assert_eq!(
            result,
            0,
            "sigaction refuses SIGRTMIN: {}",
            std::io::Error::last_os_error()
        );
    });
}

/// This thread's id; on its first call in a thread also makes sure that the thread does not block kicks.
fn thread_id() -> i32 {
    THREAD_ID.with(|id| {
        if id.get() == NOBODY {
            install_handler();
            // SAFETY: zeroed sigset_t is a valid set, and the calls only write to it and to this thread's mask.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, kick_signal());
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
            }
            // SAFETY: gettid has no preconditions.
            id.set(unsafe { libc::gettid() });
        }
        id.get()
    })
}

/// Shared between a vCPU and those who kick it.
#[derive(Debug, Default)]
pub(super) struct KickCell {
    /// A kick has been asked for and no run has answered it yet.
    requested: AtomicBool,
    /// The thread inside KVM_RUN, or [`NOBODY`].
    thread: AtomicI32,
}

impl KickCell {
    /// Announces that this thread is about to call KVM_RUN, until the guard is dropped. The caller checks
    /// [`KickCell::take`] *after* this and before KVM_RUN: either it sees the request, or the kicker sees the thread.
    pub(super) fn enter<'a>(&'a self, immediate_exit: &'a AtomicU8) -> InGuest<'a> {
        let id = thread_id();
        IMMEDIATE_EXIT.with(|pointer| pointer.store(immediate_exit.as_ptr(), Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
        self.thread.store(id, Ordering::SeqCst);
        InGuest {
            cell: self,
            immediate_exit,
        }
    }

    /// Whether a kick was waiting; it is answered now.
    pub(super) fn take(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }
}

impl Kick for KickCell {
    fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != NOBODY {
            // SAFETY: tgkill takes plain numbers; a thread that has ended meanwhile gives ESRCH, which is fine.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
        }
    }
}

/// While it lives, kicks are sent to this thread. Dropping it clears `immediate_exit`.
#[derive(Debug)]
pub(super) struct InGuest<'a> {
    cell: &'a KickCell,
    immediate_exit: &'a AtomicU8,
}

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        self.cell.thread.store(NOBODY, Ordering::SeqCst);
        IMMEDIATE_EXIT.with(|pointer| pointer.store(ptr::null_mut(), Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
        // Only now can no late signal set it again.
        self.immediate_exit.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    /// Waits inside the guard, as KVM_RUN would, until the handler has set the byte.
    fn wait_for_signal(immediate_exit: &AtomicU8) {
        while immediate_exit.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_kick_between_two_runs_is_seen_by_the_next_and_only_by_it() {
        let (cell, byte) = (KickCell::default(), AtomicU8::new(0));
        cell.kick();
        assert_eq!(byte.load(Ordering::Relaxed), 0);
        let guard = cell.enter(&byte);
        assert!(cell.take());
        assert!(!cell.take());
        drop(guard);
    }

    #[test]
    fn a_kick_inside_the_guard_reaches_that_threads_byte_only() {
        let cells = [Arc::new(KickCell::default()), Arc::new(KickCell::default())];
        let bytes = Arc::new([AtomicU8::new(0), AtomicU8::new(0)]);
        let (inside, entered) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let (bystander_cell, bystander_bytes, bystander_inside) = (cells[1].clone(), bytes.clone(), inside.clone());
        let bystander = std::thread::spawn(move || {
            let guard = bystander_cell.enter(&bystander_bytes[1]);
            bystander_inside.send(()).unwrap();
            wait.recv().unwrap();
            assert_eq!(bystander_bytes[1].load(Ordering::Relaxed), 0, "kicked the wrong vCPU");
            drop(guard);
        });
        let (kicked_cell, kicked_bytes) = (cells[0].clone(), bytes.clone());
        let kicked = std::thread::spawn(move || {
            let guard = kicked_cell.enter(&kicked_bytes[0]);
            inside.send(()).unwrap();
            wait_for_signal(&kicked_bytes[0]);
            assert!(kicked_cell.take());
            drop(guard);
            assert_eq!(
                kicked_bytes[0].load(Ordering::Relaxed),
                0,
                "the guard clears immediate_exit"
            );
        });
        entered.recv().unwrap();
        entered.recv().unwrap();
        cells[0].kick();
        kicked.join().unwrap();
        release.send(()).unwrap();
        bystander.join().unwrap();
        cells[0].kick();
        assert!(
            cells[0].take(),
            "a kick to a vCPU whose thread has ended waits for the next run"
        );
    }

    /// No kick may fall into the gap between the check and KVM_RUN, however the two threads interleave.
    #[test]
    fn no_kick_is_lost_in_a_storm() {
        const KICKS: u32 = 20_000;
        let cell = Arc::new(KickCell::default());
        let (answer, answered) = mpsc::sync_channel(0);
        let vcpu_cell = cell.clone();
        let vcpu = std::thread::spawn(move || {
            let byte = AtomicU8::new(0);
            for _ in 0..KICKS {
                let guard = vcpu_cell.enter(&byte);
                if !vcpu_cell.take() {
                    wait_for_signal(&byte);
                    assert!(vcpu_cell.take());
                }
                drop(guard);
                answer.send(()).unwrap();
            }
        });
        for _ in 0..KICKS {
            cell.kick();
            answered
                .recv_timeout(std::time::Duration::from_secs(30))
                .expect("a kick was lost");
        }
        vcpu.join().unwrap();
    }
}
