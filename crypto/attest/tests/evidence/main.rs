//! Evidence from end to end: real samples, minted evidence, mutations, and a second opinion.

mod common;
mod differential;
mod minted;
mod mutation;
mod real_samples;
