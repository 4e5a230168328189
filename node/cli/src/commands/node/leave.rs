//! `souk node drain`, `resume`, `retire` and `succeed`: how a node stops taking leases.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use souk_crypto::UnixTime;
use souk_market::standing::FAREWELL_S;
use souk_node::{
    control::{Client, v1},
    unix_now,
};

use crate::{
    commands::{DONE, NodeHere, unreached, wait},
    failure::{Failure, USAGE},
    out,
    progress::Progress,
};

/// Between two looks at a node that drains.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub(crate) struct Drain {
    #[command(flatten)]
    node: NodeHere,
    /// End the leases that are still open so long from now: 90s, 30m, 12h or 7d [default: each runs to its own end]
    #[arg(long, value_name = "SPAN")]
    deadline: Option<Span>,
    /// Return at once; the node goes on draining
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resume {
    #[command(flatten)]
    node: NodeHere,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Retire {
    #[command(flatten)]
    node: NodeHere,
    /// The peer id of the node that takes over
    #[arg(long, value_name = "ID", requires = "agreement")]
    successor: Option<String>,
    /// What `souk node succeed` wrote at that node
    #[arg(long, value_name = "FILE", requires = "successor")]
    agreement: Option<PathBuf>,
    /// End the leases that are still open so long from now: 90s, 30m, 12h or 7d [default: each runs to its own end]
    #[arg(long, value_name = "SPAN")]
    deadline: Option<Span>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Return at once; the node retires when the last lease has ended
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON object
    #[arg(long, requires = "yes")]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Succeed {
    #[command(flatten)]
    node: NodeHere,
    /// The peer id of the node that retires
    old: String,
    /// Where the agreement is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// How a node stands, as scripts read it.
#[derive(Debug, Serialize)]
struct Json {
    standing: String,
    since_unix_s: Option<u64>,
    deadline_unix_s: Option<u64>,
    open_leases: u32,
    last_valid_to_unix_s: Option<u64>,
    last_closed_unix_s: Option<u64>,
}

impl From<v1::StandingReply> for Json {
    fn from(reply: v1::StandingReply) -> Self {
        Self {
            standing: reply.standing,
            since_unix_s: reply.since_unix_s,
            deadline_unix_s: reply.deadline_unix_s,
            open_leases: reply.open_leases,
            last_valid_to_unix_s: reply.last_valid_to_unix_s,
            last_closed_unix_s: reply.last_closed_unix_s,
        }
    }
}

impl Drain {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let reply = wait(async {
            let mut node = self.node.connect().await?;
            let deadline = self.deadline.map(|span| span.after_now().0);
            let began = node.drain(deadline).await;
            let began = began.map_err(|error| unreached(&error))?;
            if self.no_wait {
                return Ok(began);
            }
            if !self.json {
                out::note(text(&began, unix_now()));
                out::note(
                    "Ctrl-C stops the waiting, not the draining; `souk node resume` takes leases again",
                );
            }
            watch(&mut node, |now| {
                now.standing == "draining" && now.open_leases > 0
            })
            .await
        })?;
        show(reply, self.json);
        DONE
    }
}

impl Resume {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let reply = wait(async {
            let mut node = self.node.connect().await?;
            node.resume().await.map_err(|error| unreached(&error))
        })?;
        show(reply, self.json);
        DONE
    }
}

impl Retire {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let reply = wait(async {
            let mut node = self.node.connect().await?;
            if !self.yes {
                let now = node.standing().await.map_err(|error| unreached(&error))?;
                out::note(plan(
                    &now,
                    self.successor.as_deref(),
                    self.deadline,
                    unix_now(),
                ));
                if !confirmed()? {
                    return Err(Failure::new("nothing was changed"));
                }
            }
            let successor = match (&self.successor, &self.agreement) {
                (Some(node_id), Some(file)) => Some(v1::Successor {
                    node_id: node_id.clone(),
                    agreement: read(file)?,
                }),
                _ => None,
            };
            let request = v1::RetireRequest {
                deadline_unix_s: self.deadline.map(|span| span.after_now().0),
                successor,
            };
            let began = node.retire(request).await;
            let began = began.map_err(|error| unreached(&error))?;
            if self.no_wait {
                return Ok(began);
            }
            if !self.json && began.open_leases > 0 {
                out::note(text(&began, unix_now()));
                out::note(
                    "Ctrl-C stops the waiting, not the retiring; `souk node resume` takes it back",
                );
            }
            watch(&mut node, |now| now.standing == "retiring").await
        })?;
        show(reply, self.json);
        DONE
    }
}

