use tempfile::TempDir;

use super::super::register::record;
use super::super::{LifeState, NONCE_BYTES};
use super::*;

const A: u128 = 0xa;
const B: u128 = 0xb;
const C: u128 = 0xc;

pub(super) fn share() -> (TempDir, SharedDirectory) {
    let root = tempfile::tempdir().unwrap();
    let share = SharedDirectory::new(root.path(), "guest").unwrap();
    (root, share)
}

/// A claim with another link(2).
fn claim_with(
    share: &SharedDirectory,
    (generation, owner, me): (u64, u128, u128),
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<ClaimOutcome, ArbiterError> {
    register::claim(&share.linking(link), generation, owner, me)
}

/// The generations present, and how many other files.
pub(super) fn contents(share: &SharedDirectory) -> (Vec<u64>, usize) {
    let mut generations = share.listed().unwrap();
    generations.sort_unstable();
    let others = share.names().unwrap().len() - generations.len();
    (generations, others)
}

fn plant(share: &SharedDirectory, generation: u64, owner: u128, state: LifeState) {
    fs::create_dir_all(share.path()).unwrap();
    let content = record(generation, owner, state).encode();
    fs::write(share.generation_path(generation), content).unwrap();
}

pub(super) fn won(generation: u64) -> Result<ClaimOutcome, ArbiterError> {
    Ok(ClaimOutcome::Won { generation })
}

pub(super) fn lost(generation: u64, owner: u128) -> Result<ClaimOutcome, ArbiterError> {
    Ok(ClaimOutcome::Lost { generation, owner })
}

#[test]
fn a_whole_succession() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.claim(1, A, B), won(2));
    assert_eq!(share.claim(1, A, A), lost(2, B), "the old primary wakes up");
    assert_eq!(share.claim(2, B, C), won(3));
    assert_eq!(share.claim(1, A, A), lost(3, C));
    assert_eq!(
        share.claim(1, A, B),
        lost(3, C),
        "a repeated claim by a superseded winner"
    );
    assert_eq!(
        share.claim(3, C, C),
        won(4),
        "a primary that lost its backup goes on alone"
    );
    assert_eq!(contents(&share), (vec![1, 2, 3, 4], 0));
}

#[test]
fn a_claim_is_idempotent() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.start(A), Ok(1));
    for _ in 0..3 {
        assert_eq!(share.claim(1, A, B), won(2));
    }
    assert_eq!(contents(&share), (vec![1, 2], 0));
}

#[test]
fn only_state_of_the_newest_generation_and_its_owner_may_claim() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.claim(0, 0, B), lost(1, A), "one too old");
    assert_eq!(share.claim(1, C, B), lost(1, A), "another life's generation 1");
    assert_eq!(share.claim(2, A, B), lost(1, A), "one too new");
    assert_eq!(contents(&share), (vec![1], 0));
    assert_eq!(share.claim(1, A, B), won(2));
}

#[test]
fn an_emptied_directory_is_lost_and_a_missing_one_is_unreachable() {
    let (_root, share) = share();
    assert!(share.claim(1, A, B).unwrap_err().is_retryable());
    fs::create_dir(share.path()).unwrap();
    assert_eq!(share.claim(1, A, B), lost(0, 0));
    assert!(matches!(share.end(A), Err(ArbiterError::Broken { .. })));
}

#[test]
fn a_second_start_is_refused_with_the_owner_named() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.claim(1, A, B), won(2));
    let error = share.start(C).unwrap_err();
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains(&format!("{B:032x}")) && text.contains(&share.path().display().to_string()),
        "{text}"
    );
    assert!(
        text.contains("may still be running") && text.contains("remove"),
        "{text}"
    );
    assert_eq!(contents(&share), (vec![1, 2], 0));
    assert_eq!(share.disown(), Ok(()));
    assert_eq!(
        share.claim(2, B, A),
        lost(3, B),
        "a dead backup that wakes up after all"
    );
    assert_eq!(share.start(C), Ok(4));
}

#[test]
fn after_a_clean_end_the_next_start_works_and_the_dead_stay_dead() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.claim(1, A, B), won(2));
    assert!(
        matches!(share.end(A), Err(ArbiterError::Taken { .. })),
        "not the owner any more"
    );
    assert_eq!(share.end(B), Ok(()));
    assert_eq!(share.end(B), Ok(()));
    assert_eq!(contents(&share), (vec![3], 0));
    for (generation, owner, me) in [(1, A, A), (2, B, C), (2, B, B), (3, B, C), (0, 0, C)] {
        assert_eq!(
            share.claim(generation, owner, me),
            lost(3, B),
            "after the end: {generation}"
        );
    }
    assert_eq!(share.start(C), Ok(4));
    assert_eq!(contents(&share), (vec![4], 0));
    for (generation, owner, me) in [(1, A, A), (2, B, C), (3, B, A), (0, 0, A)] {
        assert_eq!(
            share.claim(generation, owner, me),
            lost(4, C),
            "in the next life: {generation}"
        );
    }
    assert!(matches!(share.end(B), Err(ArbiterError::Taken { .. })));
    assert_eq!(share.claim(4, C, A), won(5));
}

