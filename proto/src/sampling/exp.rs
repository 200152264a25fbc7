//! The exponential function in f64, the same bits on every machine, for several numbers at a time.

use std::f64::consts::LOG2_E;

use multiversion::multiversion;

/// Below it the result would be subnormal.
const LEAST: f64 = -708.0;

/// `1 / n!` for n = 13 and 12, 11 and 10, and so on to 3 and 2.
const COEFFICIENTS: [[f64; 2]; 6] = [
    [1.0 / 6_227_020_800.0, 1.0 / 479_001_600.0],
    [1.0 / 39_916_800.0, 1.0 / 3_628_800.0],
    [1.0 / 362_880.0, 1.0 / 40_320.0],
    [1.0 / 5_040.0, 1.0 / 720.0],
    [1.0 / 120.0, 1.0 / 24.0],
    [1.0 / 6.0, 1.0 / 2.0],
];

/// Numbers that are done at a time.
const LANES: usize = 8;

/// Replaces each number `x`, which is at most 0, by `e^x` to two units in the last place; 0 below -708.
// No fused multiply-add: it would round differently.
#[multiversion(targets("x86_64+avx2"))]
pub(crate) fn exp(numbers: &mut [f64]) {
    let (whole, rest) = numbers.as_chunks_mut();
    for some in whole {
        exp_of_some(some);
    }
    let mut padded = [0.0; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    exp_of_some(&mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
}

/// `x = n ln 2 + r` with |r| <= ln 2 / 2, the Taylor series for `e^r`, whose rest is below 5e-18, and `2^n` by its
/// bits.
#[inline(always)]
fn exp_of_some(x: &mut [f64; LANES]) {
    // Adding and subtracting 1.5 · 2^52 rounds to the nearest integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // 45,426 / 2^16 exactly: its products with n are exact.
    const LN_2_HIGH: f64 = 45_426.0 / 65_536.0;
    const LN_2_LOW: f64 = 1.428_606_820_309_417_3e-6;
    let (mut r, mut power) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        let clamped = x[i].max(LEAST);
        let shifted = clamped * LOG2_E + ROUND;
        let n = shifted - ROUND;
        r[i] = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
        // The low bits of `shifted` are n, -1021 to 0 after the clamp: the exponent's field holds it.
        power[i] = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    }
    // Two chains, which do not wait for each other.
    let (mut odd, mut even) = ([0.0; LANES], [0.0; LANES]);
    for coefficients in COEFFICIENTS {
        for i in 0..LANES {
            let square = r[i] * r[i];
            odd[i] = odd[i] * square + coefficients[0];
            even[i] = even[i] * square + coefficients[1];
        }
    }
    for i in 0..LANES {
        let whole = ((odd[i] * r[i] + even[i]) * (r[i] * r[i]) + r[i]) + 1.0;
        // A condition would be a branch for each number.
        let kept = u64::from(x[i] >= LEAST).wrapping_neg();
        x[i] = f64::from_bits((whole * power[i]).to_bits() & kept);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_library(x in prop_oneof![-1f64..0.0, -40f64..0.0, -708f64..0.0]) {
            let mut numbers = vec![x; 11];
            exp(&mut numbers);
            prop_assert!(numbers.iter().all(|y| y.to_bits() == numbers[0].to_bits()));
            let (found, expected) = (numbers[0], x.exp());
            prop_assert!((found - expected).abs() <= 2.0 * f64::EPSILON * expected, "e^{}: {}, not {}", x, found, expected);
        }
    }

    #[test]
    fn ends_are_exact() {
        let exp = |x| {
            let mut numbers = [x];
            exp(&mut numbers);
            numbers[0]
        };
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(-708.0) >= f64::MIN_POSITIVE);
        for x in [-708.000_001, -1e300, f64::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
    }
}
