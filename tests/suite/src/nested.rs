//! The nested host itself: that KVM works in it, that what happens in it is reported truly, and that a test which fails
//! or hangs in it fails here.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ftvm_lab::kvm::{self, Failure, Needs};
use ftvm_lab::kvm_test;
use ftvm_lab::nested::{self, Capture, Error, Host, Outcome, Run, Running, Streams, Turn};
use kvm_ioctls::Kvm;

kvm_test! {
    turn = Turn::Shared;
    /// Where this runs, KVM works, and the program beside the test does too.
    fn kvm_opens() {
        let kvm = Kvm::new().expect("/dev/kvm opens");
        assert_eq!(kvm.get_api_version(), 12);
        let vm = kvm.create_vm().expect("a virtual machine");
        vm.create_vcpu(0).expect("a virtual processor");
    }
}

kvm_test! {
    turn = Turn::Shared, programs = ["redis-cli", "bash"], memory = 1024, files = ["/etc/debian_version"];
    fn kvm_tests_get_what_they_need() {
        let redis = Command::new("redis-cli").arg("--version").output().expect("redis-cli");
        assert!(String::from_utf8_lossy(&redis.stdout).starts_with("redis-cli"), "{redis:?}");
        assert!(Path::new("/etc/debian_version").exists());
    }
}

/// Runs `script` in a nested host, however well KVM works here; gives back stdout and stderr too.
fn shell(script: &str, change: impl FnOnce(&mut Run)) -> (Result<Outcome, Error>, String, String) {
    let (stdout, stderr) = (Capture::new(1 << 24), Capture::new(1 << 16));
    let streams = Streams {
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
    };
    let mut run = Run::new(["sh", "-c", script]);
    change(&mut run);
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    (start(&run, streams).wait(), stdout.text(), stderr.text())
}

fn start(run: &Run, streams: Streams) -> Running {
    Host::locate()
        .and_then(|host| host.start(run, streams))
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn nested_streams_and_exit_code_come_through() {
    let script = "printf 'a\\r\\n\\000b'; echo \"$WORD\" >/dev/stderr; sleep 600 & exit 3";
    let (result, stdout, stderr) = shell(script, |run| run.environment.push(("WORD".into(), "it's $HOME".into())));
    assert_eq!(result.unwrap().code, 3);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("a\r\n\0b", "it's $HOME\n"));
}

#[test]
fn nested_files_come_out_also_after_a_timeout() {
    let out = tempfile::tempdir().unwrap();
    let script = "mkdir /out/logs; seq 2000 | tee /out/logs/lines; mkfifo /out/pipe; sleep 600";
    let began = Instant::now();
    let (result, stdout, _) = shell(script, |run| {
        run.timeout = Duration::from_secs(15);
        run.out = Some(out.path().to_owned());
    });
    assert!(
        matches!(result, Err(Error::Timeout { after, .. }) if after.as_secs() == 15),
        "{result:?}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(500),
        "the command would have run for 600 s"
    );
    let expected: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    let lines = fs::read_to_string(out.path().join("logs/lines")).unwrap();
    assert!(
        lines == expected,
        "{} bytes came out, not {}",
        lines.len(),
        expected.len()
    );
    assert!(
        stdout == expected,
        "{} bytes came from stdout, not {}",
        stdout.len(),
        expected.len()
    );
}

#[test]
fn nested_kernel_panic_is_told_from_a_failure() {
    let (result, _, _) = shell("echo c >/proc/sysrq-trigger; sleep 600", |_| ());
    let Err(Error::Panic { console }) = result else {
        panic!("{result:?}")
    };
    assert!(console.contains("sysrq triggered crash"), "{console}");
}

#[test]
fn nested_hosts_have_folders_disks_and_cards_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, disk) = (dir.path().join("folder"), dir.path().join("disk"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("from-here"), "hello\n").unwrap();
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let script =
        "mkdir /s && mount -t virtiofs tag /s && cat /s/from-here && echo back > /s/one && sync && ln /s/one /s/two
                  ! ln /s/one /s/two 2>/dev/null || exit 9
                  printf block | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null && cat /sys/class/net/eth0/address";
    let mut run = Run::new(["sh", "-c", script]);
    run.shares = vec![nested::Share {
        here: folder.clone(),
        tag: "tag".to_owned(),
    }];
    run.disks = vec![disk.clone()];
    run.nics = vec![nested::Nic {
        mac: [0x52, 0x54, 0, 1, 2, 3],
        local: dir.path().join("local"),
        remote: dir.path().join("remote"),
    }];
    let stdout = Capture::new(1 << 16);
    let streams = Streams {
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(io::stderr()),
    };
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    assert_eq!(start(&run, streams).wait().unwrap().code, 0);
    assert_eq!(stdout.text(), "hello\n52:54:00:01:02:03\n");
    assert_eq!(fs::read_to_string(folder.join("two")).unwrap(), "back\n");
    assert_eq!(&fs::read(&disk).unwrap()[..6], b"block\0");
}

