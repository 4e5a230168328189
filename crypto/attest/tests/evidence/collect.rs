//! Collecting evidence, with a responder that plays the kernel on real files.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::PathBuf,
};

use ring::rand::SystemRandom;
use souk_attest::{
    Collateral, Evidence, Kind, Product, ReportData, Trust,
    collect::{
        CollectError, Configfs, TsmRoot, collect,
        device::{
            DeviceError, GuestDevice, SnpReportReq, SnpReportResp, TdxReportReq, snp_report,
            td_report,
        },
    },
    soft::{SnpRecipe, TdxRecipe, TestSnp, TestTdx},
    verify,
};
use tempfile::TempDir;

use crate::minted::{AMD, issued, now};

const DATA: ReportData = ReportData([0x42; 64]);

/// What a machine signs.
enum Machine {
    Tdx(Box<TestTdx>),
    Snp(Box<TestSnp>),
}

impl Machine {
    fn tdx() -> Self {
        let rng = SystemRandom::new();
        Self::Tdx(Box::new(
            TestTdx::new(TdxRecipe::up_to_date(issued()), &rng).expect("it mints"),
        ))
    }

    fn snp() -> Self {
        let recipe = SnpRecipe::sound(Product::Genoa, 3, issued());
        Self::Snp(Box::new(
            TestSnp::new(recipe, &AMD, &SystemRandom::new()).expect("it mints"),
        ))
    }

    fn sign(&self, data: ReportData) -> Vec<u8> {
        let rng = SystemRandom::new();
        match self {
            Self::Tdx(machine) => machine.quote(data, &rng),
            Self::Snp(machine) => machine.report(data, &rng),
        }
        .expect("it signs")
    }
}

/// Plays the kernel: attributes appear with the entry, each write counts, and the blob is made when it is read. All of it lies in
/// files, which the code under test reads and writes as it does those of the kernel.
struct Kernel {
    files: Configfs,
    folder: TempDir,
    machine: Machine,
    /// How often another process writes its own report data into our entry before the blob is made.
    interferes: Cell<u32>,
    /// Whether the kernel tells so (`EWOULDBLOCK`), or just answers.
    tells: bool,
    seen: RefCell<Vec<String>>,
}

impl Kernel {
    fn new(machine: Machine) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            files: Configfs::at(folder.path()),
            folder,
            machine,
            interferes: Cell::new(0),
            tells: false,
            seen: RefCell::default(),
        }
    }

    fn path(&self, entry: &str, attribute: &str) -> PathBuf {
        self.folder.path().join(entry).join(attribute)
    }

    fn count_write(&self, entry: &str) -> io::Result<()> {
        let path = self.path(entry, "generation");
        let before: u64 = fs::read_to_string(&path)?.trim().parse().expect("a number");
        fs::write(path, format!("{}\n", before + 1))
    }

    fn entries(&self) -> usize {
        fs::read_dir(self.folder.path()).expect("a folder").count()
    }
}

impl TsmRoot for Kernel {
    fn create(&self, entry: &str) -> io::Result<()> {
        self.files.create(entry)?;
        self.seen.borrow_mut().push(entry.to_owned());
        let provider = match self.machine {
            Machine::Tdx(_) => "tdx_guest\n",
            Machine::Snp(_) => "sev_guest\n",
        };
        fs::write(self.path(entry, "generation"), "0\n")?;
        fs::write(self.path(entry, "provider"), provider)?;
        fs::write(self.path(entry, "inblob"), "")
    }

    fn write(&self, entry: &str, attribute: &str, value: &[u8]) -> io::Result<()> {
        self.files.write(entry, attribute, value)?;
        self.count_write(entry)
    }

