//! What an operator sees of a node and does to it by commands; and that what a node exports is what the documentation says, and what
//! the shipped dashboard and alerts ask for.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use souk_tests::{Network, NodeUnderTest, Plan, eventually, needs, skipped, souk, succeed};
use tempfile::TempDir;

/// The root of the sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shipped(file: &str) -> PathBuf {
    sources().join("node/packaging").join(file)
}

/// The metrics of the documentation, as their series are named.
fn documented() -> BTreeSet<String> {
    let page = fs::read_to_string(sources().join("docs/metrics.md")).expect("the page");
    let names = page.lines().filter_map(|line| line.strip_prefix("| `"));
    names
        .filter(|rest| !rest.starts_with('/'))
        .filter_map(|rest| rest.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The metrics that a node exports, as their series are named; those of the library apart.
fn exported(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let named = types.filter_map(|line| line.split_once(' '));
    named
        .filter(|(name, _)| !name.starts_with("libp2p_"))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        })
        .collect()
}

fn metrics(node: &NodeUnderTest) -> String {
    let said = succeed(&mut node.souk(&["node", "metrics"]));
    String::from_utf8(said.stdout).expect("text")
}

/// What a node answers over HTTP: the status, and what comes behind the headers.
fn asked(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    let status = head.split(' ').nth(1).expect("a status line");
    (status.parse().expect("a number"), body.to_owned())
}

#[test]
fn nodes_export_what_is_documented_and_say_when_they_are_ready() {
    needs!(Leases);
    let network = Network::start(&Plan {
        more: "[metrics]\nlisten = \"127.0.0.1:0\"".to_owned(),
        ..Plan::default()
    });
    let provider = network.provider();
    let address = provider.metrics_address();
    eventually("the provider is ready", || {
        (asked(&address, "/readyz").0 == 200).then_some(())
    });
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    let _ = requester.json(&["end", "--json", lease.lease()]);

    eventually("the closed lease is summed", || {
        (overview(provider)["account"]["lifetime"]["leases"] == 1).then_some(())
    });
    // Nobody has asked for metrics in this hour.
    let text = metrics(provider);
    assert!(text.contains("\nsouk_leases_closed_total 1\n"), "{text}");
    assert!(text.contains("\nsouk_ready 1\n"), "{text}");
    assert_eq!(asked(&address, "/healthz"), (200, "ok\n".to_owned()));
    let (status, over_http) = asked(&address, "/metrics");
    assert_eq!(status, 200);
    assert_eq!(exported(&over_http), exported(&text));
    assert_eq!(exported(&text), documented());
    // A stranger's own words are no label.
    assert!(!text.contains("external_addr_candidates_total{"), "{text}");

    let _ = provider.json(&["node", "drain", "--no-wait", "--json"]);
    let (status, why) = asked(&address, "/readyz");
    assert_eq!((status, why.as_str()), (503, "this node is draining\n"));
    assert_eq!(asked(&address, "/healthz").0, 200);
}

/// The overview of `souk status --json`.
fn overview(node: &NodeUnderTest) -> Value {
    node.json(&["status", "--json"])["overview"].clone()
}

/// How a command of the node's ends, and what it says on stderr.
fn fails(node: &NodeUnderTest, args: &[&str]) -> (Option<i32>, String) {
    let said = node.souk(args).output().expect("it runs");
    let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
    (said.status.code(), complaint)
}

#[test]
fn an_operator_sees_the_node_at_a_glance_and_acts_on_it_by_commands() {
    needs!(Leases);
    let network = Network::start(&Plan {
        mixes: 1,
        ..Plan::default()
    });
    let provider = network.provider();
    let seen = eventually("the provider works, and its log was read", || {
        let seen = overview(provider);
        (seen["max_leases"].as_u64()? > 0 && seen["account"].is_object()).then_some(seen)
    });
    assert_eq!(seen["backends"][0]["state"]["backend"], "sandbox", "{seen}");
    assert_eq!(seen["backends"][0]["paused"], false, "{seen}");
    let status = succeed(&mut provider.souk(&["status"]));
    let status = String::from_utf8(status.stdout).expect("text");
    for shown in [provider.id(), "open", "0 of ", "earned 0", "1 peer, "] {
        assert!(status.contains(shown), "{shown}: {status}");
    }

    let sequence = seen["card"]["sequence"].as_u64().expect("a card");
    succeed(&mut provider.souk(&["node", "refresh-card"]));
    eventually("a newer card", || {
        (overview(provider)["card"]["sequence"].as_u64()? > sequence).then_some(())
    });
    for (command, paused) in [("pause", true), ("unpause", false)] {
        succeed(&mut provider.souk(&["node", command, "sandbox"]));
        eventually("the next snapshot shows it", || {
            (overview(provider)["backends"][0]["paused"] == paused).then_some(())
        });
    }

    let (code, said) = fails(provider, &["node", "pause", "nowhere"]);
    assert!(
        code == Some(1) && said.contains("nowhere"),
        "{code:?} {said}"
    );
    let (code, said) = fails(provider, &["node", "pause", "no name"]);
    assert!(
        code == Some(64) && said.contains("no name of a backend"),
        "{code:?} {said}"
    );
    let nothing = "00".repeat(16);
    let (code, said) = fails(provider, &["node", "reap", "sandbox", &nothing]);
    assert!(
        code == Some(1) && said.contains(&nothing),
        "{code:?} {said}"
    );
    let (code, said) = fails(provider, &["node", "reap", "sandbox", "short"]);
    assert!(
        code == Some(64) && said.contains("no lease id"),
        "{code:?} {said}"
    );
}

