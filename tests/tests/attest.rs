//! `souk attest` with real evidence, as scripts and people use it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use serde_json::Value;
use souk_tests::{souk, succeed};
use tempfile::TempDir;

/// The folder of a package that souk-attest depends on, with the real samples in it.
fn package(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let found = packages
        .iter()
        .find(|package| package["name"] == name)
        .expect("a dependency");
    let manifest = PathBuf::from(found["manifest_path"].as_str().expect("a path"));
    manifest.parent().expect("a folder").to_owned()
}

fn attest(args: &[&str]) -> Output {
    Command::new(souk())
        .arg("attest")
        .args(args)
        .output()
        .expect("souk runs")
}

fn json(args: &[&str]) -> (i32, Value) {
    let output = attest(&[args, &["--json"]].concat());
    let told = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (output.status.code().expect("an exit status"), told)
}

fn has_reason(told: &Value, name: &str) -> bool {
    let reasons = told["reasons"].as_array().expect("reasons");
    reasons.iter().any(|reason| {
        reason
            .as_str()
            .is_some_and(|reason| reason.starts_with(name))
    })
}

fn sample(name: &str) -> (String, String) {
    let folder = package("dcap-qvl").join("sample");
    let path = |name: &str| folder.join(name).display().to_string();
    (path(name), path(&format!("{name}_collateral.json")))
}

/// A policy that accepts what `show` prints of this quote.
fn policy_for(folder: &Path, quote: &str) -> PathBuf {
    let (code, claims) = json(&["show", quote]);
    assert_eq!(code, 0);
    let mut text =
        "version = 1\nkinds = [\"tdx\"]\n\n[[measurement]]\nname = \"the sample\"\ntee = \"tdx\"\n"
            .to_owned();
    for register in [
        "mr_td",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "mr_config_id",
        "mr_owner",
        "mr_owner_config",
    ] {
        let value = claims[register].as_str().expect("a register");
        text += &format!("{register} = \"{value}\"\n");
    }
    let path = folder.join("policy.toml");
    fs::write(&path, text).expect("written");
    path
}

#[test]
fn real_quotes_are_accepted_at_their_day_and_refused_today() {
    let folder = TempDir::new().expect("a folder");
    for (name, day) in [
        ("tdx_quote", "2025-06-20T00:00:00Z"),
        ("tdx_quote_td15ex", "2026-10-09T00:00:00Z"),
    ] {
        let (quote, collateral) = sample(name);
        let policy = policy_for(folder.path(), &quote);
        let policy = policy.to_str().expect("UTF-8");
        let of = |at: &str, more: &[&str]| {
            let args = ["verify", &quote, "--collateral", &collateral, "--at", at];
            json(&[&args, more].concat())
        };

        let (code, told) = of(day, &["--policy", policy]);
        assert_eq!((code, &told["verdict"]), (0, &"accepted".into()), "{told}");
        assert_eq!(
            (&told["tcb_status"], &told["kind"]),
            (&"UpToDate".into(), &"tdx".into())
        );

        let (code, told) = of(day, &[]);
        assert_eq!((code, &told["verdict"]), (2, &"refused".into()));
        assert!(has_reason(&told, "no-reference-value"), "{told}");
        assert_eq!(told["tcb_status"], "UpToDate");

        let (code, told) = of("2026-11-20T18:00:00Z", &["--policy", policy]);
        assert_eq!(code, 2);
        assert!(has_reason(&told, "expired"), "{told}");
    }
}

#[test]
fn what_is_refused_says_why() {
    let (outdated, collateral) = sample("tdx_quote_outdated");
    let (code, told) = json(&[
        "verify",
        &outdated,
        "--collateral",
        &collateral,
        "--at",
        "2026-02-20T00:00:00Z",
    ]);
    assert_eq!(code, 2);
    assert!(has_reason(&told, "no-tcb-level"), "{told}");

    let (sgx, collateral) = sample("sgx_quote");
    let (code, told) = json(&[
        "verify",
        &sgx,
        "--collateral",
        &collateral,
        "--at",
        "2025-06-20T00:00:00Z",
    ]);
    assert_eq!(code, 2);
    assert!(has_reason(&told, "not-tdx"), "{told}");

    let (quote, _) = sample("tdx_quote");
    let (code, told) = json(&["verify", &quote]);
    assert_eq!(code, 2);
    assert!(has_reason(&told, "missing-collateral"), "{told}");
}

