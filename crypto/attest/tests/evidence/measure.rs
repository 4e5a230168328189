//! Launch digests agree with `sev-snp-measure`: recorded answers of version 0.0.13, and the tool itself where it is there.

use std::{fs, path::PathBuf, process::Command};

use souk_attest::measure::{MeasureError, SNP_ACTIVE, SnpLaunch};

use crate::common::package;

fn firmware(name: &str) -> PathBuf {
    package("sev").join("tests/measurement").join(name)
}

fn launch(firmware: PathBuf, vcpus: u32, model: &str, guest_features: u64) -> SnpLaunch {
    SnpLaunch {
        firmware,
        kernel: None,
        initrd: None,
        command_line: None,
        vcpus,
        vcpu_model: model.to_owned(),
        guest_features,
    }
}

fn digest(launch: &SnpLaunch) -> String {
    launch.digest().expect("a digest").to_string()
}

#[test]
fn digests_are_those_of_sev_snp_measure() {
    for (name, features, model, expected) in [
        (
            "ovmf_AmdSev_suffix.bin",
            0x1,
            "EPYC-v4",
            "ae7e31b6e2220dcb2832b050464cf9fb5da4feed92be5cdd966435c2ee722f341410bb2438923ee696bd23460ff9c904",
        ),
        (
            "ovmf_AmdSev_suffix.bin",
            0x21,
            "EPYC-Milan",
            "2939f85e9efe5dc13bf200ff25ddd14d5242df1821f5e642878caa9e11e58c02358740bfe12c72360baa3aec4bf671ee",
        ),
        (
            "ovmf_OvmfX64_suffix.bin",
            0x1,
            "EPYC-Genoa",
            "91ba34d4a5310ad6c3df762375881b5b46e77c23e0aba2ede7a65cded754b821f27359c73a490a57e351d96f8ab2ea43",
        ),
    ] {
        assert_eq!(
            digest(&launch(firmware(name), 2, model, features)),
            expected,
            "{name}"
        );
    }
}

#[test]
fn kernel_initrd_and_command_line_are_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, name).expect("it is written");
        path
    };
    let mut guest = launch(firmware("ovmf_AmdSev_suffix.bin"), 1, "EPYC-v4", SNP_ACTIVE);
    guest.kernel = Some(file("kernel"));
    guest.initrd = Some(file("initrd"));
    guest.command_line = Some("console=ttyS0 loglevel=7".to_owned());
    let expected = "fdbd9aaa75574d5acf78631632da2ffc1951966d320750d8ff9bcb66ef2243c97c7cf2235782744613742d747aae0a40";
    assert_eq!(digest(&guest), expected);
    for change in [
        |guest: &mut SnpLaunch| guest.command_line = Some("console=ttyS0".to_owned()),
        |guest: &mut SnpLaunch| guest.initrd = None,
        |guest: &mut SnpLaunch| guest.vcpus = 2,
    ] {
        let mut other = guest.clone();
        change(&mut other);
        assert_ne!(digest(&other), expected);
    }
}

#[test]
fn the_tool_agrees_needs_sev_snp_measure() {
    let tool =
        std::env::var("SOUK_SEV_SNP_MEASURE").unwrap_or_else(|_| "sev-snp-measure".to_owned());
    if Command::new(&tool).arg("--version").output().is_err() {
        eprintln!("skipped: needs sev-snp-measure in PATH or SOUK_SEV_SNP_MEASURE");
        return;
    }
    let mut firmwares = vec![
        firmware("ovmf_AmdSev_suffix.bin"),
        firmware("ovmf_OvmfX64_suffix.bin"),
    ];
    // Debian's package `ovmf`.
    firmwares.extend(Some(PathBuf::from("/usr/share/ovmf/OVMF.fd")).filter(|path| path.exists()));
    for firmware in firmwares {
        for (vcpus, model, features) in [
            (1, "EPYC-v4", 0x1),
            (3, "EPYC-Genoa", 0x21),
            (8, "EPYC-Turin", 0x1),
        ] {
            let output = Command::new(&tool)
                .args([
                    "--mode",
                    "snp",
                    "--vcpus",
                    &vcpus.to_string(),
                    "--vcpu-type",
                    model,
                ])
                .args(["--guest-features", &format!("{features:#x}"), "--ovmf"])
                .arg(&firmware)
                .output()
                .expect("the tool runs");
            let theirs = String::from_utf8(output.stdout).expect("text");
            assert_eq!(
                digest(&launch(firmware.clone(), vcpus, model, features)),
                theirs.trim()
            );
        }
    }
}

#[test]
fn a_file_that_is_no_firmware_is_told_and_never_panics() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = fs::read(firmware("ovmf_AmdSev_suffix.bin")).expect("it is there");
    let path = folder.path().join("firmware");
    let measure = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("it is written");
        launch(path.clone(), 1, "EPYC-v4", SNP_ACTIVE).digest()
    };
    for bytes in [
        &[][..],
        b"no firmware",
        &[0; 4096],
        &good[..2048],
        &[0xff; 8192],
    ] {
        assert!(matches!(measure(bytes), Err(MeasureError::Firmware { .. })));
    }
    // Every byte of the tables, which lie in the last kibibyte.
    for at in good.len() - 1024..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 0x81;
        let _ = measure(&changed);
    }
}

#[test]
fn a_guest_that_cannot_be_is_told() {
    let good = launch(firmware("ovmf_AmdSev_suffix.bin"), 1, "EPYC-v4", SNP_ACTIVE);
    for change in [
        |guest: &mut SnpLaunch| guest.vcpus = 0,
        |guest: &mut SnpLaunch| guest.vcpu_model = "Skylake".to_owned(),
        |guest: &mut SnpLaunch| guest.initrd = Some("/dev/null".into()),
    ] {
        let mut guest = good.clone();
        change(&mut guest);
        assert!(matches!(guest.digest(), Err(MeasureError::Argument { .. })));
    }
    let mut guest = good;
    guest.kernel = Some("/nowhere/kernel".into());
    assert!(matches!(guest.digest(), Err(MeasureError::Read { .. })));
}
