//! A keeper as a program of its own, for tests and benchmarks; `souk` contains the same under a hidden argument.

fn main() {
    std::process::exit(souk_sandbox::keeper_main());
}
