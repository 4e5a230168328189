//! Reads `policy.toml` into a [`Policy`].

use souk_crypto::domain;
use souk_toml::Mistakes;

use super::{
    MAX_POLICY_BYTES, Policy, Reference, Register, SnpRules, TdxRules, Tolerated, Values,
    reader::{Reader, Section, from_str},
};
use crate::{
    date,
    digest::{Measurement, RootId},
    reference::{Believed, is_name},
    snp::SnpTcb,
    tdx::TcbStatus,
    verified::{Kind, Tee},
};

/// Reference values of one policy; releases of a few years.
const MAX_MEASUREMENTS: usize = 512;
/// Advisories that one policy tolerates; Intel has published about fifty that touch TDX and SGX.
const MAX_ADVISORIES: usize = 256;
/// Signed files that one policy names, and keys of each: a few who measure releases.
const MAX_BELIEVED: usize = 8;
/// A name is no longer, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Registers of TDX in a policy: what must be named, and what must be zero where it is not named.
const TDX_REQUIRED: [&str; 5] = ["mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
const TDX_ZERO: [&str; 3] = ["mr_config_id", "mr_owner", "mr_owner_config"];
/// Bits of a guest of TDX, which are unchecked where they are not named.
const TDX_BITS: [&str; 2] = ["attributes", "xfam"];
const SNP_ZERO: [&str; 2] = ["id_key_digest", "author_key_digest"];

const ROOT_KEYS: &[&str] = &[
    "version",
    "kinds",
    "test_roots",
    "max_age_s",
    "tdx",
    "snp",
    "advisory",
    "measurement",
    "reference",
];
const REFERENCE_KEYS: &[&str] = &["file", "name", "keys", "min_serial"];
const TDX_KEYS: &[&str] = &["min_tcb_status", "min_tcb_evaluation", "allow_debug"];
const SNP_KEYS: &[&str] = &[
    "min_fmc",
    "min_bootloader",
    "min_tee",
    "min_snp",
    "min_microcode",
    "max_vmpl",
    "allow_debug",
    "allow_migration",
    "allow_smt",
    "require_crl",
];
const ADVISORY_KEYS: &[&str] = &["id", "until"];
const MEASUREMENT_KEYS: &[&str] = &[
    "name",
    "tee",
    "not_before",
    "not_after",
    "mr_td",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "mr_seam",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "attributes",
    "xfam",
    "measurement",
    "id_key_digest",
    "author_key_digest",
    "host_data",
    "min_guest_svn",
];

const REGISTER_HINT: &str = r#"write 96 hex digits, or "any" to leave it unchecked"#;
const BITS_HINT: &str =
    r#"write the 16 hex digits that `souk attest show` prints, or "any" to leave it unchecked"#;
const DATE_HINT: &str = "write a date such as \"2027-01-01T00:00:00Z\"";

impl Policy {
    /// Understands the text of a policy.
    ///
    /// # Errors
    /// All mistakes of the text.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let (mut reader, table) = Reader::new(text);
        let root = reader.root("the policy", &table, ROOT_KEYS);
        match reader.integer(&root, "version", u64::MAX) {
            Some(1) => {}
            _ => reader.misfit(
                &root,
                "version",
                "the version is not 1",
                "write version = 1",
            ),
        }
        if text.len() > MAX_POLICY_BYTES {
            let hint = format!("write at most {MAX_POLICY_BYTES} bytes");
            reader.misfit(&root, "version", "the policy is too large", &hint);
        }
        let policy = Self {
            digest: domain::EVIDENCE_POLICY.hash_unbound(&[text.as_bytes()]),
            kinds: kinds(&mut reader, &root),
            test_roots: reader
                .list(
                    &root,
                    "test_roots",
                    "write the 64 hex digits of a root's SHA-256",
                    from_str,
                )
                .unwrap_or_default(),
            max_age_s: reader.integer(&root, "max_age_s", 315_360_000),
            tdx: tdx_rules(&mut reader, &root),
            snp: snp_rules(&mut reader, &root),
            advisories: advisories(&mut reader, &root),
            measurements: measurements(&mut reader, &root),
            believed: believed(&mut reader, &root),
        };
        if policy.kinds.contains(&Kind::NoneTest) == policy.test_roots.is_empty() {
            reader.misfit(
                &root,
                "test_roots",
                "the kind \"none+test\" and test_roots go together",
                "name the roots of your tests and the kind, or neither",
            );
        }
        reader.finish(policy)
    }
}

/// Checks the text of signed reference values.
///
/// # Errors
/// All mistakes of the text.
pub(crate) fn check_values(text: &str) -> Result<(), Mistakes> {
    values(text).map(|_| ())
}