#[test]
fn a_real_report_of_a_milan_verifies_from_the_folder_of_its_certificates() {
    let folder = TempDir::new().expect("a folder");
    let certificates = package("sev").join("tests/certs_data");
    let report = certificates.join("report_milan.hex").display().to_string();
    let certificates = certificates.to_str().expect("UTF-8");
    let verify = [
        "verify",
        &report,
        "--collateral",
        certificates,
        "--at",
        "2026-11-20T00:00:00Z",
    ];
    let (code, told) = json(&verify);
    assert_eq!((code, &told["kind"]), (2, &"sev-snp".into()), "{told}");
    assert!(has_reason(&told, "no-reference-value"), "{told}");

    let (_, claims) = json(&["show", &report]);
    let value = |name: &str| claims[name].as_str().expect("hex").to_owned();
    let policy = folder.path().join("policy.toml");
    let text = |rules: &str| {
        format!(
            "version = 1\nkinds = [\"sev-snp\"]\n[snp]\n{rules}\n[[measurement]]\nname = \"the sample\"\ntee = \"sev-snp\"\nmeasurement = \"{}\"\nid_key_digest = \"{}\"\nauthor_key_digest = \"{}\"\nhost_data = \"any\"\n",
            value("measurement"),
            value("id_key_digest"),
            value("author_key_digest")
        )
    };
    let with_policy = [&verify[..], &["--policy", policy.to_str().expect("UTF-8")]].concat();
    fs::write(&policy, text("")).expect("written");
    let (code, told) = json(&with_policy);
    assert_eq!(code, 2);
    assert!(has_reason(&told, "revocation-unchecked"), "{told}");
    let vmpl = claims["vmpl"].as_u64().expect("a number");
    fs::write(
        &policy,
        text(&format!("require_crl = false\nmax_vmpl = {vmpl}")),
    )
    .expect("written");
    let (code, told) = json(&with_policy);
    assert_eq!((code, &told["verdict"]), (0, &"accepted".into()), "{told}");
}

#[test]
fn what_cannot_be_read_is_1_and_what_makes_no_sense_is_64() {
    let folder = TempDir::new().expect("a folder");
    let noise = folder.path().join("noise");
    fs::write(&noise, b"this is no quote").expect("written");
    let noise = noise.to_str().expect("UTF-8");
    let code = |args: &[&str]| attest(args).status.code();
    assert_eq!(code(&["verify", noise]), Some(1));
    assert_eq!(code(&["verify", "/nowhere"]), Some(1));
    let (quote, collateral) = sample("tdx_quote");
    assert_eq!(
        code(&["verify", &quote, "--collateral", "/nowhere"]),
        Some(1)
    );
    assert_eq!(code(&["verify", &quote, "--collateral", noise]), Some(1));
    assert_eq!(code(&["verify"]), Some(64));
    assert_eq!(code(&["verify", &quote, "--at", "yesterday"]), Some(64));
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "version = 1\nkinds = [\"tdx\"]\nmax_aeg_s = 3\n").expect("written");
    let policy = policy.to_str().expect("UTF-8");
    assert_eq!(
        code(&[
            "verify",
            &quote,
            "--collateral",
            &collateral,
            "--policy",
            policy
        ]),
        Some(78)
    );
    let output = attest(&["policy", "check", policy]);
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("did you mean `max_age_s`?"), "{told}");
}

