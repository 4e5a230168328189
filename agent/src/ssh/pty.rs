//! What a client asks of a terminal: its name, its size and its modes (RFC 4254, sections 6.2 and 8).

use std::{io, os::fd::OwnedFd};

use russh::Pty;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};

/// Longest terminal name, in bytes; the longest in terminfo has 31.
const MAX_TERM_BYTES: usize = 64;

/// The control character that the encoding of modes writes for "disabled" (RFC 4254, section 8).
const DISABLED: u32 = 255;

/// What `termios` writes for a control character that is disabled: `_POSIX_VDISABLE` of Linux.
const POSIX_VDISABLE: u8 = 0;

/// A terminal as a client described it.
#[derive(Clone, Debug)]
pub(crate) struct PtyRequest {
    pub(crate) term: String,
    pub(crate) size: WindowSize,
    pub(crate) modes: Modes,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) width_px: u32,
    pub(crate) height_px: u32,
}

/// Terminal modes in the order in which the client gave them; the library bounds their number.
#[derive(Clone, Debug)]
pub(crate) struct Modes(Vec<(Pty, u32)>);

impl WindowSize {
    /// In the order of the protocol.
    pub(super) fn new(columns: u32, rows: u32, width_px: u32, height_px: u32) -> Self {
        Self {
            columns,
            rows,
            width_px,
            height_px,
        }
    }
}

impl PtyRequest {
    /// Takes a request whose terminal name is one, or none.
    pub(super) fn new(term: &str, size: WindowSize, modes: &[(Pty, u32)]) -> Option<Self> {
        let name_ok = term.len() <= MAX_TERM_BYTES
            && term
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_+.".contains(&b));
        name_ok.then(|| Self {
            term: if term.is_empty() { "dumb" } else { term }.to_owned(),
            size,
            modes: Modes(modes.to_vec()),
        })
    }
}

impl Modes {
    /// Sets the modes on the terminal's own side. Unknown ones are ignored, as the RFC
    /// asks, and so are those of serial lines (speed, parity, character size), which a pseudo-terminal does not have.
    pub(crate) fn apply(&self, slave: &OwnedFd) -> io::Result<()> {
        let mut termios = tcgetattr(slave)?;
        for (mode, value) in &self.0 {
            set(&mut termios, *mode, *value);
        }
        Ok(tcsetattr(slave, OptionalActions::Now, &termios)?)
    }
}

fn set(termios: &mut Termios, mode: Pty, value: u32) {
    if let Some(index) = special_code(mode) {
        let byte = if value == DISABLED {
            Some(POSIX_VDISABLE)
        } else {
            u8::try_from(value).ok()
        };
        if let Some(byte) = byte {
            termios.special_codes[index] = byte;
        }
    }
    let on = value != 0;
    if let Some(flag) = input_mode(mode) {
        termios.input_modes.set(flag, on);
    } else if let Some(flag) = local_mode(mode) {
        termios.local_modes.set(flag, on);
    } else if let Some(flag) = output_mode(mode) {
        termios.output_modes.set(flag, on);
    }
}