#[test]
fn a_crash_at_any_point_of_the_end_leaves_the_next_start_right() {
    // Before the mark: owned still. The temporary file may be left.
    let (_root, share) = share();
    plant(&share, 1, A, LifeState::Running);
    plant(&share, 2, B, LifeState::Running);
    share.write_temporary(b"half a rec").unwrap();
    assert!(matches!(share.start(C), Err(ArbiterError::Taken { .. })));
    // After the mark, before anything was removed; and again with the oldest removed.
    plant(&share, 3, B, LifeState::Ended);
    assert_eq!(share.claim(1, A, A), lost(3, B));
    assert_eq!(share.claim(2, B, A), lost(3, B));
    fs::remove_file(share.generation_path(1)).unwrap();
    assert_eq!(share.claim(1, A, A), lost(3, B));
    assert_eq!(share.claim(2, B, A), lost(3, B));
    share.write_nonce("old", b"x").unwrap();
    assert_eq!(contents(&share), (vec![2, 3], 2));
    assert_eq!(share.start(C), Ok(4));
    assert_eq!(contents(&share), (vec![4], 0), "the next start tidies");
}

#[test]
fn whatever_link_answers_the_directory_decides() {
    // EIO, EEXIST, ESTALE, ETIMEDOUT, ENOENT
    for number in [5, 17, 116, 110, 2] {
        let again = || errno(number);
        let (_root, share) = share();
        assert_eq!(share.start(A), Ok(1));
        // Not executed: no outcome, and the same claim may be made again.
        let answer = claim_with(&share, (1, A, B), |_, _| Err(again()));
        assert!(answer.clone().unwrap_err().is_retryable(), "{answer:?}");
        assert_eq!(contents(&share), (vec![1], 0));
        // Executed, with the answer lost or wrong.
        let executed = |from: &Path, to: &Path| fs::hard_link(from, to).and_then(|()| Err(again()));
        assert_eq!(claim_with(&share, (1, A, B), executed), won(2));
        // Someone else was faster.
        let faster = |_: &Path, _: &Path| {
            share
                .claim(2, B, C)
                .map(drop)
                .map_err(|_| again())
                .and_then(|()| Err(again()))
        };
        assert_eq!(claim_with(&share, (2, B, A), faster), lost(3, C));
        assert_eq!(contents(&share), (vec![1, 2, 3], 0));
    }
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    let forgotten = claim_with(&share, (1, A, B), |_, _| Ok(()));
    assert!(
        forgotten.unwrap_err().is_retryable(),
        "a server that forgets what it confirmed"
    );
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[test]
fn a_claimant_that_sleeps_between_look_and_link_cannot_win() {
    // Through whole lives: the generation it wants was used, ended and tidied away meanwhile.
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    let asleep = |from: &Path, to: &Path| {
        assert_eq!(share.claim(1, A, B), won(2));
        assert_eq!(share.end(B), Ok(()));
        assert!(!to.exists());
        fs::hard_link(from, to)
    };
    assert_eq!(claim_with(&share, (1, A, C), asleep), lost(3, B));
    assert_eq!(share.start(A), Ok(4));
    assert_eq!(contents(&share), (vec![4], 0));
}

#[test]
fn a_link_that_lands_when_the_claim_has_already_failed_is_found_by_the_next() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    let late = share
        .write_temporary(record(2, B, LifeState::Running).encode().as_bytes())
        .unwrap();
    assert!(claim_with(&share, (1, A, B), |_, _| Err(errno(110))).is_err());
    fs::hard_link(&late, share.generation_path(2)).unwrap();
    assert_eq!(share.claim(1, A, A), lost(2, B), "the other side asked in between");
    assert_eq!(share.claim(1, A, B), won(2));
}

#[test]
fn a_listing_from_yesterday_is_not_believed() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.claim(1, A, B), won(2));
    assert_eq!(share.claim(2, B, C), won(3));
    for (listed, newest) in [
        (None, Some(3)),
        (Some(1), Some(3)),
        (Some(2), Some(3)),
        (Some(3), Some(3)),
        (Some(4), None),
    ] {
        assert_eq!(
            share.newest_from(listed).unwrap().map(|record| record.generation),
            newest
        );
    }
}