#[test]
fn a_policy_is_explained_with_what_is_odd_about_it_at_a_day() {
    let folder = TempDir::new().expect("a folder");
    let policy = folder.path().join("policy.toml");
    let any = ["mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"].map(|name| format!("{name} = \"any\""));
    let text = format!(
        r#"
version = 1
kinds = ["tdx", "sev-snp"]
max_age_s = 1_209_600
[tdx]
min_tcb_status = "SWHardeningNeeded"
min_tcb_evaluation = 17
allow_debug = true
[snp]
min_microcode = 115
require_crl = false
[[advisory]]
id = "INTEL-SA-00615"
until = "2027-01-01T00:00:00Z"
[[measurement]]
name = "guest 1.0"
tee = "tdx"
not_before = "2026-01-01T00:00:00Z"
not_after = "2026-06-01T00:00:00Z"
{}
"#,
        any.join("\n")
    );
    fs::write(&policy, text).expect("written");
    let policy = policy.to_str().expect("UTF-8");
    let debug = "a guest of tdx under debug is accepted: its host can look into it";
    for (day, odd) in [
        ("2026-03-01T00:00:00Z", vec![debug]),
        (
            "2025-12-31T00:00:00Z",
            vec![
                debug,
                "the reference value \"guest 1.0\" holds from 2026-01-01T00:00:00Z only",
            ],
        ),
        (
            "2027-02-01T00:00:00Z",
            vec![
                debug,
                "INTEL-SA-00615 was tolerated until 2027-01-01T00:00:00Z and is refused now",
                "the reference value \"guest 1.0\" held until 2026-06-01T00:00:00Z only",
            ],
        ),
    ] {
        let check = ["policy", "check", policy, "--at", day];
        let (code, told) = json(&check);
        assert_eq!((code, &told["at"]), (0, &day.into()));
        assert_eq!(told["warnings"], Value::from(odd.clone()));
        let output = attest(&check);
        let screen = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_warning = |line: &&str| line.starts_with("warning");
        assert_eq!(screen.lines().filter(is_warning).count(), odd.len());
        for told in odd {
            assert!(screen.contains(told), "{screen}");
        }
        for rule in [
            "kind: tdx or sev-snp",
            "tdx, debug: on or off",
            "tdx, TCB status: SWHardeningNeeded or better",
            "tdx, TCB evaluation: 17 or later",
            "tdx, advisory: INTEL-SA-00615 tolerated until 2027-01-01T00:00:00Z",
            "sev-snp, VMPL: at most 0",
            "sev-snp, TCB: at least bootloader 0, tee 0, snp 0, microcode 115",
            "sev-snp, revocation list: checked or not",
            "age of the collateral: at most 1209600 s",
        ] {
            assert!(screen.contains(rule), "{rule} is missing in {screen}");
        }
    }
}

#[test]
fn every_sample_has_its_exit_status() {
    let samples = package("dcap-qvl").join("sample");
    let mut seen = Vec::new();
    for entry in fs::read_dir(&samples).expect("samples") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("UTF-8").to_owned();
        let path = path.display().to_string();
        let collateral = format!("{path}_collateral.json");
        let code = |args: &[&str]| attest(args).status.code().expect("an exit status");
        let shown = code(&["show", &path]);
        let alone = code(&["verify", &path]);
        let verified = match Path::new(&collateral).exists() {
            true => code(&["verify", &path, "--collateral", &collateral]),
            false => alone,
        };
        let expected = match name.as_str() {
            // Refused without a policy, whatever their day says.
            "tdx_quote"
            | "tdx_quote_td15ex"
            | "tdx_quote_outdated"
            | "tdx-quote.hex"
            | "quote-from-tappd.hex" => (0, 2, 2),
            // A quote that is none of TDX is refused by name, and there is nothing of it to show.
            "sgx_quote" => (1, 2, 2),
            _ => (1, 1, 1),
        };
        assert_eq!((shown, alone, verified), expected, "{name}");
        seen.push(name);
    }
    for name in [
        "tdx_quote",
        "tdx_quote_td15ex",
        "tdx_quote_outdated",
        "sgx_quote",
    ] {
        assert!(
            seen.iter().any(|seen| seen == name),
            "no {name} in {seen:?}"
        );
    }
}

