//! The binary `moe-run`: everything is in the library beside it.

fn main() -> std::process::ExitCode {
    moe_run::main()
}