#[test]
fn what_is_no_record_is_never_overlooked() {
    let (_root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    let path = share.generation_path(2);
    for content in [&b""[..], b"ftvm-generation 1\n", &[b'x'; 5000]] {
        fs::write(&path, content).unwrap();
        for answer in [share.claim(1, A, B).map(drop), share.start(C).map(drop), share.end(A)] {
            let text = answer.unwrap_err().to_string();
            assert!(
                text.contains("gen-2") && text.contains("not written by this version"),
                "{text}"
            );
        }
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("gen-1", &path).unwrap();
    assert!(matches!(share.claim(1, A, B), Err(ArbiterError::Broken { .. })));
    fs::remove_file(&path).unwrap();
    for name in [
        "gen-",
        "gen-0",
        "gen-02",
        "gen-+2",
        "gen-2x",
        "gen-99999999999999999999",
    ] {
        fs::write(share.path().join(name), "x").unwrap();
    }
    assert_eq!(share.claim(1, A, B), won(2), "these are not generations");
}

#[test]
fn the_last_generation_is_an_error() {
    let (_root, share) = share();
    plant(&share, u64::MAX, A, LifeState::Running);
    assert!(matches!(share.claim(u64::MAX, A, B), Err(ArbiterError::Broken { .. })));
    assert_eq!(share.claim(u64::MAX - 1, A, B), lost(u64::MAX, A));
    assert!(
        matches!(share.claim(1, A, 0), Err(ArbiterError::Broken { .. })),
        "nobody cannot win"
    );
    assert!(matches!(share.start(0), Err(ArbiterError::Broken { .. })));
}

#[test]
fn errors_say_what_to_do() {
    let (root, share) = share();
    let missing = SharedDirectory::new(root.path().join("nowhere"), "guest").unwrap();
    let text = missing.start(A).unwrap_err().to_string();
    assert!(text.contains("nowhere") && text.contains("mount"), "{text}");
    fs::write(root.path().join("file"), "").unwrap();
    let text = SharedDirectory::new(root.path().join("file"), "guest")
        .unwrap()
        .start(A)
        .unwrap_err()
        .to_string();
    assert!(text.contains("must be a directory"), "{text}");
    for (number, expected) in [
        (13, "create, link and remove"),
        (30, "read-write"),
        (95, "hard links"),
        (1, "hard links"),
    ] {
        let error = failed("link", share.path(), errno(number));
        assert!(!error.is_retryable() && error.to_string().contains(expected), "{error}");
    }
    for number in [5, 110, 116, 28, 112] {
        assert!(
            failed("link", share.path(), errno(number)).is_retryable(),
            "errno {number}"
        );
    }
    for name in ["", ".", "..", ".hidden", "a/b", "a\0b", "a b", &"x".repeat(65)] {
        assert!(SharedDirectory::new(root.path(), name).is_err(), "{name:?}");
        assert!(
            share.write_nonce(name, b"").is_err() && share.read_nonce(name).is_err(),
            "{name:?}"
        );
        assert!(share.remove_nonce(name).is_err(), "{name:?}");
    }
    assert!(SharedDirectory::new(root.path(), &"x".repeat(64)).is_ok());
}

#[test]
fn an_error_keeps_what_the_system_said() {
    let (_root, share) = share();
    let error = failed("link", share.path(), errno(13));
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let said: Vec<i32> = causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
        .collect();
    assert_eq!(said, [13]);
}

#[test]
fn access_is_checked_before_it_matters() {
    let (_root, share) = share();
    assert!(share.check_access().is_err(), "no directory");
    assert_eq!(share.start(A), Ok(1));
    assert_eq!(share.check_access(), Ok(()));
    assert_eq!(contents(&share), (vec![1], 0));
}

#[test]
fn a_nonce_travels() {
    let (root, share) = share();
    assert_eq!(share.start(A), Ok(1));
    let text = share.read_nonce("n").unwrap_err().to_string();
    assert!(text.contains("same file system"), "{text}");
    share.write_nonce("n", b"one").unwrap();
    share.write_nonce("n", &[7; NONCE_BYTES]).unwrap();
    let backup = SharedDirectory::new(root.path(), "guest").unwrap();
    assert_eq!(backup.read_nonce("n"), Ok(vec![7; NONCE_BYTES]));
    assert!(share.write_nonce("n", &[7; NONCE_BYTES + 1]).is_err());
    fs::write(share.path().join("nonce-long"), [7; NONCE_BYTES + 1]).unwrap();
    assert!(backup.read_nonce("long").is_err());
    assert_eq!(share.remove_nonce("n"), Ok(()));
    assert_eq!(share.remove_nonce("n"), Ok(()));
    assert!(backup.read_nonce("n").is_err());
}
