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
