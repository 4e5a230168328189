//! The devices of TEE guests, for kernels without configfs-tsm.
//!
//! `/dev/sev-guest` gives a report. `/dev/tdx_guest` gives a TD report only, which the host's quoting service makes a quote of.
//!
//! The structures are those of `include/uapi/linux/sev-guest.h` and `include/uapi/linux/tdx-guest.h`, byte for byte. None of
//! this has run: it takes a guest of a TEE. What is tested is the layout, and everything on this side of [`GuestDevice`].

use std::{fs::File, io, os::fd::AsRawFd as _, path::Path};

use crate::{
    digest::ReportData,
    refusal::Refusal,
    snp::{REPORT_BYTES, SnpReport},
};

/// `struct snp_report_req`.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct SnpReportReq {
    /// The report data.
    pub user_data: [u8; 64],
    /// The privilege level to name in the report.
    pub vmpl: u32,
    rsvd: [u8; 28],
}

/// `struct snp_report_resp`: status, length, 24 reserved bytes, the report.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct SnpReportResp {
    /// All of it.
    pub data: [u8; 4000],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
#[derive(Debug)]
struct SnpGuestRequestIoctl {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    exitinfo2: u64,
}

/// `struct tdx_report_req`.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct TdxReportReq {
    /// The report data.
    pub reportdata: [u8; 64],
    /// What the module gives back: `TDREPORT_STRUCT`.
    pub tdreport: [u8; 1024],
}

/// `SNP_GET_REPORT`: `_IOWR('S', 0, struct snp_guest_request_ioctl)`.
pub const SNP_GET_REPORT: u32 = iowr(b'S', 0, size_of::<SnpGuestRequestIoctl>());
/// `TDX_CMD_GET_REPORT0`: `_IOWR('T', 1, struct tdx_report_req)`.
pub const TDX_CMD_GET_REPORT0: u32 = iowr(b'T', 1, size_of::<TdxReportReq>());

/// Version of the messages to AMD's firmware that reports come with.
const MESSAGE_VERSION: u8 = 1;
/// Where the report lies in the answer.
const REPORT_AT: usize = 32;

const _: () = {
    assert!(size_of::<SnpReportReq>() == 96);
    assert!(size_of::<SnpReportResp>() == 4000);
    assert!(size_of::<SnpGuestRequestIoctl>() == 32);
    assert!(std::mem::offset_of!(SnpGuestRequestIoctl, req_data) == 8);
    assert!(std::mem::offset_of!(SnpGuestRequestIoctl, resp_data) == 16);
    assert!(std::mem::offset_of!(SnpGuestRequestIoctl, exitinfo2) == 24);
    assert!(size_of::<TdxReportReq>() == 1088);
    assert!(SNP_GET_REPORT == 0xc020_5300);
    assert!(TDX_CMD_GET_REPORT0 == 0xc440_5401);
};

/// The two calls.
pub trait GuestDevice {
    /// `SNP_GET_REPORT`. Gives `exitinfo2`: the error of firmware (low half) and host (high half); zero is none.
    ///
    /// # Errors
    /// Those of the system.
    fn snp_get_report(
        &self,
        request: &SnpReportReq,
        response: &mut SnpReportResp,
    ) -> io::Result<u64>;

    /// `TDX_CMD_GET_REPORT0`.
    ///
    /// # Errors
    /// Those of the system.
    fn tdx_get_report0(&self, request: &mut TdxReportReq) -> io::Result<()>;
}

/// An open device of the kernel.
#[derive(Debug)]
pub struct KernelDevice(File);

impl KernelDevice {
    /// Opens `/dev/sev-guest` or `/dev/tdx_guest`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options().read(true).write(true).open(path).map(Self)
    }
}

impl GuestDevice for KernelDevice {
    fn snp_get_report(
        &self,
        request: &SnpReportReq,
        response: &mut SnpReportResp,
    ) -> io::Result<u64> {
        let mut call = SnpGuestRequestIoctl {
            msg_version: MESSAGE_VERSION,
            req_data: std::ptr::from_ref(request).expose_provenance() as u64,
            resp_data: std::ptr::from_mut(response).expose_provenance() as u64,
            exitinfo2: 0,
        };
        // SAFETY: the three structures have the layout of the kernel's header (asserted above) and live through the call;
        // the kernel reads `request` and writes into `response` and `call` only.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SNP_GET_REPORT.into(), &raw mut call) };
        match done {
            0 => Ok(call.exitinfo2),
            // The numbers say more than the error of the system.
            _ if call.exitinfo2 != 0 => Ok(call.exitinfo2),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn tdx_get_report0(&self, request: &mut TdxReportReq) -> io::Result<()> {
        // SAFETY: the structure has the layout of the kernel's header (asserted above) and lives through the call; the kernel
        // writes into it only.
        let done = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                TDX_CMD_GET_REPORT0.into(),
                std::ptr::from_mut(request),
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Why a device gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The call failed.
    #[error("the kernel refused the call")]
    Call(#[source] io::Error),
    /// Firmware or host refused.
    #[error("no report: firmware says {firmware:#x}, host says {host:#x}")]
    Refused {
        /// Error of AMD's firmware.
        firmware: u32,
        /// Error of the host.
        host: u32,
    },
    /// The answer is no report.
    #[error("the answer is no report")]
    Malformed(#[source] Refusal),
    /// The answer is a report over something else.
    #[error("the report is over other report data")]
    OtherReportData,
}

/// A report of SEV-SNP over `report_data`, for privilege level `vmpl`.
///
/// # Errors
/// [`DeviceError`].
pub fn snp_report(
    device: &impl GuestDevice,
    report_data: ReportData,
    vmpl: u32,
) -> Result<SnpReport, DeviceError> {
    let request = SnpReportReq {
        user_data: report_data.0,
        vmpl,
        rsvd: [0; 28],
    };
    let mut response = SnpReportResp { data: [0; 4000] };
    let exitinfo2 = device
        .snp_get_report(&request, &mut response)
        .map_err(DeviceError::Call)?;
    let status = response
        .data
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if exitinfo2 != 0 || status != 0 {
        let low = u32::try_from(exitinfo2 & 0xffff_ffff).unwrap_or(u32::MAX);
        return Err(DeviceError::Refused {
            firmware: if low == 0 { status } else { low },
            host: u32::try_from(exitinfo2 >> 32).unwrap_or(u32::MAX),
        });
    }
    let report = SnpReport::parse(&response.data[REPORT_AT..REPORT_AT + REPORT_BYTES])
        .map_err(DeviceError::Malformed)?;
    if report.report_data() != report_data {
        return Err(DeviceError::OtherReportData);
    }
    Ok(report)
}

/// The TD report over `report_data`, for the host's quoting service.
///
/// # Errors
/// [`DeviceError::Call`].
pub fn td_report(
    device: &impl GuestDevice,
    report_data: ReportData,
) -> Result<[u8; 1024], DeviceError> {
    let mut request = TdxReportReq {
        reportdata: report_data.0,
        tdreport: [0; 1024],
    };
    device
        .tdx_get_report0(&mut request)
        .map_err(DeviceError::Call)?;
    Ok(request.tdreport)
}

/// A request that is read and written, as the kernel numbers them (`include/uapi/asm-generic/ioctl.h`).
const fn iowr(kind: u8, number: u8, size: usize) -> u32 {
    const READ_WRITE: u32 = 3;
    assert!(size < 1 << 14);
    READ_WRITE << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32
}
