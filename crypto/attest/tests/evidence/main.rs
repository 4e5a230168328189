//! Evidence from end to end: real samples, minted evidence, mutations, and a second opinion.

mod collect;
mod common;
mod differential;
mod fetch;
mod files;
mod measure;
mod minted;
mod mutation;
mod real_samples;
