use std::collections::BTreeSet;

use super::*;

fn parse(text: &str) -> Result<Config, Mistakes> {
    Config::parse(text, Path::new("/etc/souk"))
}

fn mistakes(text: &str) -> String {
    parse(text).expect_err("has mistakes").to_string()
}

#[test]
fn the_defaults_are_valid_and_say_nothing_new() {
    assert_eq!(parse(DEFAULT).expect("valid"), parse("").expect("valid"));
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = parse("").expect("valid");
    assert_eq!(config.node.data_dir, Path::new("/etc/souk/data"));
    assert_eq!(
        config.control_socket,
        Path::new("/etc/souk/data/control.sock")
    );
    let absolute = parse("[node]\ndata_dir = \"/srv\"").expect("valid");
    assert_eq!(absolute.node.data_dir, Path::new("/srv"));
}

#[test]
fn a_monitoring_socket_has_a_mode_and_there_is_none_by_default() {
    assert_eq!(parse("").expect("valid").monitor_socket, None);
    let config = parse("[control]\nmonitor_socket = \"/run/souk/m\"").expect("valid");
    let expected = MonitorSocket {
        path: "/run/souk/m".into(),
        mode: 0o660,
    };
    assert_eq!(config.monitor_socket, Some(expected));
    let shown = mistakes("[control]\nmonitor_mode = \"0777\"");
    assert!(shown.contains("control.monitor_mode"), "{shown}");
}

#[test]
fn every_default_is_read_by_the_type_that_it_configures() {
    // A key that nobody reads would take any value.
    let table = toml::de::DeTable::parse(DEFAULT)
        .expect("TOML")
        .into_inner();
    for (section, body) in &table {
        for key in body.get_ref().as_table().expect("section").keys() {
            let (section, key) = (section.get_ref(), key.get_ref());
            let text = format!("[{section}]\n{key} = 1979-05-27\n");
            let shown = mistakes(&text);
            assert!(
                shown.contains(&format!("{section}.{key}")),
                "{section}.{key} is not read: {shown}"
            );
        }
    }
}

#[test]
fn a_template_holds_what_was_set_and_the_defaults_as_comments() {
    let text = template(&[
        ("network", "name", "\"mine\""),
        ("metrics", "listen", "\"127.0.0.1:9\""),
    ]);
    let config = parse(&text).expect("valid");
    assert!(config.network.id.as_str().starts_with("mine."));
    assert_eq!(config.metrics_listen.map(|address| address.port()), Some(9));
    let keys = |text: &str| text.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(keys(&text), keys(DEFAULT));
    assert_eq!(
        parse(&template(&[])).expect("valid"),
        parse("").expect("valid")
    );
}

#[test]
fn all_mistakes_are_found_at_once_with_their_lines() {
    let text = "[network]\nmean_delay_ms = 60000\n\n[node]\nlisten = [\"tcp:80\"]\nmdsn = true\n\n[metrics]\nlisten = \"0.0.0.0:80\"\n";
    let error = parse(text).expect_err("has mistakes");
    let lines: BTreeSet<_> = error.iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, BTreeSet::from([2, 5, 6, 9]));
    assert!(error.to_string().contains("did you mean `mdns`?"));
}

#[test]
fn a_key_in_the_wrong_section_is_sent_home() {
    assert!(mistakes("[node]\nwork_bits = 3\n").contains("`work_bits` belongs under [provider]"));
    assert!(mistakes("mean_delay_ms = 3\n").contains("`mean_delay_ms` belongs under [network]"));
}

#[test]
fn a_syntax_error_has_its_line() {
    let error = parse("[node]\nlisten = [\n").expect_err("has mistakes");
    assert!(error.iter().any(|mistake| mistake.line >= 2), "{error}");
}

#[test]
fn a_provider_must_agree_to_share_its_kernel() {
    let shown = mistakes("[node]\nroles = [\"provider\"]\n");
    assert!(shown.contains("allow_shared_kernel = true"), "{shown}");
    let agreed = "[node]\nroles = [\"provider\"]\n[provider]\nallow_shared_kernel = true\n";
    assert!(parse(agreed).expect("valid").has(Role::Provider));
}

