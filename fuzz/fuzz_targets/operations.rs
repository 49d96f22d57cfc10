//! `cargo +nightly fuzz run operations --features fuzzing`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tensorcask_fuzz::operations(data));
