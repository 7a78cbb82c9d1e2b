//! The program `lowzone`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lowzone::cli::main()
}
