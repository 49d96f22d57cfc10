//! `cargo +nightly fuzz run open_segment --features fuzzing`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tensorcask_fuzz::open_segment(data));
