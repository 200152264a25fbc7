#![no_main]

#[path = "../readers.rs"]
#[expect(dead_code, reason = "every target uses one of them")]
mod readers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| readers::pickle(data));
