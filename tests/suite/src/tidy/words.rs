//! One word for each thing: words that the house has given up, with the word to use (ARCHITECTURE, "Words").

use super::Files;
use super::text::{line, parts, words};

/// Where a word is not to stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Names in code.
    Names,
    /// Comments, documents and names.
    Everywhere,
}

/// A word that is not used here any more.
struct Banned {
    /// In small letters; parts of a name count as words (`LeaseFence`, `lease_fence`).
    word: &'static str,
    scope: Scope,
    instead: &'static str,
    /// Files where it is right, by how their path begins, and why.
    except: &'static [(&'static str, &'static str)],
}

/// What is not searched: this list, guests' own sources, and what others have written.
const NOT_SEARCHED: [&str; 4] = ["tests/suite/src/tidy/", "guest-images/", "LICENSE", "CHANGELOG.md"];

const BANNED: &[Banned] = &[
    Banned {
        word: "leader",
        scope: Scope::Everywhere,
        instead: "the primary",
        except: &[
            ("shared-disk/src/arbiter/etcd/", "etcd has one of its own"),
            ("tests/lab/src/etcd.rs", "etcd has one of its own"),
        ],
    },
    Banned {
        word: "follower",
        scope: Scope::Everywhere,
        instead: "the backup",
        except: &[],
    },
    Banned {
        word: "master",
        scope: Scope::Everywhere,
        instead: "the primary",
        except: &[
            PIC,
            PTY,
            ("vmm/devices/src/virtio/function.rs", "a bus master, in PCI's words"),
        ],
    },
    Banned {
        word: "slave",
        scope: Scope::Everywhere,
        instead: "the backup",
        except: &[PIC, PTY],
    },
    Banned {
        word: "secondary",
        scope: Scope::Everywhere,
        instead: "the backup",
        except: &[],
    },
    Banned {
        word: "replica",
        scope: Scope::Everywhere,
        instead: "the backup",
        except: &[],
    },
    Banned {
        word: "snapshot",
        scope: Scope::Everywhere,
        instead: "a state record",
        except: &[],
    },
    Banned {
        word: "keepalive",
        scope: Scope::Everywhere,
        instead: "a heartbeat",
        except: &[],
    },
    Banned {
        word: "vote",
        scope: Scope::Everywhere,
        instead: "a claim",
        except: &[],
    },
    Banned {
        word: "failback",
        scope: Scope::Everywhere,
        instead: "a failover",
        except: &[],
    },
    Banned {
        word: "switchover",
        scope: Scope::Everywhere,
        instead: "a handover",
        except: &[],
    },
    Banned {
        word: "migration",
        scope: Scope::Everywhere,
        instead: "a clone",
        except: &[
            ("docs/src/measurements.md", "QEMU's"),
            ("tests/bench/", "QEMU's"),
            ("vmm/host/src/net/rarp.rs", "that of other hypervisors"),
        ],
    },
    // The purpose has the name; what serves it is the lease guard, in the host, and the reservation, in the device.
    Banned {
        word: "fence",
        scope: Scope::Names,
        instead: "the lease guard or the reservation",
        except: &[
            ("vmm/hypervisor/kvm/src/kick.rs", "the compiler's memory fence"),
            ("tests/suite/src/storage.rs", "tests of the purpose"),
        ],
    },
    Banned {
        word: "door",
        scope: Scope::Names,
        instead: "what it does: it listens for backups",
        except: &[],
    },
    Banned {
        word: "todo",
        scope: Scope::Everywhere,
        instead: "an issue, or done",
        except: &[("CONTRIBUTING.md", "the rule")],
    },
    Banned {
        word: "fixme",
        scope: Scope::Everywhere,
        instead: "an issue, or done",
        except: &[],
    },
];

const PIC: (&str, &str) = ("vmm/devices/src/pic/", "the two chips, in their data sheet");
const PTY: (&str, &str) = ("vmm/host/src/console/", "the two ends of a pty, in its manual page");