#[test]
fn the_doctor_finds_nothing_bad_at_a_healthy_provider_rents_from_it_and_finds_a_node_that_is_gone()
{
    needs!(Leases);
    let mut network = Network::start(&Plan::default());
    // The first node of a network was told of nobody; when it starts again, it is told of the others.
    network.provider_mut().process().stop();
    network.start_provider_again("again");
    let provider = network.provider();
    let all_are = |report: &Value, check: &str, state: &str| {
        let findings = report["findings"].as_array().expect("findings");
        let mut of = findings.iter().filter(|f| f["check"] == check).peekable();
        of.peek().is_some() && of.all(|f| f["state"] == state)
    };
    eventually("the others know where it is now", || {
        let said = provider.souk(&["doctor"]).output().ok()?;
        said.status.success().then_some(())
    });
    let said = provider.souk(&["doctor", "--json", "--lease"]).output();
    let said = said.expect("it runs");
    let report: Value = serde_json::from_slice(&said.stdout).expect("a report");
    assert!(said.status.success() && report["bad"] == 0, "{report}");
    for check in ["sandbox", "card", "peers", "seen by others", "lease"] {
        assert!(all_are(&report, check, "fine"), "{check}: {report}");
    }
    let shown = succeed(&mut provider.souk(&["doctor"]));
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains("ok    seen by others"), "{shown}");

    network.provider_mut().process().stop();
    let said = network.provider().souk(&["doctor", "--json"]).output();
    let said = said.expect("it runs");
    assert_eq!(said.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&said.stdout).expect("a report");
    assert!(all_are(&report, "node", "bad"), "{report}");
}

#[test]
fn the_configuration_of_the_debian_package_is_taken_as_it_is() {
    let shipped = shipped("debian/souk.toml");
    succeed(Command::new(souk()).args(["config", "check"]).arg(shipped));
}

fn promtool() -> Option<PathBuf> {
    env::var_os("SOUK_TEST_PROMTOOL").map(PathBuf::from)
}

/// Advice of `promtool` about names is for the library's metrics too, and is not asked for.
#[test]
fn what_a_node_exports_is_taken_by_prometheus_needs_promtool() {
    needs!(Leases);
    let Some(promtool) = promtool() else {
        return skipped("needs promtool; SOUK_TEST_PROMTOOL names none");
    };
    let network = Network::start(&Plan {
        mixes: 1,
        ..Plan::default()
    });
    let text = metrics(network.provider());
    let ours = text.lines().filter(|line| !line.contains("libp2p_"));
    let ours: String = ours.map(|line| format!("{line}\n")).collect();
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut input = check.stdin.take().expect("piped");
    input.write_all(ours.as_bytes()).expect("it reads");
    drop(input);
    let said = check.wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!complaint.contains("error while linting"), "{complaint}");
}

/// All queries of the dashboard, with what Grafana fills in.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array());
    targets
        .flatten()
        .map(|target| target["expr"].as_str().expect("a query"))
        .map(|query| {
            query
                .replace("$__rate_interval", "5m")
                .replace("$instance", ".*")
        })
        .collect()
}

/// The metrics that a text asks for.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("souk_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_documented_metrics_only_needs_promtool() {
    let dashboard = fs::read(shipped("grafana/souk.json")).expect("shipped");
    let dashboard: Value = serde_json::from_slice(&dashboard).expect("JSON");
    let queries = queries(&dashboard);
    assert!(queries.len() > 20, "{queries:?}");
    let alerts = fs::read_to_string(shipped("prometheus/alerts.yml")).expect("shipped");
    let expressions: String = alerts
        .lines()
        .filter(|line| line.trim_start().starts_with("expr:"))
        .collect();
    let documented = documented();
    for text in queries.iter().chain([&expressions]) {
        let unknown: Vec<_> = named(text).difference(&documented).cloned().collect();
        assert!(unknown.is_empty(), "{unknown:?} in {text}");
    }

    let Some(promtool) = promtool() else {
        return skipped("needs promtool; SOUK_TEST_PROMTOOL names none");
    };
    let folder = TempDir::new().expect("a folder");
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(at, query)| json!({"record": format!("query:{at}"), "expr": query}))
        .collect();
    // JSON is YAML.
    let as_rules = folder.path().join("queries.yml");
    let groups = json!({"groups": [{"name": "queries", "rules": rules}]});
    fs::write(&as_rules, groups.to_string()).expect("written");
    for (what, file) in [
        ("rules", as_rules),
        ("rules", shipped("prometheus/alerts.yml")),
        ("config", shipped("prometheus/scrape.yml")),
    ] {
        succeed(Command::new(&promtool).args(["check", what]).arg(file));
    }
}
