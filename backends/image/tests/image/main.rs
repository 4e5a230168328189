//! Images as their users meet them: built, imported, verified and removed through the store.

mod archives;
mod build;
mod import;