/// The words in a name: `LeaseFence` and `lease_fence` are lease and fence.
fn pieces(name: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut before = '_';
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() && !before.is_uppercase() {
            pieces.push(String::new());
        }
        if letter != '_' {
            pieces.last_mut().expect("there is one").extend(letter.to_lowercase());
        }
        before = letter;
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Whether a word is `banned`, or its plural.
fn is(piece: &str, banned: &str) -> bool {
    piece == banned || piece.strip_suffix('s') == Some(banned)
}

fn given_up(files: &Files, list: &[Banned]) -> Vec<String> {
    let mut found = Vec::new();
    let mut needed = vec![false; list.iter().map(|banned| banned.except.len()).sum()];
    let searched = files
        .iter()
        .filter(|(path, _)| !NOT_SEARCHED.iter().any(|begin| path.starts_with(begin)));
    for (path, text) in searched {
        let (names, prose) = match path.rsplit('.').next() {
            Some("rs") => {
                let parts = parts(text);
                (parts.code, parts.comments)
            }
            Some("md") => (String::new(), text.clone()),
            _ => continue,
        };
        let names = words(&names).map(|word| (Scope::Names, word)).collect::<Vec<_>>();
        let prose = words(&prose).map(|word| (Scope::Everywhere, word)).collect::<Vec<_>>();
        for (scope, (at, word)) in names.into_iter().chain(prose) {
            let pieces = pieces(word);
            let mut exception = 0;
            for banned in list {
                let first = exception;
                exception += banned.except.len();
                let applies = scope == Scope::Names || banned.scope == Scope::Everywhere;
                if !applies || !pieces.iter().any(|piece| is(piece, banned.word)) {
                    continue;
                }
                match banned.except.iter().position(|(begin, _)| path.starts_with(begin)) {
                    Some(index) => needed[first + index] = true,
                    None => found.push(format!(
                        "{path}:{}: {word}: here it is {}",
                        line(text, at),
                        banned.instead
                    )),
                }
            }
        }
    }
    let exceptions = list
        .iter()
        .flat_map(|banned| banned.except.iter().map(|(begin, _)| (banned.word, begin)));
    let needless = exceptions.zip(needed).filter(|(_, needed)| !needed);
    found.extend(needless.map(|((word, begin), _)| format!("'{word}' needs no exception for {begin} any more")));
    found
}

#[test]
fn no_word_is_used_that_the_house_has_given_up() {
    super::nothing_is_wrong(&given_up(&super::repository(), BANNED));
}

#[test]
fn a_banned_word_is_named_in_code_comments_and_documents() {
    const LIST: &[Banned] = &[
        Banned {
            word: "slave",
            scope: Scope::Everywhere,
            instead: "backup",
            except: &[("vmm/pic", "the chip's own")],
        },
        Banned {
            word: "fence",
            scope: Scope::Names,
            instead: "lease guard",
            except: &[("vmm/old", "was renamed")],
        },
    ];
    let files = super::planted(&[
        (
            "vmm/a.rs",
            "struct LeaseFence; // a fence, in prose\nfn slaves() {} // SLAVE \nlet x = \"slave\";\n",
        ),
        ("docs/b.md", "fences and slaves, enslaved\n"),
        ("vmm/pic.rs", "fn slave() {}\n"),
    ]);
    let found = given_up(&files, LIST);
    let expected = [
        "docs/b.md:1: slaves",
        "vmm/a.rs:1: LeaseFence",
        "vmm/a.rs:2: slaves",
        "vmm/a.rs:2: SLAVE",
        "'fence' needs no",
    ];
    assert!(
        found.len() == 5
            && expected
                .iter()
                .zip(&found)
                .all(|(begin, found)| found.starts_with(begin)),
        "{found:#?}"
    );
    assert_eq!(pieces("HTTPServer_x9"), ["httpserver", "x9"]);
}
