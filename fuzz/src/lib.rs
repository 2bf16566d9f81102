//! What everything that reads hostile bytes must hold to: a *body* for each reader takes any bytes, gives them to the reader,
//! and panics where a promise is broken.
//!
//! `cargo fuzz` looks for bytes that break one (`fuzz_targets/`); the tests here give the bodies all of `corpus/`.
//!
//! | body | reads | holds to, besides "no panic, little memory" |
//! | --- | --- | --- |
//! | [`wire`] | frames of the protocol | one decoder takes it; encoded again it is the same bytes; a wrong key opens nothing |
//! | [`replica`] | a checkpoint's parts | what is refused changes nothing, and the right epoch is still taken; what is taken can be sent on |
//! | [`journal`] | a journal of disk writes | images are what a second reader finds; refused, the file is as it was |
//! | [`resync`] | digests of a disk's blocks | the ranges to send are what a plain comparison finds |
//! | [`classifier`] | a machine's output | what `split` passes is one datagram of media with lengths that agree, by a second reader |
//! | [`addresses`] | frames, and learned addresses | only a card's own frames tell; encoded again they are the same bytes |
//! | [`config`] | machine files | what is taken is plausible; each problem has a place in the text |
//! | [`store`] | the arbiter's files | records are what a second reader finds; a bad file refuses all; stored again they are the same bytes |
//! | [`sip`] | SIP, session descriptions and RTP, as the media probe gets them | written again it is read the same; a stream gives the same however it is cut; a user agent sends no storm |
//! | [`state`] | captured state | captured again and loaded again it is the same; refused, other state is still taken |

#![forbid(unsafe_code)]

pub mod addresses;
pub mod classifier;
pub mod config;
pub mod input;
pub mod journal;
pub mod memory;
pub mod replica;
pub mod resync;
pub mod run;
pub mod sip;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
pub mod wire;

/// How the names of files begin that are made by `seeds`; the others were found by the fuzzer.
pub const SEED: &str = "seed-";

/// One reader and what it must hold to.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Gives it some bytes. Panics if a promise is broken.
    pub body: fn(&[u8]),
    /// What the fuzzer begins with, each with a name: made by the real encoders.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All targets: the fuzzer's programs in `Cargo.toml` have these names, too.
pub const ALL: &[Target] = &[
    target("wire", wire::body, wire::seeds),
    target("replica", replica::body, replica::seeds),
    target("journal", journal::body, journal::seeds),
    target("resync", resync::body, resync::seeds),
    target("classifier", classifier::body, classifier::seeds),
    target("addresses", addresses::body, addresses::seeds),
    target("config", config::body, config::seeds),
    target("store", store::body, store::seeds),
    target("state", state::body, state::seeds),
    target("sip", sip::body, sip::seeds),
];

const fn target(
    name: &'static str,
    body: fn(&[u8]),
    seeds: fn() -> Vec<(String, Vec<u8>)>,
) -> Target {
    Target { name, body, seeds }
}

/// Makes the program of one target: under `cargo fuzz` the fuzzer's, otherwise one that runs the files that it is given.
#[macro_export]
macro_rules! target {
    ($body:ident) => {
        #[global_allocator]
        static MEMORY: $crate::memory::Counter = $crate::memory::COUNTER;

        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::$body::body(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::run::files($crate::$body::body)
        }
    };
}