/// The reference values of a text that holds nothing else.
pub(super) fn values(text: &str) -> Result<Vec<Reference>, Mistakes> {
    let (mut reader, table) = Reader::new(text);
    let root = reader.root("the reference values", &table, &["measurement"]);
    let values = measurements(&mut reader, &root);
    if !root.has("measurement") {
        let hint = "write at least one [[measurement]]";
        reader.misfit(&root, "measurement", "there is no reference value", hint);
    }
    reader.finish(values)
}

fn believed<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Believed> {
    let sections = reader.sections(root, "reference", REFERENCE_KEYS, MAX_BELIEVED);
    let mut all = Vec::new();
    for section in sections.iter().filter(|section| section.is_there()) {
        let path = |text: &str| (!text.is_empty()).then(|| text.into());
        let file_hint = "write the path of a file of signed reference values";
        let file = reader.required(section, "file", file_hint, path);
        let name_hint = "write the name that the values were signed under, as `souk attest reference check` shows it";
        let named = |text: &str| is_name(text).then(|| text.to_owned());
        let name = reader.required(section, "name", name_hint, named);
        let key_hint = "write the 64 hex digits that `souk attest reference key` printed";
        let keys = reader.list(section, "keys", key_hint, from_str);
        let keys = keys.unwrap_or_default();
        if keys.is_empty() || keys.len() > MAX_BELIEVED {
            let what = format!("a [[reference]] names 1 to {MAX_BELIEVED} keys");
            reader.misfit(section, "keys", &what, key_hint);
        }
        let min_serial = reader.integer(section, "min_serial", u64::MAX).unwrap_or(0);
        if let (Some(file), Some(name)) = (file, name) {
            all.push(Believed {
                file,
                name,
                keys,
                min_serial,
            });
        }
    }
    all
}

fn kinds<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Kind> {
    let hint = r#"the kinds are "tdx", "sev-snp" and "none+test""#;
    let of = |name: &str| Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
    let kinds = reader.list(root, "kinds", hint, of).unwrap_or_default();
    if kinds.is_empty() {
        reader.misfit(
            root,
            "kinds",
            "the policy accepts no kind of evidence",
            hint,
        );
    }
    kinds
}

fn tdx_rules<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> TdxRules {
    let section = reader.section(root, "tdx", TDX_KEYS);
    let hint = "write a TCB status in Intel's spelling, such as \"UpToDate\"";
    TdxRules {
        min_tcb_status: reader
            .parsed(&section, "min_tcb_status", hint, from_str)
            .unwrap_or(TcbStatus::UpToDate),
        min_tcb_evaluation: reader
            .integer(&section, "min_tcb_evaluation", u64::from(u32::MAX))
            .and_then(|number| u32::try_from(number).ok()),
        allow_debug: reader.bool(&section, "allow_debug", false),
    }
}

fn snp_rules<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> SnpRules {
    let section = reader.section(root, "snp", SNP_KEYS);
    let mut version = |key| {
        let number = reader.integer(&section, key, u64::from(u8::MAX));
        number.and_then(|number| u8::try_from(number).ok())
    };
    SnpRules {
        min_tcb: SnpTcb {
            fmc: version("min_fmc"),
            bootloader: version("min_bootloader").unwrap_or(0),
            tee: version("min_tee").unwrap_or(0),
            snp: version("min_snp").unwrap_or(0),
            microcode: version("min_microcode").unwrap_or(0),
        },
        max_vmpl: reader
            .integer(&section, "max_vmpl", 3)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(0),
        allow_debug: reader.bool(&section, "allow_debug", false),
        allow_migration: reader.bool(&section, "allow_migration", false),
        allow_smt: reader.bool(&section, "allow_smt", true),
        require_crl: reader.bool(&section, "require_crl", true),
    }
}

fn advisories<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Tolerated> {
    let sections = reader.sections(root, "advisory", ADVISORY_KEYS, MAX_ADVISORIES);
    let mut all = Vec::new();
    for section in &sections {
        let id = reader.required(
            section,
            "id",
            "write an id such as \"INTEL-SA-00615\"",
            name,
        );
        let until = reader.required(section, "until", DATE_HINT, date::parse);
        if let (Some(id), Some(until)) = (id, until) {
            all.push(Tolerated { id, until });
        }
    }
    all
}

