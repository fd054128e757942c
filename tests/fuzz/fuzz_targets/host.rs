#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| connect_fuzz::properties::host(bytes));
