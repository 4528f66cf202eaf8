use super::*;

fn words(text: &[&str]) -> Vec<OsString> {
    text.iter().map(OsString::from).collect()
}

#[test]
fn a_shell_reads_words_as_they_are() {
    let awkward = ["printf", "<%s>", "it's", "", "$HOME `x` \"y\"", "a\nb", "\\", "-n"];
    let text = script(&[("V".to_owned(), "'v' $V".into())], &words(&awkward));
    let text = text.to_str().unwrap().replace("cd /run", "cd /") + "";
    let ran = std::process::Command::new("sh").arg("-c").arg(&text).output().unwrap();
    assert_eq!(
        String::from_utf8(ran.stdout).unwrap(),
        "<it's><><$HOME `x` \"y\"><a\nb><\\><-n>"
    );
    let shown = script(&[("V".to_owned(), "'v' $V".into())], &words(&["printenv", "V"]));
    let ran = std::process::Command::new("sh").arg("-c").arg(shown).output().unwrap();
    assert_eq!(ran.stdout, b"'v' $V\n");
}

#[test]
fn the_report_is_read_strictly() {
    let sent = Sent {
        stdout: 1,
        stderr: 22,
        out: 0,
    };
    let line = "ended 3 1 22 0";
    assert_eq!(
        Report::parse(line),
        Some(Report {
            line: line.to_owned(),
            end: End::Code(3),
            sent
        })
    );
    assert_eq!(Report::parse("ended timeout 0 0 0").unwrap().end, End::Timeout);
    assert_eq!(Report::parse("ended 255 0 0 0").unwrap().end, End::Code(255));
    let wrong = [
        "ended 256 0 0 0",
        "ended -1 0 0 0",
        "ended 3 1 2",
        "ended 3 1 2 3 4",
        "ended 3  1 2",
        "ready",
        "",
    ];
    for line in wrong {
        assert_eq!(Report::parse(line), None, "{line:?}");
    }
}

#[test]
fn all_three_channels_must_be_complete() {
    let sent = Sent {
        stdout: 2,
        stderr: 1,
        out: 3,
    };
    let received = Counts::default();
    for (channel, count, complete) in [
        (Channel::Stdout, 2, false),
        (Channel::Console, 9, false),
        (Channel::Stderr, 1, false),
        (Channel::Out, 2, false),
        (Channel::Out, 1, true),
    ] {
        received.add(channel, count);
        assert_eq!(sent.are_in(&received), complete, "{channel:?}");
    }
}

#[test]
fn names_of_variables_are_checked() {
    for (name, good) in [
        ("A", true),
        ("_a1", true),
        ("1a", false),
        ("", false),
        ("a-b", false),
        ("a;b", false),
    ] {
        assert_eq!(is_variable(name), good, "{name:?}");
    }
}

#[test]
fn limits_hold_on_both_sides() {
    let check = |processors, memory_mib| {
        let run = Run {
            processors,
            memory_mib,
            ..Run::new(["true"])
        };
        run.check().is_ok()
    };
    assert!(check(1, 512) && check(255, 65_536));
    assert!(!check(0, 512) && !check(256, 512) && !check(1, 511) && !check(1, 65_537));
}
