//! TAP interfaces of the host that a test runs on.

use std::process::Command;

/// A TAP interface that is up; it goes when this is dropped. Needs root.
#[derive(Debug)]
pub struct Tap(&'static str);

impl Tap {
    /// # Panics
    /// If this host gives none.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        ip(&["tuntap", "add", name, "mode", "tap"]);
        let tap = Tap(name);
        tap.set("up");
        tap
    }

    /// As `ip` calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0
    }

    /// `up` or `down`.
    ///
    /// # Panics
    /// If `ip` refuses.
    pub fn set(&self, state: &str) {
        ip(&["link", "set", self.0, state]);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip");
    assert!(status.success(), "ip {arguments:?}");
}
