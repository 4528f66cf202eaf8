//! What users are told, held word by word: `messages.txt` for command lines that cannot be carried out, and the table of exit
//! codes in `--help` and in the book.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use ftvm_roles::exit_code::ExitCode;

const MESSAGES: &str = include_str!("messages.txt");
const OPERATIONS: &str = include_str!("../../docs/src/operations.md");

/// A command, not yet run, that reads nothing and whose environment says nothing.
fn ftvm(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ftvm"));
    command.args(args.split_whitespace()).stdin(Stdio::null());
    command.env_remove("FTVM_LOG").env_remove("NO_COLOR");
    command
}

/// Exit code, and what it says on both outputs.
fn said(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("ftvm starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    (output.status.code().expect("no signal ended it"), text)
}

#[test]
fn wrong_command_lines_are_answered_as_ever() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let disk = File::create(path("disk.img")).expect("a file");
    disk.set_len(1 << 20).expect("room");
    fs::write(path("text"), "not what was asked for\n").expect("a file");
    fs::write(path("empty"), "").expect("a file");
    fs::create_dir(path("folder")).expect("a folder");
    fs::create_dir(path("shared")).expect("a folder");
    let _living = UnixDatagram::bind(path("living.sock")).expect("a socket");

    let blocks: Vec<&str> = MESSAGES.split("\n\n$ ftvm ").skip(1).collect();
    assert!(blocks.len() > 80, "{} command lines", blocks.len());
    let mut differences = Vec::new();
    for block in blocks {
        let (args, expected) = block.split_once('\n').expect("a command line and what is said");
        let (code, text) = said(ftvm(args).current_dir(folder.path()));
        let found = format!("[code {code}]\n{}", text.trim_end());
        if found != expected.trim_end() {
            differences.push(format!("$ ftvm {args}\n{found}\n\ninstead of\n\n{expected}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn a_level_that_does_not_exist_is_told_with_those_that_do() {
    let (code, text) = said(ftvm("guests").env("FTVM_LOG", "x=loud"));
    assert_eq!(
        (code, text.as_str()),
        (
            2,
            "ftvm: FTVM_LOG=x=loud: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \
             \"debug\", \"trace\", or a number 0-5; expected a level such as info, or TARGET=LEVEL,...\n"
        )
    );
}

#[test]
fn an_answer_that_nobody_can_keep_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = ftvm("guests")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("ftvm starts");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(
        (output.status.code(), text.as_str()),
        (
            Some(1),
            "ftvm: cannot write to standard output: No space left on device (os error 28)\n"
        )
    );
}

#[test]
fn help_begins_with_what_a_user_can_do_and_ends_with_every_exit_code() {
    let (code, text) = said(&mut ftvm("--help"));
    assert_eq!(code, 0);
    assert!(
        text.starts_with("Keep a virtual machine running when its host dies"),
        "{text}"
    );
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let table = ExitCode::ALL.map(|code| format!("{code} {}", code.meaning())).join(" ");
    assert!(words(&text).contains(&words(&table)), "{text}");
}

#[test]
fn the_book_names_every_exit_code_and_no_other() {
    let rows = OPERATIONS.lines().filter_map(|line| line.strip_prefix("| "));
    let numbers: Vec<u8> = rows.filter_map(|row| row.split(' ').next()?.parse().ok()).collect();
    assert_eq!(numbers, ExitCode::ALL.map(ExitCode::number));
}
