//! Hostile input with real processes: strangers at the port, forged and repeated heartbeats, kernels that are none, and a
//! guest that breaks its own rings. Nobody panics, everybody says what is wrong, and the pair goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use ftvm_hypervisor::DeliveryMode;
use ftvm_lab::kv::{Network, blank_disk};
use ftvm_lab::kvm_test;
use ftvm_lab::nested::Turn;
use ftvm_lab::pair::{Side, Site, free_address, ftvm, is_live, limit, wait};
use ftvm_lab::tap::WireTap;
use ftvm_roles::event::Event;
use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::codec::{FrameDecoder, FrameEncoder, HEADER_BYTES, READ_CHUNK, decode_heartbeat};
use logging_channel::message::{Ack, Heartbeat, Join, Message, PROTOCOL_VERSION};
use serde_json::Value;

const PULSE: [&str; 4] = ["--kernel", "builtin:pulse", "--cmdline", "ticks=0"];

fn frame(message: &Message) -> Vec<u8> {
    FrameEncoder::new()
        .message(Generation(1), message)
        .expect("a frame")
        .to_vec()
}

fn join() -> Message {
    Message::Join(Join {
        standby: None,
        version: PROTOCOL_VERSION,
        incarnation: Incarnation(77),
        delivery_modes: [DeliveryMode::None, DeliveryMode::Window, DeliveryMode::WindowStiStep]
            .map(|mode| mode.name().to_owned())
            .to_vec(),
        host: "a stranger".to_owned(),
    })
}

/// What a stranger says, and what the primary says of it (nothing, if it only hears of a closed connection).
fn nonsense() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let noise: Vec<u8> = (0..65_536_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let whole = frame(&join());
    let mut flipped = whole.clone();
    flipped[HEADER_BYTES + 3] ^= 1;
    let mut version = join();
    if let Message::Join(join) = &mut version {
        join.version += 1;
    }
    let twice = [whole.clone(), whole.clone()].concat();
    vec![
        ("noise", noise, "FT"),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "FT"),
        ("a cut header", whole[..HEADER_BYTES / 2].to_vec(), "cut off"),
        ("a cut frame", whole[..whole.len() - 1].to_vec(), "cut off"),
        ("a flipped bit", flipped, "damaged"),
        (
            "an oversized frame",
            frame(&Message::Proof {
                nonce: vec![0; 2 << 20],
            }),
            "at most",
        ),
        ("an ack first", frame(&Message::Ack(Ack::default())), "expected a Join"),
        ("an end first", frame(&Message::Bye), "expected a Join"),
        ("another version", frame(&version), "protocol version"),
        ("a second Join for a Proof", twice, "expected a Proof"),
    ]
}

/// The frame with the Proof of a recorded conversation.
fn proof_of(recorded: &[u8]) -> Vec<u8> {
    let mut decoder = FrameDecoder::new();
    for piece in recorded.chunks(READ_CHUNK) {
        decoder.push(piece).expect("frames");
        while let Some(found) = decoder.next_frame().expect("frames") {
            if matches!(found.message, Message::Proof { .. }) {
                return frame(&found.message);
            }
        }
    }
    panic!("no Proof in what was recorded");
}

/// Says something at the primary's port and waits until it is closed there; what was answered.
fn say(listening: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(listening).expect("the port is open");
    stream
        .set_read_timeout(Some(Duration::from_secs(8)))
        .expect("a timeout");
    // The other side may have had enough before everything is said.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // An error (a reset) ends it too.
    let _ = stream.take(READ_CHUNK as u64).read_to_end(&mut answer);
    answer
}

/// A further backup is refused while there is one: at once, whoever it is.
fn assert_taken(listening: SocketAddr) {
    let mut decoder = FrameDecoder::new();
    decoder.push(&say(listening, b"")).expect("frames");
    let answer = decoder.next_frame().expect("frames").map(|found| found.message);
    assert!(
        matches!(&answer, Some(Message::Refuse { reason }) if reason.contains("one at a time")),
        "{answer:?}"
    );
}