#[test]
fn hex_is_read_however_it_is_written_and_what_is_no_file_is_1() {
    let folder = TempDir::new().expect("a folder");
    let (quote, collateral) = sample("tdx_quote");
    let digits = hex::encode(fs::read(&quote).expect("a sample"));
    let lines: Vec<_> = digits.as_bytes().chunks(64).collect();
    let lines = String::from_utf8(lines.join(&b"\r\n"[..])).expect("digits");
    let verify = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        let path = path.display().to_string();
        let day = "2025-06-20T00:00:00Z";
        attest(&["verify", &path, "--collateral", &collateral, "--at", day])
    };
    let raw = attest(&[
        "verify",
        &quote,
        "--collateral",
        &collateral,
        "--at",
        "2025-06-20T00:00:00Z",
    ]);
    assert_eq!(raw.status.code(), Some(2), "no policy, no reference value");
    for (name, text) in [
        ("lower", digits.clone()),
        ("upper", digits.to_uppercase()),
        ("prefixed", format!("0x{digits}\n")),
        ("lines", lines),
    ] {
        let read = verify(name, text.as_bytes());
        assert_eq!(read.status.code(), Some(2), "{name}");
        assert_eq!(read.stdout, raw.stdout, "{name}");
    }
    let odd = &digits[..digits.len() - 1];
    let no_digit = format!("{odd}g");
    for (name, text) in [
        ("odd", odd.as_bytes()),
        ("no digit", no_digit.as_bytes()),
        ("half", &digits.as_bytes()[..digits.len() / 2]),
        ("only a prefix", b"0x"),
        ("empty", b""),
        ("white", b" \n"),
    ] {
        let read = verify(name, text);
        assert_eq!(read.status.code(), Some(1), "{name}");
        assert!(
            read.stdout.is_empty(),
            "{name}: a script would read a verdict"
        );
    }

    let here = folder.path().display().to_string();
    let code = |args: &[&str]| attest(args).status.code();
    for no_file in [here.as_str(), "/nowhere"] {
        for command in [&["verify"][..], &["show"], &["policy", "check"]] {
            assert_eq!(
                code(&[command, &[no_file]].concat()),
                Some(1),
                "{command:?}"
            );
        }
        let with = [
            "verify",
            &quote,
            "--collateral",
            &collateral,
            "--policy",
            no_file,
        ];
        assert_eq!(code(&with), Some(1));
    }
    let endless = "/dev/zero";
    assert_eq!(code(&["verify", endless]), Some(1));
    assert_eq!(code(&["show", endless]), Some(1));
    assert_eq!(code(&["verify", &quote, "--collateral", endless]), Some(1));
    assert_eq!(code(&["policy", "check", endless]), Some(78));
    let nothing = folder.path().join("nothing");
    fs::create_dir(&nothing).expect("a folder");
    let nothing = nothing.display().to_string();
    assert_eq!(code(&["verify", &quote, "--collateral", &nothing]), Some(1));
    let empty = folder.path().join("empty").display().to_string();
    assert_eq!(code(&["policy", "check", &empty]), Some(78));
}

#[test]
fn a_launch_digest_is_computed_from_files() {
    let firmware = package("sev").join("tests/measurement/ovmf_AmdSev_suffix.bin");
    let firmware = firmware.to_str().expect("UTF-8");
    let output = attest(&[
        "measure",
        "--ovmf",
        firmware,
        "--vcpus",
        "2",
        "--guest-features",
        "0x1",
    ]);
    assert_eq!(output.status.code(), Some(0));
    // Recorded from sev-snp-measure 0.0.13.
    let expected = "ae7e31b6e2220dcb2832b050464cf9fb5da4feed92be5cdd966435c2ee722f341410bb2438923ee696bd23460ff9c904";
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
    assert_eq!(
        attest(&["measure", "--ovmf", "/dev/null", "--vcpus", "2"])
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn minted_evidence_is_none_test_on_the_screen_and_only_its_policy_accepts_it() {
    let folder = TempDir::new().expect("a folder");
    for tee in ["tdx", "sev-snp"] {
        let folder = folder.path().join(tee);
        let path = |name: &str| folder.join(name).display().to_string();
        let data = "42".repeat(64);
        let mint = [
            "mint",
            folder.to_str().expect("UTF-8"),
            "--tee",
            tee,
            "--report-data",
            &data,
        ];
        let output = attest(&mint);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (evidence, collateral, policy) = (
            path("evidence.bin"),
            path("collateral.cbor"),
            path("policy.toml"),
        );
        let before = fs::read(&policy).expect("minted");
        assert_eq!(attest(&mint).status.code(), Some(1), "it writes over files");
        assert_eq!(fs::read(&policy).expect("still there"), before);
        let verify = ["verify", &evidence, "--collateral", &collateral];
        let (code, told) = json(&verify);
        assert_eq!(code, 2);
        assert!(has_reason(&told, "unknown-root"), "{told}");
        let named = [&verify[..], &["--policy", &policy, "--report-data", &data]].concat();
        let (code, told) = json(&named);
        assert_eq!((code, &told["kind"]), (0, &"none+test".into()), "{told}");
        let screen = attest(&named);
        let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
        assert!(
            screen.starts_with("kind: none+test: a test made this evidence; it proves nothing"),
            "{screen}"
        );
        let other = "43".repeat(64);
        let (code, told) =
            json(&[&verify[..], &["--policy", &policy, "--report-data", &other]].concat());
        assert_eq!(code, 2);
        assert!(has_reason(&told, "report-data"), "{told}");
    }
}

/// Answers as a PCCS that holds the collateral of a sample, until the test ends.
fn pccs(collateral: &str) -> String {
    let sample: Value =
        serde_json::from_slice(&fs::read(collateral).expect("a sample")).expect("JSON");
    let text = |key: &str| sample[key].as_str().expect("text").to_owned();
    let signed = |name: &str, key: &str| {
        let (value, signature) = (text(key), text(&format!("{key}_signature")));
        format!("{{\"{name}\":{value},\"signature\":\"{signature}\"}}").into_bytes()
    };
    let chain = |name: &str, key: &str| {
        let encoded = |byte: u8| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let value: String = text(key).bytes().map(encoded).collect();
        format!("{name}: {value}\r\n")
    };
    let answers = [
        ("rootcacrl", String::new(), text("root_ca_crl").into_bytes()),
        (
            "pckcrl",
            String::new(),
            hex::decode(text("pck_crl")).expect("hex"),
        ),
        (
            "tcb?fmspc=",
            chain("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain"),
            signed("tcbInfo", "tcb_info"),
        ),
        (
            "qe/identity",
            chain(
                "SGX-Enclave-Identity-Issuer-Chain",
                "qe_identity_issuer_chain",
            ),
            signed("enclaveIdentity", "qe_identity"),
        ),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut asked = String::new();
            stream.read_line(&mut asked).expect("a request");
            let mut line = String::new();
            while stream.read_line(&mut line).expect("a header") > 2 {
                line.clear();
            }
            let found = answers.iter().find(|(path, ..)| asked.contains(path));
            let (_, header, body) = found.expect("one of the four");
            let head = format!(
                "HTTP/1.1 200 OK\r\n{header}content-length: {}\r\n\r\n",
                body.len()
            );
            let answer = [head.as_bytes(), body].concat();
            stream.get_mut().write_all(&answer).expect("it listens");
        }
    });
    base
}

