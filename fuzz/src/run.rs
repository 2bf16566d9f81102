//! Runs a body over files, as a program of its own without the fuzzer: to see again what the fuzzer found.

use std::{env, fs, process::ExitCode};

/// Gives each file named on the command line to `body`. A broken promise ends the program with its panic.
pub fn files(body: fn(&[u8])) -> ExitCode {
    let files: Vec<_> = env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("name files with input for this target, such as fuzz/corpus/TARGET/*");
        return ExitCode::FAILURE;
    }
    for file in &files {
        match fs::read(file) {
            Ok(bytes) => {
                eprintln!("{} ({} bytes)", file.display(), bytes.len());
                body(&bytes);
            }
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} files: all promises hold", files.len());
    ExitCode::SUCCESS
}