impl Succeed {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let agreement = wait(async {
            let mut node = self.node.connect().await?;
            let agreed = node.agree(self.old.clone()).await;
            agreed.map_err(|error| unreached(&error))
        })?;
        let written = fs::File::create_new(&self.out)
            .and_then(|mut file| file.write_all(&agreement).and_then(|()| file.sync_all()));
        written.map_err(|error| {
            Failure::because(format_args!("cannot write {}", self.out.display()), &error)
        })?;
        out::line(format_args!(
            "this node agrees to succeed {}; carry {} there, for `souk node retire --successor … --agreement …`",
            self.old,
            self.out.display()
        ));
        DONE
    }
}

/// Looks until nothing is to be waited for any more; shows on stderr how many leases are left.
async fn watch(
    node: &mut Client,
    waits: impl Fn(&v1::StandingReply) -> bool,
) -> Result<v1::StandingReply, Failure> {
    let progress = Progress::start("waiting for open leases to end");
    loop {
        let now = node.standing().await.map_err(|error| unreached(&error))?;
        if !waits(&now) {
            return Ok(now);
        }
        progress.step(&match now.open_leases {
            0 => "waiting for the last holders to fetch their statements".to_owned(),
            1 => "1 lease is open".to_owned(),
            open => format!("{open} leases are open"),
        });
        tokio::time::sleep(LOOK).await;
    }
}

fn show(reply: v1::StandingReply, json: bool) {
    if json {
        out::json(&Json::from(reply));
    } else {
        out::line(text(&reply, unix_now()));
    }
}

fn text(reply: &v1::StandingReply, now: UnixTime) -> String {
    let stands = match reply.standing.as_str() {
        "open" => "the node takes leases",
        "draining" => "the node takes no new leases",
        "retiring" => "the node takes no new leases, and retires when the last has ended",
        "retired" => "the node has retired",
        other => other,
    };
    match (reply.standing.as_str(), reply.open_leases) {
        ("open" | "retired", _) => stands.to_owned(),
        (_, 0) => format!("{stands}; none is open"),
        (_, open) => format!("{stands}; {open} open, {}", until(reply, now)),
    }
}

fn until(reply: &v1::StandingReply, now: UnixTime) -> String {
    match (reply.deadline_unix_s, reply.last_valid_to_unix_s) {
        (Some(deadline), _) => format!("ended at {}", out::time(UnixTime(deadline), now)),
        (None, Some(last)) => format!("the last ends at {}", out::time(UnixTime(last), now)),
        (None, None) => "they run to their ends".to_owned(),
    }
}

/// What a retirement will do, for the one who has to say yes.
fn plan(
    now_stands: &v1::StandingReply,
    successor: Option<&str>,
    deadline: Option<Span>,
    now: UnixTime,
) -> String {
    let mut lines = vec!["The node will retire:".to_owned()];
    lines.push("- it takes no new leases from now on".to_owned());
    match (now_stands.open_leases, deadline) {
        (0, _) => {}
        (open, Some(span)) => lines.push(format!(
            "- {open} open: what is left is ended at {}",
            out::time(now.plus_s(span.0), now)
        )),
        (open, None) => lines.push(format!(
            "- {open} open: it waits until the last has ended, at {} at the latest",
            out::time(
                UnixTime(now_stands.last_valid_to_unix_s.unwrap_or(now.0)),
                now
            )
        )),
    }
    let farewell = now_stands.last_closed_unix_s.map(|at| at + FAREWELL_S);
    let when = match (now_stands.open_leases, farewell) {
        (0, Some(end)) if end > now.0 => format!(
            "no lease is open; at {}, ten minutes after the last one,",
            out::time(UnixTime(end), now)
        ),
        (0, _) => "no lease is open: at once".to_owned(),
        _ => "ten minutes after the last lease".to_owned(),
    };
    lines.push(format!(
        "- {when} it tells all nodes that this identity has ended; that cannot be taken back"
    ));
    lines.push(match successor {
        Some(heir) => format!("- it names {heir} as its successor"),
        None => "- it names no successor".to_owned(),
    });
    lines.join("\n")
}

fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new("nobody can be asked: stdin is no terminal")
            .hint("say --yes if that is what you want")
            .code(USAGE));
    }
    let _ = write!(io::stderr().lock(), "Type \"retire\" to go on: ");
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::because("cannot read the answer", &error))?;
    Ok(answer.trim() == "retire")
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file)
        .map_err(|error| Failure::because(format_args!("cannot read {}", file.display()), &error))
}

/// A span of time, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span(u64);

impl Span {
    fn after_now(self) -> UnixTime {
        unix_now().plus_s(self.0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no span; write for example 90s, 30m, 12h or 7d");
        let unit = text.char_indices().next_back().ok_or_else(wrong)?;
        let seconds = match unit.1 {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = text[..unit.0].parse().map_err(|_| wrong())?;
        count.checked_mul(seconds).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_795_200_000);

    fn standing(standing: &str, open_leases: u32, deadline: Option<u64>) -> v1::StandingReply {
        v1::StandingReply {
            standing: standing.to_owned(),
            since_unix_s: Some(NOW.0),
            deadline_unix_s: deadline,
            open_leases,
            last_valid_to_unix_s: (open_leases > 0).then_some(NOW.0 + 7_200),
            last_closed_unix_s: (open_leases == 0).then_some(NOW.0 - 240),
        }
    }

    #[test]
    fn spans_have_a_unit() {
        assert_eq!("90s".parse(), Ok(Span(90)));
        assert_eq!("12h".parse(), Ok(Span(43_200)));
        for wrong in ["", "h", "90", "1.5h", "-1d", "9999999999999999999d", "3 m"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_standing_is_shown_for_people() {
        let shown = [
            text(&standing("open", 2, None), NOW),
            text(&standing("draining", 2, None), NOW),
            text(&standing("draining", 1, Some(NOW.0 + 600)), NOW),
            text(&standing("retiring", 0, None), NOW),
            text(&standing("retired", 0, None), NOW),
        ];
        insta::assert_snapshot!(shown.join("\n"), @r"
        the node takes leases
        the node takes no new leases; 2 open, the last ends at 2026-11-20 20:40:00 UTC, in 2 h
        the node takes no new leases; 1 open, ended at 2026-11-20 18:50:00 UTC, in 10 min
        the node takes no new leases, and retires when the last has ended; none is open
        the node has retired
        ");
    }

    #[test]
    fn who_retires_a_node_is_told_what_will_happen() {
        let plan = plan(
            &standing("open", 2, None),
            Some("12D3KooWHeir"),
            Some(Span(3_600)),
            NOW,
        );
        insta::assert_snapshot!(plan, @r"
        The node will retire:
        - it takes no new leases from now on
        - 2 open: what is left is ended at 2026-11-20 19:40:00 UTC, in 60 min
        - ten minutes after the last lease it tells all nodes that this identity has ended; that cannot be taken back
        - it names 12D3KooWHeir as its successor
        ");
    }

    #[test]
    fn who_retires_a_node_without_leases_is_told_when_the_last_holder_has_had_its_time() {
        let soon = plan(&standing("open", 0, None), None, None, NOW);
        let idle = v1::StandingReply {
            last_closed_unix_s: None,
            ..standing("open", 0, None)
        };
        let shown = [soon, plan(&idle, None, None, NOW)];
        insta::assert_snapshot!(shown.join("\n"), @r"
        The node will retire:
        - it takes no new leases from now on
        - no lease is open; at 2026-11-20 18:46:00 UTC, in 6 min, ten minutes after the last one, it tells all nodes that this identity has ended; that cannot be taken back
        - it names no successor
        The node will retire:
        - it takes no new leases from now on
        - no lease is open: at once it tells all nodes that this identity has ended; that cannot be taken back
        - it names no successor
        ");
    }
}
