//! What the demo tells: a story for people, or one object for scripts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde::Serialize;
use souk_node::control::v1;

use super::{
    network::{Network, REQUESTER},
    search::Findings,
    visit::Session,
};
use crate::{
    commands::{end::Account, log::Verified, rent::Rented},
    failure::{FAILED, Failure},
    out,
};

/// The parts of the demo.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Machine,
    Network,
    Rent,
    Ssh,
    End,
    Verify,
    Search,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Network => "network",
            Self::Rent => "rent",
            Self::Ssh => "use",
            Self::End => "end",
            Self::Verify => "verify",
            Self::Search => "search",
        }
    }
}

/// What happened so far.
pub(super) struct Report {
    json: bool,
    object: Object,
}

/// The object of `souk demo --json`.
#[derive(Default, Serialize)]
struct Object {
    lease: Option<String>,
    ssh_exit_code: Option<i32>,
    receipt_bytes: Option<usize>,
    usage: Option<crate::commands::end::Usage>,
    proof_verified: bool,
    /// Hashes of the inclusion proof; that of a log with one entry has none.
    proof_hashes: Option<usize>,
    checkpoint: Option<String>,
    /// Milliseconds by part; `mixing_mean` is how much of them is mixing delay, on average.
    timings_ms: BTreeMap<String, u64>,
    /// What a search of the provider's files for the requester came to.
    search: Option<Findings>,
    /// Where the network that was left running has its files, with `--keep`.
    folder: Option<PathBuf>,
    /// The step that was begun last.
    step: Option<&'static str>,
    /// What did not hold; empty on success.
    failures: Vec<String>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            object: Object::default(),
        }
    }

    pub(super) fn begin(&self, folder: &Path) {
        self.say(format_args!(
            "souk demo: five processes on loopback, in {}",
            folder.display()
        ));
    }

    /// Says what begins, for whoever waits.
    pub(super) fn step(&mut self, step: Step) {
        self.object.step = Some(step.name());
        let text = match step {
            Step::Machine => {
                "may this user make namespaces? an image from this machine's own programs; three mixes"
            }
            Step::Network => "a provider joins",
            Step::Rent => {
                "by a requester with a fresh identity, over three mixes; a neighbour rents beside it"
            }
            Step::Ssh => "over a relay that is neither the requester's entry nor the provider",
            Step::End => "and wait for the provider's next checkpoint",
            Step::Verify => "the whole usage log, as anybody can",
            Step::Search => "what the provider wrote, for anything of the requester's",
        };
        let (number, name) = (step as usize + 1, step.name());
        self.say(format_args!("\n{number} {name:<9} {text}"));
    }

    pub(super) fn image(&mut self, image: &BTreeMap<&'static str, String>, took: Duration) {
        self.time("image_and_mixes", took);
        self.tell(
            took,
            format_args!(
                "image {} of {} files, {} MiB",
                image["hash"], image["files"], image["mib"]
            ),
        );
    }

    pub(super) fn network(&mut self, network: &Network, took: Duration) {
        self.time("network", took);
        let count = network.nodes().count();
        self.tell(
            took,
            format_args!(
                "{}: {count} nodes, each with the signed cards of all",
                network.id()
            ),
        );
        for (name, ready) in network.nodes() {
            self.say(format_args!("            {name:<9} {}", ready.node_id));
        }
    }

    pub(super) fn rented(&mut self, rented: &Rented, took: Duration) {
        self.time("rent", took);
        for (part, ms) in &rented.timings_ms {
            self.object.timings_ms.insert(format!("rent_{part}"), *ms);
        }
        self.object.lease = Some(rented.lease.clone());
        self.object.receipt_bytes = Some(rented.receipt_bytes);
        self.tell(
            took,
            format_args!("lease {} for {}", rented.lease, rented.price),
        );
        self.say(format_args!(
            "            sealed request {} bytes; sealed receipt {} bytes, as every reply",
            rented.request_bytes, rented.receipt_bytes
        ));
        self.say(format_args!(
            "            limits enforced: {}; egress: {}",
            join(&rented.enforced),
            if rented.egress { "open" } else { "none" }
        ));
    }

    pub(super) fn session(&mut self, session: &Session, took: Duration) {
        self.time("ssh", took);
        self.object.ssh_exit_code = Some(session.exit_code);
        for line in session.output.lines() {
            self.say(format_args!("            │ {line}"));
        }
        let job = if session.job_right {
            "the job's answer is right"
        } else {
            "the job's answer is WRONG"
        };
        self.tell(
            took,
            format_args!("{} left with {}; {job}", session.client, session.exit_code),
        );
        let failed = format!("the SSH session failed: {}", session.complaint.trim_end());
        self.hold(session.exit_code == 0, &failed);
        self.hold(
            session.job_right,
            "the job in the lease gave a wrong answer",
        );
    }

    pub(super) fn account(&mut self, account: &Account, took: Duration) {
        self.time("end", took);
        self.object.proof_verified = account.proof_verified;
        self.object.proof_hashes = account.proof_hashes;
        self.object.checkpoint.clone_from(&account.checkpoint);
        if let Some(usage) = &account.usage {
            let reading = |reading: Option<u64>| {
                reading.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
            };
            self.tell(
                took,
                format_args!(
                    "{}: {} core-ms, {} MiB-s, {} bytes in, {} bytes out, charge {}",
                    usage.outcome,
                    reading(usage.cpu_core_ms),
                    reading(usage.memory_mib_s),
                    reading(usage.net_rx_bytes),
                    reading(usage.net_tx_bytes),
                    usage.charge,
                ),
            );
            self.say(format_args!(
                "            entry {} of {}, inclusion proven by {} under the signed root {}",
                account.log_index.unwrap_or_default() + 1,
                account.log_size.unwrap_or_default(),
                out::count(account.proof_hashes.unwrap_or_default(), "hash", "hashes"),
                account.root.as_deref().unwrap_or_default(),
            ));
        }
        self.object.usage.clone_from(&account.usage);
        self.hold(account.usage.is_some(), "no final statement came");
        self.hold(
            account.proof_verified,
            "the inclusion proof was not verified",
        );
        // With one entry in the log, the proof would show nothing.
        self.hold(
            account.proof_hashes.is_some_and(|hashes| hashes > 0),
            "the inclusion proof is empty",
        );
    }

    pub(super) fn verified(&mut self, log: &Verified, took: Duration) {
        self.time("verify", took);
        self.tell(
            took,
            format_args!(
                "{} lead to the root {}",
                out::count(log.size.unwrap_or_default(), "entry", "entries"),
                log.root.as_deref().unwrap_or("none")
            ),
        );
        self.hold(log.verified, "the usage log does not verify");
    }

    pub(super) fn searched(&mut self, findings: Findings, took: Duration) {
        self.time("search", took);
        let found = match findings.found.len() {
            0 => "none stands in them".to_owned(),
            files => format!("FOUND in {files}"),
        };
        self.tell(
            took,
            format_args!(
                "{} identities and keys of the requester in {} files of {} KiB, the store and the log of the process among them: {found}",
                findings.needles,
                findings.files,
                findings.bytes.div_ceil(1024),
            ),
        );
        self.say(format_args!(
            "            (the provider's own id, by the same search: in {}; addresses are all alike on loopback)",
            out::count(findings.found_own, "file", "files")
        ));
        self.object.failures.extend(findings.failures());
        self.object.search = Some(findings);
    }

    /// What each party saw, as far as it counts at all.
    pub(super) fn seen(&self, statuses: Vec<(&'static str, v1::StatusReply)>) {
        self.say(format_args!("\nwhat each party saw"));
        for (name, status) in statuses {
            let count = |wanted: &str| {
                status
                    .mix
                    .iter()
                    .find(|counter| counter.name == wanted)
                    .map_or(0, |counter| counter.value)
            };
            if status.log.is_some() {
                self.say(format_args!(
                    "  {name:<9} {} messages of one size from mixes; keys for this lease alone",
                    count("messages")
                ));
            } else {
                self.say(format_args!(
                    "  {name:<9} {} packets of one size in, {} on to a neighbour, {} into a mailbox",
                    count("frames_in"),
                    count("forwarded"),
                    count("deposited")
                ));
            }
        }
        self.say(format_args!(
            "  entry     besides: the requester's address, and nothing of what it asked whom"
        ));
        self.say(format_args!("  relay     an address and an encrypted session of SSH; not who rents, not what is typed"));
    }

    pub(super) fn took(&mut self, took: Duration, mixing: Duration) {
        self.time("total", took);
        self.time("mixing_mean", mixing);
        self.say(format_args!(
            "\n{} in {:.1} s, of which about {:.1} s are mixing delay",
            if self.object.failures.is_empty() {
                "everything held"
            } else {
                "NOT everything held"
            },
            took.as_secs_f64(),
            mixing.as_secs_f64(),
        ));
        for failure in &self.object.failures {
            self.say(format_args!("  {failure}"));
        }
    }

    /// Tells scripts.
    pub(super) fn finish(&self) {
        if self.json {
            out::json(&self.object);
        }
    }

    /// Tells scripts how far it came, and what went wrong then.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.object.failures.push(failure.in_one_line());
        self.finish();
    }

    /// What to try while the network is left running.
    pub(super) fn keep(&mut self, folder: &Path, network: &Network) {
        self.object.folder = Some(folder.to_owned());
        self.say(format_args!(
            "\nthe network goes on until Ctrl-C; in another terminal:\n"
        ));
        let program = std::env::current_exe().unwrap_or_else(|_| "souk".into());
        let souk = program.display();
        self.say(format_args!(
            "  export SOUK_HOME={}",
            folder.join(REQUESTER).display()
        ));
        for command in ["market", "rent", "leases", "ssh LEASE", "end LEASE"] {
            self.say(format_args!("  {souk} {command}"));
        }
        for (name, ready) in network.nodes() {
            let config = ready
                .control_socket
                .ancestors()
                .nth(2)
                .unwrap_or(folder)
                .join("souk.toml");
            self.say(format_args!(
                "  {souk} status --config {}    # {name}",
                config.display()
            ));
        }
        self.say(format_args!(
            "\nthe folder {} stays; remove it when you are done",
            folder.display()
        ));
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.object.failures.is_empty() {
            0
        } else {
            FAILED
        })
    }

    fn hold(&mut self, held: bool, otherwise: &str) {
        if !held {
            self.object.failures.push(otherwise.to_owned());
        }
    }

    fn time(&mut self, part: &str, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.object.timings_ms.insert(part.to_owned(), ms);
    }

    fn tell(&self, took: Duration, text: impl std::fmt::Display) {
        self.say(format_args!("  {:>5.2} s   {text}", took.as_secs_f64()));
    }

    fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            out::line(text);
        }
    }
}

fn join(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}
