//! Any text as a configuration. Its code lies in a binary, so it is taken from there.
#![no_main]
#![allow(dead_code, unused_imports, reason = "only what reads a configuration is used of it")]

#[path = "../../../cli/src/config/mod.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|text: &str| config::is_told(text));
