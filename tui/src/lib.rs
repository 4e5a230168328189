//! `souk top`: a node at a glance, in a terminal.
//!
//! ```text
//!  terminal ─┐                                        ┌─► cells ─► terminal
//!  clock ────┼──► Event ──► State ──► Option<Action> ─┤
//!  node ─────┘      │                                 └─► asked of the node
//!                   └──► recording (and back: a recording instead of the node)
//! ```
//!
//! A session is one ordered stream of events. [`State`] takes them one by one and says what is to be done; [`render`] makes cells of a
//! state and of nothing else. So a session that was recorded shows the same again, and all of it is tested without a terminal or a
//! node. What touches the world is in three small modules: `screen` (the terminal), `link` (the node) and `run` (both together).
//!
//! Nothing here knows libp2p, backends or the node's own types: the control API is all there is (`souk-control`), and only `link` calls
//! it.
//!
//! Threats: a node that says odd things (texts are cut and free of control characters; no event order panics, which a property test
//! holds against every size of terminal); an operator who presses a key by mistake (what changes something asks first); a terminal
//! that is left unusable (it is put back when the program ends, also by a panic or a signal).

mod action;
mod event;
mod facts;
mod happening;
mod layout;
mod link;
mod page;
mod record;
mod run;
mod screen;
mod state;
mod text;
mod theme;
mod view;

pub use action::{Action, Deed};
pub use event::{Event, Key, Mouse};
pub use facts::{Fact, facts};
pub use page::Page;
pub use record::{ReadError, read};
pub use run::{Options, Source, TopError, run};
pub use state::{Link, MAX_HAPPENINGS, Row, State};
pub use theme::Theme;
pub use view::render;
