//! What goes wrong between an arbiter and etcd.

use std::time::Duration;

use thiserror::Error;

/// Why a call of etcd brought nothing. Of a change, none of these says whether it was made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// There is no connection, or it broke.
    #[error("etcd at {endpoint} cannot be reached: {why}")]
    Unreachable {
        /// The node.
        endpoint: String,
        /// Why.
        why: String,
    },
    /// No answer has come.
    #[error("etcd at {endpoint} has not answered within {within:?}; has the cluster a majority?")]
    Silent {
        /// The node.
        endpoint: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// etcd says no.
    #[error("etcd at {endpoint} refuses: {message}{}", advice(message, user.as_deref()))]
    Refused {
        /// The node.
        endpoint: String,
        /// gRPC's code of the error.
        code: i64,
        /// etcd's words.
        message: String,
        /// As whom the arbiter came.
        user: Option<String>,
    },
    /// This is not etcd's API.
    #[error(
        "{endpoint} does not answer as etcd's JSON API does ({why}); etcd 3.4 or later is needed, with --enable-grpc-gateway, at its port for clients"
    )]
    Foreign {
        /// The node.
        endpoint: String,
        /// What it said.
        why: String,
    },
    /// The endpoints are not of one cluster.
    #[error(
        "etcd at {endpoint} is of cluster {other:x}, and what answered before of {first:x}: all --etcd-endpoint must be of one cluster, and if its nodes were made anew, the records are gone"
    )]
    OtherCluster {
        /// The node.
        endpoint: String,
        /// The cluster that answered first.
        first: u64,
        /// This node's.
        other: u64,
    },
    /// etcd knows less than it knew.
    #[error(
        "etcd at {endpoint} is at revision {now}, and was at {before}: an older copy was put back, or what answers is no etcd of its own"
    )]
    Back {
        /// The node.
        endpoint: String,
        /// The highest revision that was seen before this call.
        before: u64,
        /// The answer's.
        now: u64,
    },
}

/// gRPC's codes, as far as they matter.
mod code {
    pub(super) const INVALID_ARGUMENT: i64 = 3;
    pub(super) const PERMISSION_DENIED: i64 = 7;
    pub(super) const UNAUTHENTICATED: i64 = 16;
}

const NO_NAME: &str = "user name is empty";
const WRONG_PASSWORD: &str = "authentication failed";
const NOT_ENABLED: &str = "authentication is not enabled";
const OLD_TOKEN: &str = "revision of auth store is old";

fn advice(message: &str, user: Option<&str>) -> String {
    if message.contains(NO_NAME) {
        "; etcd asks for a name and a password: give --etcd-user and --etcd-password-file"
            .to_owned()
    } else if message.contains(WRONG_PASSWORD) {
        format!(
            "; check --etcd-user ({}) and the first line of --etcd-password-file",
            user.unwrap_or("none")
        )
    } else if message.contains("database space exceeded") {
        "; its database is full: see etcdctl alarm list, compact and defragment it, and say: etcdctl alarm disarm".to_owned()
    } else if message.contains("permission denied") {
        format!(
            "; let it in with: etcdctl role grant-permission ROLE --prefix=true readwrite PREFIX, and: etcdctl user grant-role {} ROLE",
            user.unwrap_or("USER")
        )
    } else {
        String::new()
    }
}

impl Fault {
    /// Whether etcd lets everybody in, whatever their names.
    pub(super) fn is_about_no_authentication(&self) -> bool {
        matches!(self, Fault::Refused { message, .. } if message.contains(NOT_ENABLED))
    }

    /// Whether a new token may help.
    pub(super) fn is_about_the_token(&self) -> bool {
        match self {
            Fault::Refused { code, message, .. } => {
                *code == code::UNAUTHENTICATED || message.contains(OLD_TOKEN)
            }
            _ => false,
        }
    }

    /// Whether every node would say the same, until an operator does something.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Fault::Refused { code, message, .. } => {
                *code == code::PERMISSION_DENIED
                    || (*code == code::INVALID_ARGUMENT
                        && (message.contains(NO_NAME) || message.contains(WRONG_PASSWORD)))
            }
            _ => false,
        }
    }
}