/// Waits until the primary has said, behind the first `before` bytes of its log, why it does not take a stranger.
fn complains(primary: &Side, before: usize, what: &str, word: &str) {
    let begun = Instant::now();
    loop {
        let log = primary.stderr();
        let mut lines = log[before..].lines();
        if lines.any(|line| line.contains("was not taken as backup") && line.contains(word)) {
            return;
        }
        assert!(begun.elapsed() < limit(1), "{what}: no {word:?} in {}", &log[before..]);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn assert_calm(sides: &[&Side]) {
    for side in sides {
        let said = side.stderr();
        assert!(!said.contains("panicked"), "{said}");
    }
}

fn assert_console_counts(site: &Site) {
    let console = site.console();
    let lines = console.lines().count();
    let expected: String = (1..=lines + 1).map(|n| format!("pulse {n}\n")).collect();
    assert!(expected.starts_with(&console), "{console}");
}

/// Waits for `more` further lines of `pulse`.
fn goes_on(site: &Site, more: usize) {
    let lines = site.console().lines().count() + more;
    site.wait_console(&format!("pulse {lines}\n"), limit(20));
}

/// Heartbeats that nobody should act on: noise, cut ones, repeated ones, and another guest's with a higher generation.
fn shower(genuine: &[Vec<u8>], target: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut datagrams = vec![
        vec![],
        vec![0; 1],
        vec![b'F'; 512],
        vec![b'F'; 9000],
        b"FT\x01\x31".to_vec(),
    ];
    for datagram in genuine {
        let heartbeat = decode_heartbeat(datagram).expect("a heartbeat");
        let of_another = Heartbeat {
            guest: heartbeat.guest ^ 1,
            generation: Generation(heartbeat.generation.0 + 5),
            sent_ns: u64::MAX,
            ..heartbeat
        };
        let of_the_past = Heartbeat {
            generation: Generation(heartbeat.generation.0 - 1),
            ..heartbeat
        };
        datagrams.push(datagram.clone());
        datagrams.push(datagram[..datagram.len() - 1].to_vec());
        datagrams.push([&datagram[..], b"x"].concat());
        for forged in [of_another, of_the_past] {
            datagrams.push(FrameEncoder::new().heartbeat(&forged).expect("a heartbeat").to_vec());
        }
    }
    for _ in 0..20 {
        for datagram in &datagrams {
            // Lost like any datagram.
            let _ = socket.send_to(datagram, target);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

kvm_test! {
    /// Strangers before the join, and beside the pair, which then fails over as if nobody had been there. At last, a
    /// heartbeat of the guest itself with a higher generation is believed (PROTOCOL 11).
    fn kvm_strangers_change_nothing() {
        let site = Site::new();
        let mut primary = site.primary("primary", &PULSE, &[]);
        primary.wait_event("life", 1, limit(10), |event| matches!(event, Event::Leading { .. }));
        let silent: Vec<TcpStream> = (0..12).map(|_| TcpStream::connect(site.address).expect("the port is open")).collect();
        for (what, bytes, said) in nonsense() {
            let before = primary.stderr().len();
            let _ = say(site.address, &bytes);
            complains(&primary, before, what, said);
        }
        shower(&[], site.address);
        goes_on(&site, 5);

        let wiretap = WireTap::new(site.address);
        let second = free_address();
        let mut backup = site.backup("backup", wiretap.address(), &["--listen", &second.to_string()]);
        primary.wait_protected();
        drop(silent);
        let recorded = wiretap.stream();
        assert!(recorded.len() > 2 * HEADER_BYTES, "Join and Proof");
        for bytes in nonsense().into_iter().map(|(_, bytes, _)| bytes).chain([recorded.clone()]) {
            let _ = say(site.address, &bytes);
        }
        assert_taken(site.address);
        let [of_backup, of_primary] = wait("heartbeats", limit(10), || wiretap.heartbeats());
        shower(&[of_backup.clone(), of_primary.clone()], site.address);
        shower(&[of_primary.clone(), of_backup], wiretap.backup());
        goes_on(&site, 20);
        let suspected = primary.events().into_iter().find(|event| matches!(event.event, Event::Suspected { .. }));
        assert_eq!(suspected, None, "{}{}", primary.stderr(), backup.stderr());

        primary.signal("KILL");
        primary.wait(limit(5));
        backup.wait_event("go-live", 1, limit(10), is_live);
        goes_on(&site, 20);
        // The old life's words, at the port of the new one.
        for (what, bytes, word) in [
            ("its own Join", recorded.clone(), "same incarnation"),
            ("an old Proof", [frame(&join()), proof_of(&recorded)].concat(), "does not hold what the primary wrote"),
        ] {
            let before = backup.stderr().len();
            let _ = say(second, &bytes);
            complains(&backup, before, what, word);
        }
        shower(std::slice::from_ref(&of_primary), second);
        goes_on(&site, 5);
        assert_console_counts(&site);
        assert_calm(&[&primary, &backup]);

        let mut revenant = decode_heartbeat(&of_primary).unwrap();
        revenant.generation = Generation(1000);
        let datagram = FrameEncoder::new().heartbeat(&revenant).unwrap().to_vec();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&datagram, second).unwrap();
        assert_eq!(backup.code(limit(10)), 10, "{}", backup.stderr());
    }
}

/// Files that are no kernel, and a word that the complaint has.
fn not_kernels(dir: &Path) -> Vec<(String, &'static str)> {
    let pulse = guest_images::find("pulse").expect("pulse").image;
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = pulse.to_vec();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let table = usize::from(u16::from_le_bytes([pulse[32], pulse[33]]));
    let files: [(&str, Vec<u8>, &str); 8] = [
        ("empty", Vec::new(), "the file is empty"),
        ("text", b"#!/bin/sh\necho hello\n".repeat(500), "ELF"),
        ("zeros", vec![0; 1 << 20], "ELF"),
        ("cut-header", pulse[..40].to_vec(), "ELF"),
        ("cut-body", pulse[..pulse.len() / 2].to_vec(), "cut-body"),
        ("32-bit", patched(4, &[1]), "ELF"),
        ("table-elsewhere", patched(32, &[0xff; 8]), "ELF"),
        (
            "huge-segment",
            patched(table + 24, &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            "huge-segment",
        ),
    ];
    let written = files.into_iter().map(|(name, bytes, word)| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).expect("a file");
        (path.display().to_string(), word)
    });
    let others = [
        ("/dev/zero", "regular file"),
        ("/dev", "regular file"),
        ("absent", "absent"),
    ];
    written
        .chain(others.map(|(path, word)| (path.to_owned(), word)))
        .collect()
}

kvm_test! {
    turn = Turn::Shared;
    /// A kernel that is none is refused with a sentence, and the guest's name is still free afterwards.
    fn kvm_no_kernel_is_said() {
        let site = Site::new();
        for (kernel, word) in not_kernels(&site.path("")) {
            let (code, _, err) = ftvm(&site.path(""), &["record", "--log", "x", "--overwrite", "--kernel", &kernel]);
            assert!(code == 1 && err.contains(word) && !err.contains("panicked"), "record {kernel}: {code}: {err}");
            assert!(!site.path("x").exists(), "{kernel}: a log of nothing");
            let mut side = site.primary("primary", &["--kernel", &kernel], &[]);
            let (code, err) = (side.code(limit(20)), side.stderr());
            assert!(code == 1 && err.contains(word) && !err.contains("panicked"), "run {kernel}: {code}: {err}");
        }
        let mut primary = site.primary("primary", &["--kernel", "builtin:pulse", "--cmdline", "ticks=5"], &[]);
        assert_eq!(primary.code(limit(20)), 0, "{}", primary.stderr());
    }
}

/// The scribbler's disk and network card; frames arrive there while the test has the sender.
fn scribbler(site: &Site, network: &Network, disk: &str, card: &str) -> Vec<String> {
    let disk = blank_disk(&site.path(disk), 1);
    ["--disk", &disk, "--net", &network.plug(card)]
        .map(str::to_owned)
        .to_vec()
}

/// Sends frames to everybody at the switch until dropped.
fn flood(network: &Network, site: &Site, ending: &std::sync::atomic::AtomicBool) {
    let _ = network.plug("sender");
    let socket = UnixDatagram::bind(site.path("sender.sock")).expect("a socket");
    let mut frame = [0x5a; 60];
    frame[..6].fill(0xff);
    while !ending.load(std::sync::atomic::Ordering::Relaxed) {
        // A full queue, or nobody there yet.
        let _ = socket.send_to(&frame, site.path("hub-sender.sock"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

kvm_test! {
    turn = Turn::Shared, timeout = 900;
    /// A guest that scribbles over its rings, recorded and replayed exactly, and in a pair that fails over.
    fn kvm_scribbling_stops_the_device_only() {
        let site = Site::new();
        let network = Network::new(&site.path(""));
        let ending = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| flood(&network, &site, &ending));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                scribbling_is_recorded(&site, &network);
                scribbling_fails_over(&site, &network);
            }));
            ending.store(true, std::sync::atomic::Ordering::Relaxed);
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

fn scribbling_is_recorded(site: &Site, network: &Network) {
    for verify in ["marks", "exit"] {
        let devices = scribbler(site, network, &format!("disk-{verify}"), &format!("record-{verify}"));
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        let line = [
            "record",
            "--log",
            verify,
            "--kernel",
            "builtin:scribble",
            "--cmdline",
            "rounds=14",
        ];
        let more = ["--verify", verify, "--json", "--console", "file=said"];
        let (code, out, err) = ftvm(&site.path(""), &[&line[..], &more[..], &devices[..]].concat());
        let said = std::fs::read_to_string(site.path("said")).unwrap_or_default();
        assert_eq!(code, 0, "{err}{said}");
        assert!(said.contains("scribble ok") && !err.contains("panicked"), "{err}{said}");
        assert!(
            err.contains("broke the rings of the virtio device at PCI slot"),
            "{err}"
        );
        assert!(err.contains("further stops are not told"), "{err}");
        let recorded: Value = serde_json::from_str(out.trim()).unwrap();
        // Each round, ten offences that must stop a device, at two devices.
        assert!(recorded["device_faults"].as_u64().unwrap() >= 14 * 20, "{recorded}");
        let (code, out, err) = ftvm(&site.path(""), &["replay", verify, "--json"]);
        let replayed: Value = serde_json::from_str(out.trim()).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        assert_eq!((code, &replayed["diverged"]), (0, &Value::Bool(false)), "{replayed}");
        for field in ["exits", "inputs", "memory_hash", "outcome"] {
            assert_eq!(recorded[field], replayed[field], "{field}");
        }
        println!("recorded {recorded}");
        std::fs::remove_file(site.path("said")).unwrap();
    }
}

fn scribbling_fails_over(site: &Site, network: &Network) {
    let devices = scribbler(site, network, "disk", "primary");
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let guest = ["--kernel", "builtin:scribble", "--cmdline", "rounds=0"];
    let mut primary = site.primary("primary", &guest, &devices);
    let (disk, cable) = (devices[1], network.plug("backup"));
    let mut backup = site.backup("backup", site.address, &["--disk", disk, "--net", &cable]);
    primary.wait_protected();
    let rounds = |more: usize| {
        let lines = site.console().lines().count() + more;
        site.wait_console(&format!("scribble {lines}: "), limit(120));
    };
    rounds(10);
    primary.signal("KILL");
    primary.wait(limit(5));
    backup.wait_event("go-live", 1, limit(10), is_live);
    rounds(10);
    backup.signal("TERM");
    assert_eq!(backup.code(limit(20)), 0, "{}", backup.stderr());
    assert_calm(&[&primary, &backup]);
    assert!(primary.stderr().contains("broke the rings"), "{}", primary.stderr());
    assert!(backup.stderr().contains("broke the rings"), "{}", backup.stderr());
    assert!(!site.console().contains("FAILED"), "{}", site.console());
}