#[test]
fn a_provider_that_serves_nobody_is_a_mistake() {
    let text = "[node]\nroles = [\"provider\"]\n[provider]\nallow_shared_kernel = true\nanonymous = false\n";
    assert!(mistakes(text).contains("serves nobody"));
}

#[test]
fn a_bootstrap_address_names_its_node() {
    assert!(mistakes("[node]\nbootstrap = [\"/ip4/192.0.2.1/tcp/4551\"]\n").contains("/p2p/"));
}

#[test]
fn numbers_outside_their_range_name_the_range() {
    assert!(mistakes("[network]\nepoch_s = 5\n").contains("from 10 to 604800"));
    assert!(mistakes("[network]\nepoch_s = -5\n").contains("from 10 to 604800"));
    assert!(
        mistakes("[network]\nepoch_s = 99999999999999999999999\n").contains("from 10 to 604800")
    );
}

#[test]
fn a_wrong_switch_hides_nothing_and_is_told_once() {
    let provider = "[node]\nroles = [\"provider\"]\n[provider]\nallow_shared_kernel = true\n";
    for wrong in [
        "anonymous = \"yes\"",
        "anonymous = false\nissuers = [\"zz\"]",
    ] {
        let error =
            parse(&format!("{provider}work_bits = 99\n{wrong}\n")).expect_err("has mistakes");
        assert_eq!(error.iter().count(), 2, "{error}");
        assert!(error.to_string().contains("work_bits is 99"), "{error}");
    }
    let unclear =
        parse("[node]\nroles = [\"provider\"]\n[provider]\nallow_shared_kernel = \"yes\"\n");
    let unclear = unclear.expect_err("has a mistake");
    assert_eq!(unclear.iter().count(), 1, "{unclear}");
    let unmeant =
        parse("[provider]\nanonymous = false\nwork_bits = 99\n").expect_err("has a mistake");
    assert_eq!(unmeant.iter().count(), 1, "{unmeant}");
}

#[test]
fn a_broken_heading_makes_no_mistakes_of_what_stands_below() {
    let shown = mistakes("[network\nname = \"mine\"\n");
    assert!(!shown.contains("section `name`"), "{shown}");
}

#[test]
fn what_is_allowed_and_hardly_meant_is_said() {
    let warned = |text: &str| parse(text).expect("valid").warnings();
    assert_eq!(warned(""), Vec::<String>::new());
    let private = "listen = [\"/ip4/192.168.1.2/tcp/4551\"]\n";
    for address in [
        private,
        "external = [\"/ip4/10.0.0.1/tcp/1\"]\n",
        "listen = [\"/ip6/::1/tcp/4551\"]\n",
    ] {
        let warnings = warned(&format!("[node]\n{address}"));
        assert_eq!(warnings.len(), 1, "{address}: {warnings:?}");
        assert!(warnings[0].contains("node.external"), "{warnings:?}");
    }
    let reached = format!("[node]\n{private}external = [\"/ip4/9.9.9.9/tcp/1\"]\n");
    assert_eq!(warned(&reached), Vec::<String>::new());
    assert!(warned("[node]\nmdns = true\n")[0].contains("node.mdns"));
    let direct = "[provider]\ndirect_address = \"10.0.0.1\"\n";
    assert!(warned(direct)[0].contains("10.0.0.1"));
    // On a test network all of that is what one wants.
    let all = format!("{reached}mdns = true\n{direct}[network]\ntest = true\n");
    assert_eq!(warned(&all), Vec::<String>::new());
    // Who has no role listens to nobody.
    assert_eq!(
        warned(&format!("[node]\nroles = []\n{private}")),
        Vec::<String>::new()
    );
}

#[test]
fn bytes_that_are_no_text_are_a_mistake_with_a_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("souk.toml");
    fs::write(&path, b"[node]\noperator = \"\xe9\"\n").expect("written");
    match Config::load(&path) {
        Err(ConfigError::Mistakes { mistakes, .. }) => {
            assert_eq!(mistakes.iter().next().map(|mistake| mistake.line), Some(2));
        }
        other => panic!("{other:?}"),
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_document_of_known_names_panics(
        section in "network|node|provider|limits|log|x",
        key in "name|listen|roles|issuers|work_bits|filter|y",
        value in "[-0-9a-z\"\\[\\]{}=,.]{0,12}",
    ) {
        let _ = parse(&format!("[{section}]\n{key} = {value}\n"));
    }
}
