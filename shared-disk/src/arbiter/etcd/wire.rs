//! Requests to etcd's JSON gateway and its answers, as bytes (etcd, `api/etcdserverpb/rpc.proto`; the gateway's JSON is
//! protobuf's: bytes in base64, 64-bit numbers in quotes, fields with their zero value left out).
//!
//! Since zero values are left out, `{}` would say "no such key", and something that is not etcd might answer so. Every
//! answer must therefore have a header with a cluster and a revision, which etcd's always has.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

/// A key's value, and the revision of the whole store at which it was last written. No two writes to the store have the
/// same revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyVersion {
    pub(super) value: Vec<u8>,
    pub(super) revision: u64,
}

/// What a member answers, and the cluster it says it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberAnswer<T> {
    pub(super) cluster: u64,
    pub(super) content: T,
}

/// Why bytes are no answer of etcd's; ends a sentence.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdAnswerError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("a value: {0}")]
    Value(#[source] base64::DecodeError),
    #[error("{name} is {text:?}")]
    Number {
        name: &'static str,
        /// Its first characters.
        text: String,
    },
    #[error("{0} keys, none of which was asked for")]
    OtherKeys(usize),
}

/// Reads `key`, through a majority (`serializable` stays false).
pub(super) fn range(key: &str) -> String {
    json!({ "key": base64(key.as_bytes()) }).to_string()
}

/// Writes `value` to `key` if that was last written at `revision`, which is 0 for a key that does not exist.
pub(super) fn put_if(key: &str, revision: u64, value: &[u8]) -> String {
    let key = base64(key.as_bytes());
    json!({
        "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() }],
        "success": [{ "request_put": { "key": key, "value": base64(value) } }],
    })
    .to_string()
}

/// Writes `value` to `key`.
pub(super) fn put(key: &str, value: &[u8]) -> String {
    json!({ "key": base64(key.as_bytes()), "value": base64(value) }).to_string()
}

/// Removes `key`.
pub(super) fn delete(key: &str) -> String {
    range(key)
}

/// Removes every key that begins with `prefix`, which ends with a slash.
pub(super) fn delete_below(prefix: &str) -> String {
    // The end of the range is the first key behind them all: in ASCII '0' follows '/'.
    let end = format!("{}0", prefix.trim_end_matches('/'));
    json!({ "key": base64(prefix.as_bytes()), "range_end": base64(end.as_bytes()) }).to_string()
}

#[derive(Deserialize)]
struct JsonAnswer {
    header: JsonHeader,
    #[serde(default)]
    kvs: Vec<JsonKeyValue>,
}

#[derive(Deserialize)]
struct JsonHeader {
    cluster_id: String,
    revision: String,
}

#[derive(Deserialize)]
struct JsonKeyValue {
    key: String,
    mod_revision: String,
    #[serde(default)]
    value: String,
}

/// Reads the answer to [`range`]: what `key` holds, or `None` if there is no such key.
pub(super) fn parse_range(key: &str, answer: &[u8]) -> Result<MemberAnswer<Option<KeyVersion>>, EtcdAnswerError> {
    let answer: JsonAnswer = serde_json::from_slice(answer)?;
    let cluster = cluster(&answer.header)?;
    let content = match &answer.kvs[..] {
        [] => None,
        [found] if found.key == base64(key.as_bytes()) => Some(KeyVersion {
            value: STANDARD.decode(&found.value).map_err(EtcdAnswerError::Value)?,
            revision: positive("mod_revision", &found.mod_revision)?,
        }),
        others => return Err(EtcdAnswerError::OtherKeys(others.len())),
    };
    Ok(MemberAnswer { cluster, content })
}

/// Reads the answer to a request that changes something. It is not asked what was changed: that is read afterwards.
pub(super) fn parse_done(answer: &[u8]) -> Result<MemberAnswer<()>, EtcdAnswerError> {
    let answer: JsonAnswer = serde_json::from_slice(answer)?;
    let cluster = cluster(&answer.header)?;
    Ok(MemberAnswer { cluster, content: () })
}

/// What etcd says of a request it refuses.
pub(super) fn parse_refusal(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal: Refusal = serde_json::from_slice(answer).ok()?;
    // It is shown on a terminal, to which control characters would mean something.
    Some(refusal.error.chars().filter(|c| !c.is_control()).take(200).collect())
}

