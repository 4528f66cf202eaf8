//! Tests that need KVM, on machines with and without it.
//!
//! [`kvm_test!`](crate::kvm_test) turns a function into a test that runs its body where KVM works: in this process, or
//! in a nested host, by starting this very test program there with the test's name. `FTVM_KVM=local` or `nested`
//! decides; without it, a KVM of this machine that passes a quick check is used.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ftvm_kvm::selftest::Capabilities;
use kvm_ioctls::Kvm;

use crate::nested::{self, Capture, Host, Run, Streams, Turn};

/// Names the program under test; set in the nested host. See [`ftvm`](crate::ftvm).
pub(crate) const FTVM_BIN: &str = "FTVM_BIN";
/// Where it is in a nested host.
const FTVM_INSIDE: &str = "/run/bin/ftvm";
/// Chooses where tests run: `local` or `nested`.
const FTVM_KVM: &str = "FTVM_KVM";
/// Set in the nested host.
const INSIDE: &str = "FTVM_IN_NESTED_HOST";
/// Beside these, variables that start with `FTVM_` reach a test in the nested host.
const PASSED_ON: [&str; 3] = ["RUST_BACKTRACE", "RUST_LOG", "CI"];
/// Kept of a test's output, in bytes of each stream.
const OUTPUT: usize = 1 << 20;
/// The only API version there is: Linux, `Documentation/virt/kvm/api.rst`, KVM_GET_API_VERSION.
const KVM_API_VERSION: i32 = 12;
/// By this prefix `.config/nextest.toml` lets only one test at a time have the machine's processors.
const PREFIX: &str = "kvm_";

/// Declares a test that needs KVM. Its name must start with `kvm_`. What it needs may come first:
///
/// ```text
/// kvm_test! {
///     fn kvm_opens() { … }
/// }
/// kvm_test! {
///     programs = ["redis-cli"], timeout = 300;
///     /// What is proved.
///     fn kvm_redis_survives() { … }
/// }
/// ```
///
/// Each word before an `=` is a method of [`Needs`](crate::kvm::Needs).
#[macro_export]
macro_rules! kvm_test {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        $crate::kvm_test! { @test [$crate::kvm::Needs::default()] $(#[$meta])* fn $name() $body }
    };
    (@test [$needs:expr] $(#[$meta:meta])* fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            fn body() $body
            $crate::kvm::run(concat!(module_path!(), "::", stringify!($name)), &$needs, body);
        }
    };
    ($($need:ident = $value:expr),+; $(#[$meta:meta])* fn $name:ident() $body:block) => {
        $crate::kvm_test! { @test [$crate::kvm::Needs::default()$(.$need($value))+] $(#[$meta])* fn $name() $body }
    };
}

/// What a test needs in a nested host, beside the test program and `ftvm`.
#[derive(Debug, Clone)]
pub struct Needs {
    programs: Vec<String>,
    files: Vec<(PathBuf, PathBuf)>,
    modules: Vec<String>,
    native: bool,
    timeout: Duration,
    memory_mib: u32,
    turn: Turn,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            programs: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            native: false,
            timeout: Duration::from_secs(600),
            memory_mib: 2048,
            turn: Turn::Alone,
        }
    }
}

impl Needs {
    /// Programs of this machine that the test calls by name. Those of busybox are always there.
    #[must_use]
    pub fn programs<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.programs.extend(names.into_iter().map(str::to_owned));
        self
    }

    /// Files of this machine that the test reads. They keep their path.
    #[must_use]
    pub fn files<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.files.extend(
            paths
                .into_iter()
                .map(|path| (path.as_ref().to_owned(), path.as_ref().to_owned())),
        );
        self
    }

    /// Kernel modules that the test needs beside those that every nested host has. Such a test always runs in a nested host: the
    /// kernel of this machine is left as it is.
    #[must_use]
    pub fn modules<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.modules.extend(names.into_iter().map(str::to_owned));
        self
    }

    /// The test needs a KVM that runs kernel code natively, as every VMX or SVM host's does. One that emulates it has no exact
    /// interrupt windows and boots no Linux: there, the test runs in a nested host.
    #[must_use]
    pub fn native(mut self, native: bool) -> Self {
        self.native = native;
        self
    }

    /// Seconds that the test may take in the nested host, if not 600. The bound is there for a hang: no test takes half of it on a slow
    /// machine.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Whether it can run beside other tests. `.config/nextest.toml` names those that do.
    #[must_use]
    pub fn turn(mut self, turn: Turn) -> Self {
        self.turn = turn;
        self
    }

    /// Memory of the nested host in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }
}

