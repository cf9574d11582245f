//! Any text as a cursor.
#![no_main]

use jobgate_tests::fuzzing::Gateway;

thread_local! {
    static GATEWAY: Gateway = Gateway::default();
}

libfuzzer_sys::fuzz_target!(|text: &str| GATEWAY.with(|gateway| gateway.cursor(text)));