fn cluster(header: &JsonHeader) -> Result<u64, EtcdAnswerError> {
    positive("revision", &header.revision)?;
    positive("cluster_id", &header.cluster_id)
}

fn positive(name: &'static str, text: &str) -> Result<u64, EtcdAnswerError> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| EtcdAnswerError::Number {
        name,
        text: text.chars().take(32).collect(),
    })
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// For `tests/fuzz`: an answer to any request is understood or an error, and what is shown of a refusal is bounded.
#[cfg(feature = "fuzzing")]
pub fn fuzz(answer: &[u8]) {
    let _ = (parse_range("foo", answer), parse_done(answer));
    if let Some(refusal) = parse_refusal(answer) {
        assert!(refusal.chars().count() <= 200 && !refusal.contains(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As etcd 3.4 answered.
    const HELD: &str = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"5","raft_term":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"4","version":"3","value":"YmFy"}],"count":"1"}"#;
    const NONE: &str = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"5","raft_term":"2"}}"#;

    #[test]
    fn requests_have_the_gateways_form() {
        assert_eq!(range("foo"), r#"{"key":"Zm9v"}"#);
        assert_eq!(put("foo", b"bar"), r#"{"key":"Zm9v","value":"YmFy"}"#);
        assert_eq!(delete_below("foo/"), r#"{"key":"Zm9vLw==","range_end":"Zm9vMA=="}"#);
        let put: serde_json::Value = serde_json::from_str(&put_if("foo", 4, b"bar")).unwrap();
        assert_eq!(put["compare"][0]["mod_revision"], "4");
        assert_eq!(put["compare"][0]["target"], "MOD");
        assert_eq!(put["compare"][0]["result"], "EQUAL");
        assert_eq!(put["compare"][0]["key"], "Zm9v");
        assert_eq!(
            put["success"][0]["request_put"],
            serde_json::json!({"key": "Zm9v", "value": "YmFy"})
        );
    }

    #[test]
    fn answers_are_understood() {
        let cluster = 14_841_639_068_965_178_418;
        let (value, revision) = (b"bar".to_vec(), 4);
        let content = Some(KeyVersion { value, revision });
        assert_eq!(
            parse_range("foo", HELD.as_bytes()).unwrap(),
            MemberAnswer { cluster, content }
        );
        let content = None;
        assert_eq!(
            parse_range("foo", NONE.as_bytes()).unwrap(),
            MemberAnswer { cluster, content }
        );
        assert_eq!(
            parse_done(NONE.as_bytes()).unwrap(),
            MemberAnswer { cluster, content: () }
        );
    }

    #[test]
    fn what_is_no_answer_of_etcds_is_no_absent_key() {
        for (from, to) in [
            ("14841639068965178418", "0"),
            ("14841639068965178418", "x"),
            (r#""revision":"5""#, r#""revision":"0""#),
            ("header", "footer"),
            (r#""mod_revision":"4""#, r#""mod_revision":"0""#),
            ("Zm9v", "Zm9w"),
            ("YmFy", "YmF"),
            (r#""kvs":["#, r#""kvs":[{"key":"Zm9v","mod_revision":"1"},"#),
        ] {
            let broken = HELD.replacen(from, to, 1);
            assert_ne!(broken, HELD);
            assert!(parse_range("foo", broken.as_bytes()).is_err(), "{broken}");
        }
        for text in ["{}", "", "null", "[]", "<html>", r#"{"header":{}}"#] {
            assert!(
                parse_range("foo", text.as_bytes()).is_err() && parse_done(text.as_bytes()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn refusals_are_shown_without_control_characters() {
        let refusal = parse_refusal(b"{\"error\":\"etcdserver: no\\u001b[2J leader\",\"code\":14}");
        assert_eq!(refusal.as_deref(), Some("etcdserver: no[2J leader"));
        assert_eq!(parse_refusal(b"no"), None);
    }

    proptest! {
        #[test]
        fn hostile_answers_never_panic(cut in 0..HELD.len(), junk in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut answer = HELD.as_bytes()[..cut].to_vec();
            answer.extend(junk);
            let _ = parse_range("foo", &answer);
            let _ = parse_done(&answer);
            let _ = parse_refusal(&answer);
        }
    }
}
