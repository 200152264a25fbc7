//! Completions of the demo pair on the device beside those on the CPU.

use std::ffi::OsString;

use anyhow::Result;
use cosec_bench::cluster::{Lanes, Pair};
use cosec_bench::generation::generate_together;

use crate::{PROMPTS, Place, first_difference, request};

const TOKENS: u32 = 64;

/// Weights as they are stored, and in the CPU's own arithmetic.
const DTYPES: [&str; 2] = ["f32", "auto"];
const RULES: [&str; 2] = ["cosec", "base_only"];

/// Prints the text of the first completion and where each other one departs from the CPU's. Rounding may part them;
/// what parts is no failure.
pub(crate) async fn run(place: &Place) -> Result<()> {
    println!("| demo pair, {TOKENS} tokens | {} beside cpu |\n|---|---|", place.device);
    let mut shown = String::new();
    for dtype in DTYPES {
        let logs = cosec_bench::command::logs()?;
        let [on_cpu, on_device] = ["cpu", &place.device].map(|device| lanes(place, device, dtype, logs.path()));
        let (on_cpu, on_device) = tokio::try_join!(on_cpu, on_device)?;
        for rule in RULES {
            let requests: Vec<_> = (0..PROMPTS.len()).map(|index| request(index, rule, TOKENS)).collect();
            let (expected, found) = tokio::try_join!(
                generate_together(&on_cpu.coordinators[0], requests.clone()),
                generate_together(&on_device.coordinators[0], requests)
            )?;
            for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
                let verdict = match first_difference(&expected.tokens, &found.tokens) {
                    None => format!("equal ({} tokens)", found.tokens.len()),
                    Some(at) => format!("differs from token {at} of {} on", expected.tokens.len()),
                };
                println!("| prompt {}, {rule}, weights {dtype} | {verdict} |", index + 1);
            }
            if shown.is_empty() {
                shown = format!("{}{}", PROMPTS[0], found[0].text);
            }
        }
    }
    println!("\nThe first one, with its prompt, on {}:\n\n```\n{shown}\n```", place.device);
    Ok(())
}

async fn lanes(place: &Place, device: &str, dtype: &str, logs: &std::path::Path) -> Result<Lanes> {
    let logs = logs.join(device);
    std::fs::create_dir_all(&logs)?;
    let flags: Vec<OsString> =
        ["--device", device, "--dtype", dtype, "--kv-memory-mib", "512"].map(OsString::from).to_vec();
    Lanes::start(&Pair::demo(&place.root), &["adaptive"], &flags, &logs).await
}
