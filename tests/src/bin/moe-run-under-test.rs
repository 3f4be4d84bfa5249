//! The command line itself, built here so that the tests of this crate can start it as a process.

fn main() -> std::process::ExitCode {
    moe_run::main()
}