#[test]
fn nested_shutdown_is_told_from_success() {
    let (result, stdout, _) = shell("echo last; sleep 1; poweroff -f", |_| ());
    assert!(
        matches!(result, Err(Error::Qemu { status, .. }) if status.success()),
        "{result:?}"
    );
    assert_eq!(stdout, "last\n");
}

#[test]
fn nested_output_waits_for_a_slow_reader() {
    /// Takes about 1 MB/s, so that megabytes still wait in QEMU when the command has ended.
    struct Slow(Capture);
    impl Write for Slow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(50));
            self.0.write(data)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let stdout = Capture::new(1 << 24);
    let streams = Streams {
        stdout: Box::new(Slow(stdout.clone())),
        stderr: Box::new(io::sink()),
    };
    let run = Run::new(["sh", "-c", "head -c 8000000 /dev/zero"]);
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    assert_eq!(start(&run, streams).wait().unwrap().code, 0);
    assert_eq!(stdout.text().len(), 8_000_000);
}

/// Passes here and fails in a nested host: the fault of the next test.
#[test]
fn panics_inside() {
    assert!(!kvm::inside_nested_host(), "planted fault");
}

#[test]
fn nested_test_that_fails_inside_fails_outside() {
    let failure = kvm::run_nested("nested::panics_inside", &Needs::default(), "a test says so").unwrap_err();
    let Failure::Failed { code: 101, output, .. } = &failure else {
        panic!("{failure}")
    };
    assert!(output.contains("planted fault"), "{output}");
}

#[test]
fn nested_test_that_does_not_run_inside_fails_outside() {
    let failure = kvm::run_nested("no_such_test", &Needs::default(), "a test says so").unwrap_err();
    let Failure::NotRun { output, .. } = &failure else {
        panic!("{failure}")
    };
    assert!(output.contains("0 passed"), "{output}");
}

#[test]
fn nested_host_refuses_settings_out_of_range() {
    let refused = |change: fn(&mut Run)| {
        let mut run = Run::new(["true"]);
        change(&mut run);
        Host::locate()
            .and_then(|host| host.start(&run, Streams::inherit()))
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(|run| run.memory_mib = 511).contains("not 511"));
    assert!(refused(|run| run.processors = 0).contains("not 0"));
    assert!(refused(|run| run.command.clear()).contains("found none"));
    assert!(refused(|run| run.environment.push(("A B".into(), "".into()))).contains("\"A B\""));
    assert!(refused(|run| run.command = vec!["no-such-program".into()]).contains("no-such-program"));
    assert!(refused(|run| run.modules.push("no_such_module".into())).contains("no_such_module"));
    assert!(refused(|run| run.programs.push("no-such-tool".into())).contains("tests/install-deps"));
}

fn nested_host(arguments: &[&str]) -> Command {
    let mut command = Command::new(ftvm_lab::program("nested-host", "ftvm-lab").unwrap());
    command.arg("run").args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn nested_host_program_tells_how_it_ended() {
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    let script = "echo spoken; sleep 600";
    let timed_out = nested_host(&["--json", "--timeout", "10", "--", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(timed_out.status.code(), Some(124));
    let summary: serde_json::Value = serde_json::from_slice(&timed_out.stdout).expect("stdout is JSON alone");
    assert_eq!(summary["ended"], "timeout");
    assert!(String::from_utf8_lossy(&timed_out.stderr).starts_with("spoken\n"));
    let broken = nested_host(&["--", "no-such-program"]).output().unwrap();
    assert_eq!((broken.status.code(), broken.stdout.len()), (Some(125), 0));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("no-such-program is not on this machine"));
}

#[test]
fn nested_emulator_ends_with_its_parent() {
    let _turn = nested::take_turn(Turn::Shared).unwrap();
    let mut host = nested_host(&["--", "sh", "-c", "echo up; sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    host.stdout
        .take()
        .unwrap()
        .read_exact(&mut up)
        .expect("the command starts");
    let emulator = child_of(host.id()).expect("QEMU is its child");
    host.kill().unwrap();
    host.wait().unwrap();
    let began = Instant::now();
    let status = Path::new("/proc").join(&emulator).join("status");
    // A zombie has ended too; whether it is reaped is up to the machine's first process.
    while fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ")) {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "QEMU, process {emulator}, outlived its parent"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process whose parent is `parent`.
fn child_of(parent: u32) -> Option<String> {
    let parent_line = format!("PPid:\t{parent}");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|process| {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            process.bytes().all(|b| b.is_ascii_digit()) && status.lines().any(|line| line == parent_line)
        })
}
