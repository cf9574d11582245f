//! Any spec, and the process it becomes.
#![no_main]

use jobgate_shared::domain::JobSpec;
use jobgate_worker::engines::local::rendering;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = serde_json::from_slice::<JobSpec>(bytes) {
        rendering::is_exact(&spec);
    }
});
