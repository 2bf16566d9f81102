//! The part of etcd's v3 API that is used, as its JSON gateway speaks it: keys and values in
//! base64, 64-bit numbers as text, and what is zero, false or empty left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

pub(super) const RANGE: &str = "/v3/kv/range";
pub(super) const TXN: &str = "/v3/kv/txn";
pub(super) const AUTHENTICATE: &str = "/v3/auth/authenticate";

/// What etcd holds under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The revision of the key's last change; 0 if there is no such key.
    pub(super) revision: u64,
    /// Its value, if there is such a key.
    pub(super) value: Option<Vec<u8>>,
}

/// Whose answer it is, and as of when.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

/// An answer, with what stands in all of them.
pub(super) trait Reply: for<'a> Deserialize<'a> {
    /// The header.
    fn header(&self) -> Option<Header>;
}

macro_rules! reply {
    ($($name:ident),*) => {$(
        impl Reply for $name {
            fn header(&self) -> Option<Header> {
                self.header
            }
        }
    )*};
}
reply!(Range, Txn, Token);

/// The answer to [`read`] and [`count`].
#[derive(Debug, Deserialize)]
pub(super) struct Range {
    header: Option<Header>,
    #[serde(default)]
    kvs: Vec<Pair>,
    #[serde(default, deserialize_with = "number")]
    pub(super) count: u64,
}

#[derive(Debug, Deserialize)]
struct Pair {
    key: String,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default)]
    value: String,
}

/// The answer to [`swap`].
#[derive(Debug, Deserialize)]
pub(super) struct Txn {
    header: Option<Header>,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Deserialize)]
struct Response {
    response_range: Option<Inner>,
}

/// A range within a transaction, whose header is the transaction's.
#[derive(Debug, Deserialize)]
struct Inner {
    #[serde(default)]
    kvs: Vec<Pair>,
}

/// The answer to [`authenticate`].
#[derive(Debug, Deserialize)]
pub(super) struct Token {
    header: Option<Header>,
    pub(super) token: String,
}

/// An error.
#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    pub(super) code: i64,
    pub(super) message: String,
}

/// A read of one key. It says nothing of `serializable`, so it is linearizable: a node that has
/// been left behind or cut off by the others does not answer it from what it happens to hold.
pub(super) fn read(key: &str) -> Value {
    json!({ "key": STANDARD.encode(key) })
}

/// How many keys there are with this prefix.
pub(super) fn count(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    // The prefix ends with a slash, so the next byte exists.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    json!({ "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end), "count_only": true })
}

/// Puts a value under a key if the key's last change is still that of `revision` (0: if there is
/// no such key), and else reads it: one transaction.
pub(super) fn swap(key: &str, revision: u64, value: &str) -> Value {
    let key = STANDARD.encode(key);
    json!({
        "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() }],
        "success": [{ "request_put": { "key": key, "value": STANDARD.encode(value) } }],
        "failure": [{ "request_range": { "key": key } }],
    })
}

/// A token for a name and a password.
pub(super) fn authenticate(name: &str, password: &str) -> Value {
    json!({ "name": name, "password": password })
}

impl Range {
    /// What is under `key`, which was read.
    pub(super) fn held(self, key: &str) -> Result<Held, String> {
        held(self.kvs, key)
    }
}

impl Txn {
    /// What is under `key`, whose change was not made.
    pub(super) fn held(self, key: &str) -> Result<Held, String> {
        let range = self.responses.into_iter().find_map(|r| r.response_range);
        held(range.ok_or("it holds no range")?.kvs, key)
    }
}

fn held(pairs: Vec<Pair>, key: &str) -> Result<Held, String> {
    let Some(pair) = pairs.into_iter().next() else {
        return Ok(Held {
            revision: 0,
            value: None,
        });
    };
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    if bytes(&pair.key)? != key.as_bytes() || pair.mod_revision == 0 {
        return Err("it is about another key".to_owned());
    }
    Ok(Held {
        revision: pair.mod_revision,
        value: Some(bytes(&pair.value)?),
    })
}

/// A 64-bit number, which stands in quotes.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Number(u64),
    }
    match Form::deserialize(from)? {
        Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Form::Number(number) => Ok(number),
    }
}
