//! `souk leases --orphans`: what the backends of the provider on this machine have that no lease owns.

use std::process::ExitCode;

use serde::Serialize;
use souk_node::control::v1;

use super::{DONE, NodeHere, unreached, wait};
use crate::{failure::Failure, out};

#[derive(Serialize)]
struct Json {
    backends: Vec<Backend>,
    orphans: Vec<Orphan>,
}

#[derive(Serialize)]
struct Backend {
    backend: String,
    instances: Option<u64>,
    listed_ago_s: Option<u64>,
    failures: u32,
    error: Option<String>,
}

#[derive(Serialize)]
struct Orphan {
    lease: String,
    backend: String,
    reason: String,
    state: String,
    age_s: u64,
    failed: u32,
}

/// Asks the node, and shows what it says.
pub(crate) fn run(of: &NodeHere, json: bool) -> Result<ExitCode, Failure> {
    let reply = wait(async {
        let mut node = of.connect().await?;
        node.orphans().await.map_err(|error| unreached(&error))
    })?;
    if json {
        out::json(&Json::from(reply));
        return DONE;
    }
    for backend in unlisted(&reply) {
        out::note(backend);
    }
    if reply.orphans.is_empty() {
        out::note("no instance without a lease is known");
    } else {
        out::line(text(&reply.orphans));
    }
    DONE
}

impl From<v1::OrphansReply> for Json {
    fn from(reply: v1::OrphansReply) -> Self {
        let backends = reply.backends.into_iter().map(|backend| Backend {
            backend: backend.backend,
            instances: backend.instances,
            listed_ago_s: backend.listed_ago_s,
            failures: backend.failures,
            error: Some(backend.error).filter(|error| !error.is_empty()),
        });
        let orphans = reply.orphans.into_iter().map(|orphan| Orphan {
            lease: orphan.lease,
            backend: orphan.backend,
            reason: orphan.reason,
            state: orphan.state,
            age_s: orphan.age_s,
            failed: orphan.failed,
        });
        Self {
            backends: backends.collect(),
            orphans: orphans.collect(),
        }
    }
}

/// A warning for each backend of which it is not known now what it has.
fn unlisted(reply: &v1::OrphansReply) -> impl Iterator<Item = String> + '_ {
    let unsure = |backend: &&v1::BackendState| backend.failures > 0 || backend.instances.is_none();
    reply.backends.iter().filter(unsure).map(|backend| {
        let since = match backend.listed_ago_s {
            Some(age) => format!("since {age} s ago"),
            None => "since the node started".to_owned(),
        };
        let name = &backend.backend;
        if backend.failures == 0 {
            return format!("warning: backend {name} was not listed yet");
        }
        format!(
            "warning: backend {name} could not be listed {since}: {}",
            backend.error
        )
    })
}

fn text(orphans: &[v1::Orphan]) -> String {
    let head = ["LEASE", "BACKEND", "REASON", "STATE", "AGE"];
    let head = head.map(str::to_owned).to_vec();
    let body = orphans.iter().map(|orphan| {
        let state = match orphan.failed {
            0 => orphan.state.clone(),
            failed => format!("{} ({failed} attempts failed)", orphan.state),
        };
        vec![
            orphan.lease.clone(),
            orphan.backend.clone(),
            orphan.reason.clone(),
            state,
            format!("{} s", orphan.age_s),
        ]
    });
    out::table(&std::iter::once(head).chain(body).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> v1::OrphansReply {
        v1::OrphansReply {
            backends: vec![v1::BackendState {
                backend: "sandbox".to_owned(),
                instances: Some(2),
                listed_ago_s: Some(90),
                failures: 3,
                error: "cannot list leases: permission denied".to_owned(),
            }],
            orphans: vec![v1::Orphan {
                lease: "09".repeat(16),
                backend: "sandbox".to_owned(),
                reason: "closed-lease".to_owned(),
                state: "failing".to_owned(),
                age_s: 130,
                failed: 2,
            }],
        }
    }

    #[test]
    fn orphans_are_shown_for_people() {
        let shown: Vec<_> = unlisted(&reply()).chain([text(&reply().orphans)]).collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        warning: backend sandbox could not be listed since 90 s ago: cannot list leases: permission denied
        LEASE                             BACKEND  REASON        STATE                        AGE
        09090909090909090909090909090909  sandbox  closed-lease  failing (2 attempts failed)  130 s
        ");
    }

    #[test]
    fn orphans_are_shown_for_scripts() {
        let json = serde_json::to_string(&Json::from(reply())).expect("JSON");
        insta::assert_snapshot!(json, @r#"{"backends":[{"backend":"sandbox","instances":2,"listed_ago_s":90,"failures":3,"error":"cannot list leases: permission denied"}],"orphans":[{"lease":"09090909090909090909090909090909","backend":"sandbox","reason":"closed-lease","state":"failing","age_s":130,"failed":2}]}"#);
    }
}
