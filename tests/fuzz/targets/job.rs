//! Any bytes posted as a job.
#![no_main]

use jobgate_tests::fuzzing::Gateway;

thread_local! {
    static GATEWAY: Gateway = Gateway::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| GATEWAY.with(|gateway| drop(gateway.post(bytes))));