/// Why a test that needs KVM did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Tests that need KVM have names by which nextest knows them.
    #[error("{0:?} needs KVM: its name must start with {PREFIX:?}, so that nextest runs such tests one at a time")]
    Name(String),
    /// KVM was required here and does not work.
    #[error("this test needs KVM, {0}")]
    NoKvm(String),
    /// The nested host cannot be used, or the test took too long.
    #[error("this test needs KVM, and {why}; in a nested host: {error}\n{output}")]
    Nested {
        /// Why it does not run on this machine's KVM.
        why: String,
        /// What failed.
        error: Box<nested::Error>,
        /// What the test wrote.
        output: String,
    },
    /// The test ran and failed.
    #[error("failed in the nested host with exit code {code}; its console ends with:\n{console}\n{output}")]
    Failed {
        /// The test program's exit code.
        code: u8,
        /// Last lines of the kernel's console.
        console: String,
        /// What the test wrote.
        output: String,
    },
    /// The test program ended well, but the test was not run to its end.
    #[error("the test program ran in the nested host, but not {test:?} to its end; it wrote:\n{output}")]
    NotRun {
        /// The test's name.
        test: String,
        /// What the test program wrote.
        output: String,
    },
    /// This process cannot find its own program.
    #[error("cannot run this test in a nested host: its program is unknown: {0}")]
    Program(#[from] std::io::Error),
}

/// Whether this process runs in a nested host.
pub fn inside_nested_host() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs the body of the test `path` (`crate::module::test`) where KVM works. For [`kvm_test!`](crate::kvm_test).
///
/// # Panics
/// Panics if the test fails, or can be run neither here nor in a nested host.
#[track_caller]
pub fn run(path: &str, needs: &Needs, body: fn()) {
    if let Err(failure) = try_run(path, needs, body) {
        panic!("{failure}");
    }
}

fn try_run(path: &str, needs: &Needs, body: fn()) -> Result<(), Failure> {
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    if !test.rsplit("::").next().is_some_and(|name| name.starts_with(PREFIX)) {
        return Err(Failure::Name(test.to_owned()));
    }
    if inside_nested_host() {
        check_kvm().map_err(|reason| Failure::NoKvm(format!("but {reason}")))?;
        body();
        // libtest has left its line unfinished.
        println!("\n{}", completed(test));
        return Ok(());
    }
    if !needs.modules.is_empty() {
        return run_nested(test, needs, "kernel modules, which are loaded nowhere else");
    }
    let check = if needs.native { check_linux } else { check_kvm };
    match place(env::var(FTVM_KVM).ok().as_deref(), check).map_err(Failure::NoKvm)? {
        Place::Here => body(),
        Place::Nested(why) => run_nested(test, needs, &why)?,
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here,
    /// In a nested host, for this reason.
    Nested(String),
}

fn place(choice: Option<&str>, check: impl FnOnce() -> Result<(), String>) -> Result<Place, String> {
    match choice {
        Some("local") => check()
            .map(|()| Place::Here)
            .map_err(|reason| format!("which {FTVM_KVM}=local requires here, but {reason}")),
        Some("nested") => Ok(Place::Nested(format!("{FTVM_KVM}=nested"))),
        None | Some("") => Ok(check().map_or_else(Place::Nested, |()| Place::Here)),
        Some(other) => Err(format!("and {FTVM_KVM} must be local, nested or unset, not {other:?}")),
    }
}

/// Checks that KVM can make a virtual machine here.
///
/// # Errors
/// Says why it cannot.
pub fn check_kvm() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm cannot be opened: {e}"))?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(format!("/dev/kvm has API version {version}, not {KVM_API_VERSION}"));
    }
    kvm.create_vm()
        .map(drop)
        .map_err(|e| format!("/dev/kvm cannot make a virtual machine: {e}"))
}

