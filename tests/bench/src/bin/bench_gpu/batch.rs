//! Whether company and lookahead change a completion.

use std::ffi::OsString;

use anyhow::{Result, bail};
use cosec_bench::cluster::{Lanes, Pair};
use cosec_bench::generation::{generate, generate_together};

use crate::{Place, agreement, request};

const TOKENS: u32 = 48;

/// Completions that are compared, and all that run at the same time.
const COMPARED: usize = 4;
const COMPANY: usize = 32;

const SPECULATIONS: [&str; 3] = ["off", "fixed:4", "adaptive"];

/// Formats of the weights; each has kernels of its own.
const FORMATS: [[&str; 2]; 3] = [["--dtype", "f32"], ["--dtype", "bf16"], ["--quantize", "q8_0"]];

/// Compares with sequential decoding alone.
pub(crate) async fn run(place: &Place) -> Result<()> {
    println!("| demo pair, same prompts and seeds | alone | among {COMPANY} streams |\n|---|---|---|");
    let mut all_equal = true;
    for format in FORMATS {
        let logs = cosec_bench::command::logs()?;
        let flags: Vec<OsString> =
            ["--device", &place.device, "--kv-memory-mib", "1024", format[0], format[1]].map(OsString::from).to_vec();
        let lanes = Lanes::start(&Pair::demo(&place.root), &SPECULATIONS, &flags, logs.path()).await?;
        for rule in ["base_only", "cosec"] {
            let requests: Vec<_> = (0..COMPANY).map(|index| request(index, rule, TOKENS)).collect();
            let mut expected: Vec<Vec<u32>> = Vec::new();
            for (speculation, coordinator) in SPECULATIONS.iter().zip(&lanes.coordinators) {
                // The base alone has nothing to look ahead with.
                if rule == "base_only" && *speculation != "off" {
                    continue;
                }
                let mut alone = Vec::new();
                for request in &requests[..COMPARED] {
                    alone.push(generate(coordinator, request.clone()).await?.tokens);
                }
                if expected.is_empty() {
                    expected.clone_from(&alone);
                }
                let company = generate_together(coordinator, requests.clone()).await?;
                let company: Vec<Vec<u32>> = company.into_iter().map(|completion| completion.tokens).collect();
                let (alone, alone_told) = agreement(&expected, &alone);
                let (company, company_told) = agreement(&expected, &company);
                all_equal &= alone && company;
                println!("| {rule}, {}, lookahead {speculation} | {alone_told} | {company_told} |", format[1]);
            }
        }
    }
    if !all_equal {
        bail!("completions depend on their company or on lookahead");
    }
    println!("\nno completion depends on its company or on lookahead");
    Ok(())
}
