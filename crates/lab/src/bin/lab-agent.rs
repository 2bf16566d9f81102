//! The agent in each host of the lab: see `lab::agent`.
//!
//! `lab-agent ADDRESS:PORT` answers requests there.

use std::net::SocketAddr;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address] = arguments.as_slice() else {
        eprintln!("usage: lab-agent ADDRESS:PORT");
        return ExitCode::from(2);
    };
    let address: SocketAddr = match address.parse() {
        Ok(address) => address,
        Err(error) => {
            eprintln!("lab-agent: {address} is no address and port: {error}");
            return ExitCode::from(2);
        }
    };
    match lab::agent::serve(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