/// Checks that Linux guests can run on this machine's KVM.
///
/// # Errors
/// Says why they cannot.
pub fn check_linux() -> Result<(), String> {
    check_kvm()?;
    Capabilities::at_startup()
        .check_linux()
        .map_err(|error| error.to_string())
}

/// How this program is to run again in a nested host.
#[derive(Debug, Clone, Default)]
pub struct Again {
    /// For everything.
    pub seconds: u64,
    /// Of the nested host.
    pub memory_mib: u32,
    /// Where what it leaves in `/out` goes.
    pub out: Option<PathBuf>,
    /// Files of this machine, each with its path there, and programs that it calls by name.
    pub files: Vec<(PathBuf, PathBuf)>,
    pub programs: Vec<&'static str>,
    /// Arguments that it gets beside its own.
    pub more: Vec<OsString>,
    /// Of its own arguments, options with a value that it does not get again.
    pub without: Vec<&'static str>,
}

/// This process becomes a nested host that runs its program again; returns only if that fails, with the reason. `why` says
/// why not here.
#[must_use]
pub fn become_nested(why: &str, again: &Again) -> String {
    let start = || -> Result<String, String> {
        let own = env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let host = own.with_file_name("nested-host");
        if !host.is_file() {
            return Err(format!(
                "{why}, and there is no nested host at {}: build it with `cargo build --release -p ftvm-lab`",
                host.display()
            ));
        }
        eprintln!("{why}; running in the nested host {} (slow)", host.display());
        let ftvm = crate::ftvm()?;
        let mut command = Command::new(&host);
        command.args(["run", "--timeout", &again.seconds.to_string()]);
        command.args(["--memory", &again.memory_mib.to_string()]);
        command.args([
            "--env",
            &format!("{INSIDE}=1"),
            "--env",
            &format!("{FTVM_BIN}={FTVM_INSIDE}"),
            "--file",
        ]);
        command.arg(format!("{}:{FTVM_INSIDE}", ftvm.display()));
        if let Some(out) = &again.out {
            command.arg("--out").arg(out);
        }
        for (here, there) in &again.files {
            command
                .arg("--file")
                .arg(format!("{}:{}", here.display(), there.display()));
        }
        for program in &again.programs {
            command.args(["--program", program]);
        }
        command.arg("--").arg(&own);
        command
            .args(kept_arguments(env::args_os().skip(1), &again.without))
            .args(&again.more);
        let failed = command.exec();
        Err(format!("cannot start {}: {failed}", host.display()))
    };
    start().unwrap_or_else(|why| why)
}

/// Without the options named, and their values.
fn kept_arguments(mut arguments: impl Iterator<Item = OsString>, without: &[&str]) -> Vec<OsString> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if without.contains(&text.as_ref()) {
            arguments.next();
        } else if !without.iter().any(|option| text.starts_with(&format!("{option}="))) {
            kept.push(argument);
        }
    }
    kept
}

/// What a test prints last in a nested host; without it, it did not run.
fn completed(test: &str) -> String {
    format!("kvm_test {test}: completed")
}

