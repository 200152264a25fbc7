//! Products with weights in GGML's blocks.

use rayon::prelude::*;

use super::lanes::{InstructionSet, Simd, Task, dot_products};
use crate::kernels::{WeightFormat, blocks};

/// A matrix as a GGML file stores it.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub(super) format: WeightFormat,
    pub(super) outputs: usize,
    pub(super) bytes: Vec<u8>,
}

impl Blocks {
    pub(super) fn embed(&self, inputs: usize, ids: &[u32], out: &mut [f32]) {
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(inputs)) {
            self.row(id as usize, out);
        }
    }

    /// Dequantises every row of the matrix once for all rows of `x`.
    pub(super) fn linear(
        &self,
        instructions: InstructionSet,
        (x, rows): (&[f32], usize),
        inputs: usize,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let column = |index: usize| {
            let mut weight = vec![0.0; inputs];
            self.row(index, &mut weight);
            let bias = bias.map_or(0.0, |bias| bias[index]);
            let dot = |x| instructions.run(Dot { x, weight: &weight }) + bias;
            x[..rows * inputs].chunks_exact(inputs).map(dot).collect::<Vec<f32>>()
        };
        let columns: Vec<Vec<f32>> = (0..self.outputs).into_par_iter().map(column).collect();
        for (row, out) in out.chunks_exact_mut(self.outputs).take(rows).enumerate() {
            out.iter_mut().zip(&columns).for_each(|(out, column)| *out = column[row]);
        }
    }

    /// The weights of one output.
    fn row(&self, index: usize, out: &mut [f32]) {
        let bytes = &self.bytes[self.bytes.len() / self.outputs * index..];
        match self.format {
            WeightFormat::Q8_0 => {
                let blocks = bytes.as_chunks().0.iter().map(|block| blocks::q8_0(block).weights());
                out.chunks_mut(blocks::BLOCK).zip(blocks).for_each(|(out, w)| out.copy_from_slice(&w[..out.len()]));
            }
            _ => {
                let blocks = bytes.as_chunks().0.iter().map(|block| blocks::q4_k(block).weights());
                let out = out.chunks_mut(blocks::SUPER_BLOCK);
                out.zip(blocks).for_each(|(out, w)| out.copy_from_slice(&w[..out.len()]));
            }
        }
    }
}

struct Dot<'a> {
    x: &'a [f32],
    weight: &'a [f32],
}

impl Task for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let [[dot]] = dot_products(simd, [self.x], [self.weight]);
        dot
    }
}
