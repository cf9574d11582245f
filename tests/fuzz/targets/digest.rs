//! Any two bodies under one key.
#![no_main]

use jobgate_tests::fuzzing::Gateway;

thread_local! {
    static GATEWAY: Gateway = Gateway::default();
}

libfuzzer_sys::fuzz_target!(|bodies: (&[u8], &[u8])| GATEWAY.with(|gateway| gateway.twice(bodies.0, bodies.1)));