/// Runs the test of this program in a nested host, when its turn has come. `why` says why not here.
///
/// # Errors
/// Fails when the test fails, does not run, or the nested host fails.
pub fn run_nested(test: &str, needs: &Needs, why: &str) -> Result<(), Failure> {
    let (stdout, stderr) = (Capture::new(OUTPUT), Capture::new(OUTPUT));
    let output = || {
        format!(
            "--- stdout\n{}\n--- stderr\n{}",
            stdout.text().trim_end(),
            stderr.text().trim_end()
        )
    };
    let streams = Streams {
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
    };
    let failed = |error| Failure::Nested {
        why: why.to_owned(),
        error: Box::new(error),
        output: output(),
    };
    let run = described(test, needs)?;
    let outcome = (|| {
        let _turn = nested::take_turn(needs.turn)?;
        Host::locate()?.start(&run, streams)?.wait()
    })();
    let outcome = outcome.map_err(failed)?;
    if outcome.code != 0 {
        return Err(Failure::Failed {
            code: outcome.code,
            console: outcome.console,
            output: output(),
        });
    }
    if !stdout.text().lines().any(|line| line == completed(test)) {
        return Err(Failure::NotRun {
            test: test.to_owned(),
            output: output(),
        });
    }
    Ok(())
}

fn described(test: &str, needs: &Needs) -> Result<Run, Failure> {
    let program = env::current_exe()?.into_os_string();
    let words = [
        program,
        test.into(),
        "--exact".into(),
        "--nocapture".into(),
        "--test-threads=1".into(),
    ];
    let mut run = Run::new(words);
    run.environment = env::vars_os().filter_map(passed_on).collect();
    run.environment.push((INSIDE.to_owned(), "1".into()));
    // If it is not built, the test that asks for it says so.
    if let Ok(ftvm) = crate::ftvm() {
        run.files.push((ftvm, FTVM_INSIDE.into()));
        run.environment.push((FTVM_BIN.to_owned(), FTVM_INSIDE.into()));
    }
    run.files.extend(needs.files.iter().cloned());
    run.programs.clone_from(&needs.programs);
    run.modules.extend(needs.modules.iter().cloned());
    run.timeout = needs.timeout;
    run.memory_mib = needs.memory_mib;
    Ok(run)
}

fn passed_on((name, value): (OsString, OsString)) -> Option<(String, OsString)> {
    let name = name.into_string().ok()?;
    let here_only = [FTVM_BIN, FTVM_KVM, "FTVM_CACHE"].contains(&name.as_str());
    let passed = PASSED_ON.contains(&name.as_str()) || name.starts_with("FTVM_") && !here_only;
    passed.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Result<(), String> {
        Err("it is broken".to_owned())
    }

    #[test]
    fn a_working_kvm_is_used_and_a_broken_one_is_not() {
        for unset in [None, Some("")] {
            assert_eq!(place(unset, || Ok(())), Ok(Place::Here));
            assert_eq!(place(unset, broken), Ok(Place::Nested("it is broken".to_owned())));
        }
    }

    #[test]
    fn the_choice_is_obeyed_or_refused() {
        assert_eq!(place(Some("local"), || Ok(())), Ok(Place::Here));
        assert!(place(Some("local"), broken).unwrap_err().contains("it is broken"));
        assert!(matches!(place(Some("nested"), || Ok(())), Ok(Place::Nested(_))));
        assert!(place(Some("maybe"), || Ok(())).unwrap_err().contains("\"maybe\""));
    }

    #[test]
    fn a_name_that_nextest_would_not_know_is_refused() {
        let run = |path| try_run(path, &Needs::default(), || ()).unwrap_err();
        for path in ["crate::opens", "crate::kvm_::opens", "opens"] {
            assert!(matches!(run(path), Failure::Name(_)), "{path}");
        }
    }

    #[test]
    fn arguments_are_passed_on_but_for_some() {
        let arguments = ["--seed", "3", "--json", "--keep=/x", "--faults", "6"].map(OsString::from);
        let kept = kept_arguments(arguments.into_iter(), &["--seed", "--keep"]);
        assert_eq!(kept, ["--json", "--faults", "6"]);
    }

    #[test]
    fn only_our_variables_are_passed_on() {
        let passed: Vec<_> = ["FTVM_SEED", "FTVM_BIN", "FTVM_KVM", "FTVM_CACHE", "PATH", "RUST_LOG"]
            .into_iter()
            .filter_map(|name| Some(passed_on((name.into(), "x".into()))?.0))
            .collect();
        assert_eq!(passed, ["FTVM_SEED", "RUST_LOG"]);
    }
}