fn measurements<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Reference> {
    let sections = reader.sections(root, "measurement", MEASUREMENT_KEYS, MAX_MEASUREMENTS);
    let mut all = Vec::new();
    for section in sections.iter().filter(|section| section.is_there()) {
        let tee = |text: &str| {
            [Tee::Tdx, Tee::SevSnp]
                .into_iter()
                .find(|tee| tee.to_string() == text)
        };
        let name_hint = "write 1 to 64 printable characters";
        let name = reader.required(section, "name", name_hint, name);
        let tee = reader.required(section, "tee", r#"write "tdx" or "sev-snp""#, tee);
        let not_before = reader.parsed(section, "not_before", DATE_HINT, date::parse);
        let not_after = reader.parsed(section, "not_after", DATE_HINT, date::parse);
        let values = match tee {
            Some(Tee::Tdx) => tdx_values(reader, section),
            Some(Tee::SevSnp) => snp_values(reader, section),
            None => continue,
        };
        if let (Some(name), Some(values)) = (name, values) {
            all.push(Reference {
                name,
                not_before,
                not_after,
                values,
            });
        }
    }
    all
}

fn tdx_values<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>) -> Option<Values> {
    let mut registers = Vec::new();
    for key in TDX_REQUIRED {
        registers.push((key, reader.required(section, key, REGISTER_HINT, register)));
    }
    for key in TDX_ZERO {
        registers.push((key, or_zero(reader, section, key)));
    }
    registers.push((
        "mr_seam",
        Some(
            reader
                .parsed(section, "mr_seam", REGISTER_HINT, register)
                .unwrap_or(Register::Any),
        ),
    ));
    foreign(
        reader,
        section,
        Tee::Tdx,
        &[
            "measurement",
            "id_key_digest",
            "author_key_digest",
            "host_data",
            "min_guest_svn",
        ],
    );
    let bits = TDX_BITS.map(|key| {
        let found = reader.parsed(section, key, BITS_HINT, guest_bits);
        (key, found.flatten())
    });
    Some(Values::Tdx {
        registers: complete(registers)?,
        bits: bits.to_vec(),
    })
}

fn snp_values<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>) -> Option<Values> {
    let mut digests = vec![(
        "measurement",
        reader.required(section, "measurement", REGISTER_HINT, register),
    )];
    for key in SNP_ZERO {
        digests.push((key, or_zero(reader, section, key)));
    }
    let host_hint = r#"write 64 hex digits, or "any" to leave it unchecked"#;
    let host = |text: &str| match text {
        "any" => Some(None),
        text => text.parse::<RootId>().ok().map(|bytes| Some(bytes.0)),
    };
    let host_data = reader
        .parsed(section, "host_data", host_hint, host)
        .unwrap_or(Some([0; 32]));
    let min_guest_svn = reader
        .integer(section, "min_guest_svn", u64::from(u32::MAX))
        .unwrap_or(0);
    foreign(
        reader,
        section,
        Tee::SevSnp,
        &[&TDX_REQUIRED[..], &TDX_ZERO, &TDX_BITS, &["mr_seam"]].concat(),
    );
    Some(Values::Snp {
        digests: complete(digests)?,
        host_data,
        min_guest_svn: u32::try_from(min_guest_svn).unwrap_or(u32::MAX),
    })
}

fn complete(
    registers: Vec<(&'static str, Option<Register>)>,
) -> Option<Vec<(&'static str, Register)>> {
    registers
        .into_iter()
        .map(|(name, register)| register.map(|register| (name, register)))
        .collect()
}

/// A register that has to be zero where the policy does not name it.
fn or_zero<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>, key: &str) -> Option<Register> {
    let found = reader.parsed(section, key, REGISTER_HINT, register);
    Some(found.unwrap_or(Register::Exactly(Measurement::ZERO)))
}

/// Tells of keys that the other TEE has.
fn foreign<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>, tee: Tee, keys: &[&str]) {
    for key in keys.iter().filter(|key| section.has(key)) {
        let what = format!("`{key}` means nothing for {tee}");
        reader.misfit(section, key, &what, "take it out");
    }
}

fn register(text: &str) -> Option<Register> {
    match text {
        "any" => Some(Register::Any),
        text => text.parse().ok().map(Register::Exactly),
    }
}

/// Eight bytes as they stand in a TD report; `None` inside leaves them unchecked.
fn guest_bits(text: &str) -> Option<Option<[u8; 8]>> {
    if text == "any" {
        return Some(None);
    }
    let mut bytes = [0; 8];
    let decoded = hex::decode_to_slice(text, &mut bytes);
    decoded.ok().map(|()| Some(bytes))
}

fn name(text: &str) -> Option<String> {
    let printable = text.chars().all(|c| !c.is_control());
    ((1..=MAX_NAME_BYTES).contains(&text.len()) && printable).then(|| text.to_owned())
}
