//! Angles of the rotary position embedding.

use std::f64::consts::TAU;

use crate::families::{RopeScaling, RotaryEmbedding};
use crate::kernels::TokenPlace;

/// Cosines and sines of every place, times the attention factor: `[places][rotary.width]`, a row's cosines first.
///
/// In f64, so that long contexts lose nothing before the last rounding.
pub(super) fn angles(rotary: &RotaryEmbedding, frequencies: &[f64], places: &[TokenPlace<'_>], out: &mut Vec<f32>) {
    let scale = rotary.attention_factor;
    out.clear();
    for place in places {
        let position = place.position as f64;
        out.extend(frequencies.iter().map(|frequency| ((position * frequency).cos() * scale) as f32));
        out.extend(frequencies.iter().map(|frequency| ((position * frequency).sin() * scale) as f32));
    }
}

/// Radians per token of every pair.
pub(super) fn frequencies(rotary: &RotaryEmbedding) -> Vec<f64> {
    let pairs = rotary.width / 2;
    let unscaled = |pair: usize| rotary.theta.powf(-(pair as f64) / pairs as f64);
    (0..pairs).map(|pair| scaled(unscaled(pair), pair, &rotary.scaling)).collect()
}

fn scaled(frequency: f64, pair: usize, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
            let turns = original_context * frequency / TAU;
            let kept = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            match turns {
                turns if turns < low_frequency_factor => frequency / factor,
                turns if turns > high_frequency_factor => frequency,
                _ => frequency * (kept + (1.0 - kept) / factor),
            }
        }
        RopeScaling::Yarn { factor, kept, divided } => {
            let kept = 1.0 - ((pair as f64 - kept) / (divided - kept)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frequency: f64, pair: usize, scaling: &RopeScaling, expected: f64) {
        let got = scaled(frequency, pair, scaling);
        assert!((got - expected).abs() <= 1e-12 * expected, "{frequency} {pair} {scaling:?}: {got}, not {expected}");
    }

    #[test]
    fn scaling_changes_low_frequencies() {
        check(0.5, 0, &RopeScaling::Default, 0.5);
        check(0.5, 0, &RopeScaling::Linear { factor: 4.0 }, 0.125);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        check(1.0, 0, &llama3, 1.0);
        check(1e-5, 0, &llama3, 1e-5 / 8.0);
        // 2.5 turns within the original context: halfway up the ramp.
        let middle = 2.5 * TAU / 8192.0;
        check(middle, 0, &llama3, middle * (0.5 + 0.5 / 8.0));
        let yarn = RopeScaling::Yarn { factor: 4.0, kept: 2.0, divided: 6.0 };
        for (pair, expected) in [(0, 0.5), (2, 0.5), (3, 0.5 * (0.75 + 0.25 / 4.0)), (6, 0.125), (9, 0.125)] {
            check(0.5, pair, &yarn, expected);
        }
    }
}
