//! `x · wᵀ`: where nearly all the time goes.
//!
//! Every element of the result is one dot product, summed in eight lanes in ascending order whatever else is computed
//! beside it. Several rows share a loaded piece of a weight row, which saves memory traffic and changes no sum.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::lanes::{Element, InstructionSet, Simd, Task, dot_products};

/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL_FROM: usize = 1 << 17;

/// Weights of one task, in bytes: they stay in the second-level cache while all rows pass.
const STRIPE_BYTES: usize = 1 << 17;

/// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ + bias[n]`.
pub(super) fn linear<W: Element>(
    instructions: InstructionSet,
    (x, rows): (&[f32], usize),
    (weight, inputs): (&[W], usize),
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let outputs = weight.len() / inputs;
    let out = Columns::new(&mut out[..rows * outputs], outputs);
    let stripe = |first: usize, count: usize| {
        let weight = &weight[first * inputs..][..count * inputs];
        instructions.run(Stripe { x: &x[..rows * inputs], weight, inputs, first, bias, out: &out });
    };
    if rows * weight.len() < PARALLEL_FROM || rayon::current_num_threads() == 1 {
        return stripe(0, outputs);
    }
    let columns = (STRIPE_BYTES / size_of::<W>() / inputs).max(1).next_multiple_of(4);
    (0..outputs.div_ceil(columns)).into_par_iter().for_each(|index| {
        let first = index * columns;
        stripe(first, columns.min(outputs - first));
    });
}

/// Some columns of the result, for all rows.
struct Stripe<'a, W> {
    x: &'a [f32],
    /// Rows of the matrix from `first` on.
    weight: &'a [W],
    inputs: usize,
    first: usize,
    bias: Option<&'a [f32]>,
    out: &'a Columns<'a>,
}

impl<W: Element> Task for Stripe<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.x.len() / self.inputs;
        let mut row = 0;
        while row < rows {
            match rows - row {
                1 => self.tiles::<1, 4, S>(simd, row),
                2 | 3 => self.tiles::<2, 4, S>(simd, row),
                _ => self.tiles::<4, 3, S>(simd, row),
            }
            row += match rows - row {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
        }
    }
}

impl<W: Element> Stripe<'_, W> {
    /// `R` rows from `row` on against all columns, `C` at a time.
    #[inline(always)]
    fn tiles<const R: usize, const C: usize, S: Simd>(&self, simd: S, row: usize) {
        let columns = self.weight.len() / self.inputs;
        let whole = columns - columns % C;
        for column in (0..whole).step_by(C) {
            self.tile::<R, C, S>(simd, row, column);
        }
        for column in whole..columns {
            self.tile::<R, 1, S>(simd, row, column);
        }
    }

    #[inline(always)]
    fn tile<const R: usize, const C: usize, S: Simd>(&self, simd: S, row: usize, column: usize) {
        let inputs = self.inputs;
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[(row + r) * inputs..][..inputs]);
        let w: [&[W]; C] = std::array::from_fn(|c| &self.weight[(column + c) * inputs..][..inputs]);
        let dots = dot_products(simd, x, w);
        for (r, dots) in dots.into_iter().enumerate() {
            for (c, dot) in dots.into_iter().enumerate() {
                let column = self.first + column + c;
                let bias = self.bias.map_or(0.0, |bias| bias[column]);
                self.out.set(row + r, column, dot + bias);
            }
        }
    }
}

/// A matrix that several threads write at once, each its own columns.
struct Columns<'a> {
    values: *mut f32,
    len: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "columns interleave in memory, so that no safe split gives each thread its own")]
// SAFETY: the pointer is only used by `set`, and `linear` gives every column to exactly one task.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(values: &'a mut [f32], width: usize) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), width, borrowed: PhantomData }
    }

    #[inline(always)]
    fn set(&self, row: usize, column: usize, value: f32) {
        let at = row * self.width + column;
        assert!(at < self.len, "element {at} of {}", self.len);
        #[expect(unsafe_code, reason = "see the type")]
        // SAFETY: within the borrowed slice, and no other thread touches this column.
        unsafe {
            *self.values.add(at) = value;
        }
    }
}
