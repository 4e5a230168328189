//! What comes in: keys, the mouse, the terminal, time, and the node; one ordered stream of them is a whole session.
//!
//! They are plain data, so that a session can be written down and read again ([`crate::record`]).

use serde::{Deserialize, Serialize};
use souk_control::v1;

use crate::action::Deed;

/// Something that came in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// The mouse did something at a cell.
    Mouse {
        /// What.
        what: Mouse,
        /// The column, from zero.
        x: u16,
        /// The row, from zero.
        y: u16,
    },
    /// The terminal has another size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Time passed; milliseconds since 1970.
    Tick(u64),
    /// The node answers.
    Connected,
    /// The node does not answer any more, or not yet.
    Gone(String),
    /// How the node stands.
    Snapshot(Box<v1::Snapshot>),
    /// What happened at the node.
    Happenings(v1::Happenings),
    /// What became of an action.
    Done {
        /// What was asked for.
        deed: Deed,
        /// Why it was not done, if it was not.
        refused: Option<String>,
    },
}

/// A key, as far as anything here understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Key {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Esc,
    /// Backspace.
    Backspace,
    /// Tab, to the next page.
    Tab,
    /// Shift and tab, to the page before.
    BackTab,
    /// Arrow.
    Up,
    /// Arrow.
    Down,
    /// Arrow.
    Left,
    /// Arrow.
    Right,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// To the first row.
    Home,
    /// To the last row.
    End,
    /// Ctrl and C: it ends the program wherever it is.
    Interrupt,
}

/// What the mouse did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mouse {
    /// The left button was pressed.
    Click,
    /// The wheel was turned.
    ScrollUp,
    /// The wheel was turned.
    ScrollDown,
}
