//! Any bytes from the broker.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| jobgate_shared::wire::is_read_or_refused(bytes));