    fn read(&self, entry: &str, attribute: &str, max: usize) -> io::Result<Vec<u8>> {
        if attribute == "outblob" {
            if self.interferes.get() > 0 {
                self.interferes.set(self.interferes.get() - 1);
                fs::write(self.path(entry, "inblob"), [0x66; 64])?;
                self.count_write(entry)?;
                if self.tells {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            let inblob = fs::read(self.path(entry, "inblob"))?;
            let data = ReportData(inblob.try_into().expect("64 bytes"));
            fs::write(self.path(entry, "outblob"), self.machine.sign(data))?;
        }
        self.files.read(entry, attribute, max)
    }

    fn remove(&self, entry: &str) -> io::Result<()> {
        // The kernel removes attributes with their entry.
        fs::remove_dir_all(self.folder.path().join(entry))
    }
}

#[test]
fn what_the_kernel_gives_verifies_and_holds_what_was_asked() {
    for machine in [Machine::tdx(), Machine::snp()] {
        let (collateral, root) = match &machine {
            Machine::Tdx(machine) => (
                Collateral::Tdx(Box::new(machine.collateral().clone())),
                machine.root(),
            ),
            Machine::Snp(machine) => (
                Collateral::Snp(Box::new(machine.collateral().clone())),
                machine.root(),
            ),
        };
        let kernel = Kernel::new(machine);
        let collected = collect(&kernel, DATA).expect("evidence");
        let expected = match &kernel.machine {
            Machine::Tdx(_) => "tdx_guest",
            Machine::Snp(_) => "sev_guest",
        };
        assert_eq!(collected.provider, expected);
        let trust = Trust::with_test_roots([root]);
        let verified =
            verify(&collected.evidence, &collateral, &trust, now()).expect("it verifies");
        assert_eq!(
            (verified.kind(), verified.report_data()),
            (Kind::NoneTest, DATA)
        );
        assert_eq!(kernel.entries(), 0, "entries are removed");
    }
}

#[test]
fn an_entry_that_another_process_wrote_into_is_given_up_for_a_fresh_one() {
    for tells in [false, true] {
        let mut kernel = Kernel::new(Machine::snp());
        kernel.tells = tells;
        kernel.interferes.set(2);
        let collected = collect(&kernel, DATA).expect("evidence, the third time");
        assert!(
            matches!(collected.evidence, Evidence::Snp(report) if report.report_data() == DATA)
        );
        let seen = kernel.seen.borrow();
        assert_eq!(seen.len(), 3);
        assert!(seen[0] != seen[1] && seen[1] != seen[2]);
        assert_eq!(kernel.entries(), 0);
    }
}

#[test]
fn a_process_that_interferes_each_time_is_told() {
    let kernel = Kernel::new(Machine::snp());
    kernel.interferes.set(u32::MAX);
    assert!(matches!(
        collect(&kernel, DATA),
        Err(CollectError::Interfered)
    ));
    assert_eq!(kernel.entries(), 0);
}

#[test]
fn a_machine_without_a_tee_is_told() {
    let nowhere = Configfs::at("/nowhere/tsm/report");
    assert!(matches!(
        collect(&nowhere, DATA),
        Err(CollectError::NoTee { .. })
    ));
}

#[test]
fn an_entry_that_the_kernel_refuses_is_no_machine_without_a_tee() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report");
    fs::write(&file, b"no folder").expect("written");
    assert!(matches!(
        collect(&Configfs::at(file), DATA),
        Err(CollectError::Kernel {
            attribute: "entry",
            ..
        })
    ));
}

/// A device that answers as AMD's firmware and Intel's module do.
struct Device {
    machine: Box<TestSnp>,
    exitinfo2: u64,
}

impl GuestDevice for Device {
    fn snp_get_report(
        &self,
        request: &SnpReportReq,
        response: &mut SnpReportResp,
    ) -> io::Result<u64> {
        let rng = SystemRandom::new();
        let report = self
            .machine
            .report(ReportData(request.user_data), &rng)
            .expect("it signs");
        response.data[4..8].copy_from_slice(&1184_u32.to_le_bytes());
        response.data[32..32 + report.len()].copy_from_slice(&report);
        Ok(self.exitinfo2)
    }

    fn tdx_get_report0(&self, request: &mut TdxReportReq) -> io::Result<()> {
        request.tdreport[128..192].copy_from_slice(&request.reportdata);
        Ok(())
    }
}

#[test]
fn devices_are_asked_and_their_errors_told() {
    let Machine::Snp(machine) = Machine::snp() else {
        panic!("a machine of AMD");
    };
    let mut device = Device {
        machine,
        exitinfo2: 0,
    };
    assert_eq!(
        snp_report(&device, DATA, 0)
            .expect("a report")
            .report_data(),
        DATA
    );
    assert_eq!(
        td_report(&device, DATA).expect("a report")[128..192],
        DATA.0
    );
    device.exitinfo2 = 0x2_0000_0016;
    let refused = snp_report(&device, DATA, 0).expect_err("refused");
    assert!(matches!(
        refused,
        DeviceError::Refused {
            firmware: 0x16,
            host: 2
        }
    ));
}