fn special_code(mode: Pty) -> Option<SpecialCodeIndex> {
    Some(match mode {
        Pty::VINTR => SpecialCodeIndex::VINTR,
        Pty::VQUIT => SpecialCodeIndex::VQUIT,
        Pty::VERASE => SpecialCodeIndex::VERASE,
        Pty::VKILL => SpecialCodeIndex::VKILL,
        Pty::VEOF => SpecialCodeIndex::VEOF,
        Pty::VEOL => SpecialCodeIndex::VEOL,
        Pty::VEOL2 => SpecialCodeIndex::VEOL2,
        Pty::VSTART => SpecialCodeIndex::VSTART,
        Pty::VSTOP => SpecialCodeIndex::VSTOP,
        Pty::VSUSP => SpecialCodeIndex::VSUSP,
        Pty::VREPRINT => SpecialCodeIndex::VREPRINT,
        Pty::VWERASE => SpecialCodeIndex::VWERASE,
        Pty::VLNEXT => SpecialCodeIndex::VLNEXT,
        Pty::VDISCARD => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input_mode(mode: Pty) -> Option<InputModes> {
    Some(match mode {
        Pty::IGNPAR => InputModes::IGNPAR,
        Pty::PARMRK => InputModes::PARMRK,
        Pty::INPCK => InputModes::INPCK,
        Pty::ISTRIP => InputModes::ISTRIP,
        Pty::INLCR => InputModes::INLCR,
        Pty::IGNCR => InputModes::IGNCR,
        Pty::ICRNL => InputModes::ICRNL,
        Pty::IUCLC => InputModes::IUCLC,
        Pty::IXON => InputModes::IXON,
        Pty::IXANY => InputModes::IXANY,
        Pty::IXOFF => InputModes::IXOFF,
        Pty::IMAXBEL => InputModes::IMAXBEL,
        Pty::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local_mode(mode: Pty) -> Option<LocalModes> {
    Some(match mode {
        Pty::ISIG => LocalModes::ISIG,
        Pty::ICANON => LocalModes::ICANON,
        Pty::XCASE => LocalModes::XCASE,
        Pty::ECHO => LocalModes::ECHO,
        Pty::ECHOE => LocalModes::ECHOE,
        Pty::ECHOK => LocalModes::ECHOK,
        Pty::ECHONL => LocalModes::ECHONL,
        Pty::NOFLSH => LocalModes::NOFLSH,
        Pty::TOSTOP => LocalModes::TOSTOP,
        Pty::IEXTEN => LocalModes::IEXTEN,
        Pty::ECHOCTL => LocalModes::ECHOCTL,
        Pty::ECHOKE => LocalModes::ECHOKE,
        Pty::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output_mode(mode: Pty) -> Option<OutputModes> {
    Some(match mode {
        Pty::OPOST => OutputModes::OPOST,
        Pty::OLCUC => OutputModes::OLCUC,
        Pty::ONLCR => OutputModes::ONLCR,
        Pty::OCRNL => OutputModes::OCRNL,
        Pty::ONOCR => OutputModes::ONOCR,
        Pty::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    const SIZE: WindowSize = WindowSize {
        columns: 80,
        rows: 24,
        width_px: 0,
        height_px: 0,
    };

    #[test]
    fn a_terminal_name_cannot_carry_anything_else() {
        assert!(PtyRequest::new("xterm-256color", SIZE, &[]).is_some());
        assert_eq!(PtyRequest::new("", SIZE, &[]).expect("valid").term, "dumb");
        for bad in ["xterm=1", "a b", "../x/y", "x\0", &"x".repeat(65)] {
            assert!(PtyRequest::new(bad, SIZE, &[]).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn modes_of_the_client_reach_the_terminal() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the other side");
        let modes = Modes(vec![
            (Pty::VINTR, 7),
            (Pty::VQUIT, DISABLED),
            (Pty::VEOF, 70_000),
            (Pty::ECHO, 0),
            (Pty::ICRNL, 0),
            (Pty::ONLCR, 1),
            (Pty::TTY_OP_OSPEED, 38_400),
        ]);
        let before = tcgetattr(&slave).expect("modes");
        modes.apply(&slave).expect("applied");
        let after = tcgetattr(&slave).expect("modes");
        assert_eq!(after.special_codes[SpecialCodeIndex::VINTR], 7);
        assert_eq!(after.special_codes[SpecialCodeIndex::VQUIT], POSIX_VDISABLE);
        assert_eq!(
            after.special_codes[SpecialCodeIndex::VEOF],
            before.special_codes[SpecialCodeIndex::VEOF]
        );
        assert!(!after.local_modes.contains(LocalModes::ECHO));
        assert!(!after.input_modes.contains(InputModes::ICRNL));
        assert!(after.output_modes.contains(OutputModes::ONLCR));
    }
}
