//! `cargo +nightly fuzz run mutate_store --features fuzzing`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tensorcask_fuzz::mutate_store(data));