#[test]
fn collateral_is_fetched_verified_and_kept_for_the_next_time() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (quote, collateral) = sample("tdx_quote");
    let day = "2025-06-20T00:00:00Z";
    let service = pccs(&collateral);
    let fetch = |out: &str, cache: &str, at: &str, more: &[&str]| {
        let (out, cache) = (path(out), path(cache));
        let args = [
            "fetch", &quote, "--out", &out, "--cache", &cache, "--at", at,
        ];
        attest(&[&args, more].concat())
    };
    let output = fetch("one", "cache", day, &["--pccs", &service, "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(told["kind"], "tdx");
    let (code, told) = json(&["verify", &quote, "--collateral", &path("one"), "--at", day]);
    assert_eq!((code, &told["tcb_status"]), (2, &"UpToDate".into()));

    // Nobody listens there: what was kept an hour ago is enough, and elsewhere there is nothing.
    let away = ["--pccs", "http://127.0.0.1:1"];
    let later = "2025-06-20T01:00:00Z";
    let code = |output: Output| output.status.code();
    let mode = fs::metadata(path("cache"))
        .expect("it was made")
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o777,
        0o700,
        "the requester's folder may begin with it"
    );
    assert_eq!(code(fetch("two", "cache", later, &away)), Some(0));
    assert_eq!(
        fs::read(path("one")).expect("written"),
        fs::read(path("two")).expect("written")
    );
    assert_eq!(code(fetch("three", "other", day, &away)), Some(69));
    assert_eq!(code(fetch("three", "other", day, &[])), Some(64));
    let tls = ["--pccs", "https://127.0.0.1"];
    assert_eq!(code(fetch("three", "other", day, &tls)), Some(64));
    let later = "2026-11-20T18:00:00Z";
    let old = fetch("three", "other", later, &["--pccs", &service]);
    assert_eq!(code(old), Some(2), "it ended long ago");
    assert!(!Path::new(&path("three")).exists(), "nothing is written");
    let over = fetch("one", "cache", day, &["--pccs", &service]);
    assert_eq!(code(over), Some(1), "nothing is overwritten");
    assert_eq!(
        attest(&["fetch", "/nowhere", "--out", &path("three")])
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn without_a_tee_nothing_is_collected() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let output = attest(&["collect", &path("quote"), "--tsm", &path("nowhere")]);
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("the kernel offers no evidence here"),
        "{said}"
    );
    // A folder that is none of the kernel's has no attributes in its entries.
    let output = attest(&["collect", &path("quote"), "--tsm", &path("")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!Path::new(&path("quote")).exists());
    assert_eq!(
        attest(&["collect", &path("quote"), "--report-data", "42"])
            .status
            .code(),
        Some(64)
    );
}

#[test]
fn reference_values_are_signed_checked_and_believed_and_never_go_back() {
    let folder = TempDir::new().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let minted = at("minted");
    succeed(Command::new(souk()).args(["attest", "mint", &minted]));
    let policy = fs::read_to_string(at("minted/policy.toml")).expect("minted");
    let (head, values) = policy.split_at(policy.find("[[measurement]]").expect("one"));
    fs::write(at("values.toml"), values).expect("written");
    let json = |args: &[&str]| -> (Option<i32>, Value) {
        let output = attest(&[&["reference"], args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = serde_json::from_slice(&output.stdout);
        (output.status.code(), told.unwrap_or_else(|_| said.into()))
    };
    let (code, key) = json(&["key", &at("release.key")]);
    assert_eq!(code, Some(0), "{key}");
    let key = key["reference"].as_str().expect("a key").to_owned();
    let sign = |name: &str, serial: &str, out: &str| {
        json(&[
            "sign",
            &at("values.toml"),
            "--key",
            &at("release.key"),
            "--name",
            name,
            "--serial",
            serial,
            "--days",
            "30",
            "--out",
            &at(out),
        ])
    };
    for (name, serial, out) in [
        ("guest", "1", "one.ref"),
        ("guest", "2", "two.ref"),
        ("guest-beta", "9", "beta.ref"),
    ] {
        let (code, told) = sign(name, serial, out);
        assert_eq!(code, Some(0), "{told}");
        assert_eq!(told["signer"], key);
    }
    assert_eq!(
        sign("guest", "3", "two.ref").0,
        Some(1),
        "nothing is overwritten"
    );

    let check = |file: &str, key: &str, more: &[&str]| {
        json(
            &[
                &["check", &at(file), "--name", "guest", "--key", key][..],
                &["--seen", &at("serials")],
                more,
            ]
            .concat(),
        )
    };
    let (code, told) = check("two.ref", &key, &[]);
    assert_eq!(
        (code, &told["verdict"]),
        (Some(0), &"accepted".into()),
        "{told}"
    );
    assert_eq!(
        (&told["serial"], &told["name"]),
        (&2.into(), &"guest".into())
    );
    let foreign = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29";
    let late = ["--at", "2999-01-01T00:00:00Z"];
    for (file, key, more, reason) in [
        ("one.ref", key.as_str(), &[][..], "rollback"),
        ("two.ref", foreign, &[], "unknown-signer"),
        ("two.ref", &key, &["--min-serial", "3"], "serial"),
        ("beta.ref", &key, &[], "name"),
        ("two.ref", &key, &late, "expired"),
        ("values.toml", &key, &[], "unsigned"),
    ] {
        let (code, told) = check(file, key, more);
        assert_eq!(code, Some(2), "{told}");
        let said = told["reason"].as_str().expect("a reason");
        assert!(said.starts_with(&format!("{reason}: ")), "{said}");
    }
    assert_eq!(check("nowhere", &key, &[]).0, Some(1));

    // A policy with them accepts what the one with the values in it did, and without the file nothing.
    let policy = |file: &str| {
        let text =
            format!("{head}\n[[reference]]\nfile = {file:?}\nname = \"guest\"\nkeys = [{key:?}]\n");
        fs::write(at("policy.toml"), text).expect("written");
        attest(&[
            "verify",
            &at("minted/evidence.bin"),
            "--collateral",
            &at("minted/collateral.cbor"),
            "--policy",
            &at("policy.toml"),
            "--seen",
            &at("serials"),
        ])
    };
    assert_eq!(policy("two.ref").status.code(), Some(0));
    for (file, code, why) in [
        ("one.ref", 78, "rolled back"),
        ("nowhere", 1, "cannot read"),
    ] {
        let output = policy(file);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
        assert!(output.stdout.is_empty(), "a script would read a verdict");
    }
}
